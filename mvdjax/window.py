"""What a training loop counts between two lines of metrics."""

import dataclasses
import time

import jax

from mvdjax import metrics
from mvdjax.data import workers
from mvdjax.errors import UserError

MAX_SKIPPED = 10  # steps in a row that are not finite before a run stops


@dataclasses.dataclass
class Window:
    """What happened since the last line of metrics.

    Attributes:
      values: the metrics of each step, on the devices.
      records: rows trained on, over all processes.
      substituted: files that this process could not read, and replaced by others.
      wait: seconds that this process waited for data.
      streak: steps skipped in a row up to the last closed window.
      start: when the window began.
    """

    values: list[metrics.Metrics] = dataclasses.field(default_factory=list)
    records: int = 0
    substituted: int = 0
    wait: float = 0.0
    streak: int = 0
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
            **workers.memory(),
        }
        for values in host:
            self.streak = self.streak + 1 if values['skipped'][0] else 0
            if self.streak == MAX_SKIPPED:
                raise UserError(
                    f'{MAX_SKIPPED} steps in a row had a loss, gradient or update that was not finite: lower the rate, '
                    'clip gradients (optim.clip_norm) or compute in float32, and start again from the last checkpoint'
                )
        return numbers
