"""What a training loop counts between two lines of metrics, and the feed of batches that it counts in."""

import dataclasses
import time
from collections.abc import Iterator

import jax

from mvdjax import metrics
from mvdjax.data.schema import SUBSTITUTED, Sample
from mvdjax.errors import UserError

MAX_SKIPPED = 10  # steps in a row that are not finite before a run stops


@dataclasses.dataclass
class Window:
    """What happened since the last line of metrics."""

    values: list[metrics.Metrics] = dataclasses.field(default_factory=list)
    records: int = 0
    substituted: int = 0
    wait: float = 0.0
    streak: int = 0  # steps skipped in a row up to the last closed window
    start: float = dataclasses.field(default_factory=time.perf_counter)

    def close(self) -> dict[str, float]:
        """Means of the metrics, rates of the clock. Waits for the devices."""
        host = jax.device_get(self.values)
        total = {n: (sum(float(v[n][0]) for v in host), sum(float(v[n][1]) for v in host)) for n in host[0]}
        numbers = metrics.means(total)
        numbers['skipped'] = total['skipped'][0]
        seconds = time.perf_counter() - self.start
        numbers |= {
            'substituted': float(self.substituted),
            'clips_per_second': self.records / seconds,
            'data_wait': self.wait / seconds,
        }
        for values in host:
            self.streak = self.streak + 1 if values['skipped'][0] else 0
            if self.streak == MAX_SKIPPED:
                raise UserError(
                    f'{MAX_SKIPPED} steps in a row had a loss, gradient or update that was not finite: lower the rate, '
                    'clip gradients (optim.clip_norm) or compute in float32, and start again from the last checkpoint'
                )
        return numbers


class Feed:
    """The training batches, with the bad-file budget and the time spent waiting for data."""

    def __init__(self, batches: Iterator[Sample], views: int, limit: float, files: str, bad_file: str) -> None:
        """`views` is the recipe's; `limit` the share of unreadable files tried above which training stops."""
        self._batches, self._views, self._limit, self._files, self._bad_file = batches, views, limit, files, bad_file
        self._tried = self._failed = 0

    def __call__(self, window: Window) -> Sample:
        """The next batch, counted in `window`."""
        start = time.perf_counter()
        batch = next(self._batches)
        window.wait += time.perf_counter() - start
        failed = int(batch.pop(SUBSTITUTED).sum())
        files = len(next(iter(batch.values()))) // self._views
        window.substituted += failed
        self._failed, self._tried = self._failed + failed, self._tried + failed + files
        if self._tried >= 100 and self._failed > self._limit * self._tried:
            raise UserError(
                f'{self._failed} of {self._tried} files tried from {self._files} could not be read, more than '
                f'data.max_bad_fraction {self._limit:g}; see {self._bad_file}, repair the files or raise the limit'
            )
        return batch
