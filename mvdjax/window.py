"""What a training loop counts between two lines of metrics."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax

from mvdjax import metrics
from mvdjax.data import workers
from mvdjax.device_memory import device_memory
from mvdjax.step_clock import StepClock


@dataclasses.dataclass
class Window:
    """What happened since the last line of metrics.

    Attributes:
      values: the metrics of each step, on the devices.
      records: rows trained on, over all processes.
      substituted: files that this process could not read, and replaced by others.
      lost: seconds in which the devices did not train, by the reason: 'data' (they waited for it), 'compile', 'save',
        'evaluate'.
      clock: knows when the devices are idle; None: they are whenever this process waits.
      fetched: the metrics of each step, on the host once the window is closed.
      start: when the window began.
    """

    values: list[metrics.Metrics] = dataclasses.field(default_factory=list)
    records: int = 0
    substituted: int = 0
    lost: dict[str, float] = dataclasses.field(default_factory=dict)
    clock: StepClock | None = None
    fetched: list[Any] = dataclasses.field(default_factory=list)
    start: float = dataclasses.field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def losing(self, kind: str) -> Iterator[None]:
        """Counts the part of a with-block as lost in which the devices have nothing to do."""
        start = time.perf_counter()
        try:
            yield
        finally:
            idle = start if self.clock is None else self.clock.idle_since()
            if idle is not None:
                self.lost[kind] = self.lost.get(kind, 0.0) + time.perf_counter() - max(start, idle)

    def close(self, flops: float = 0.0, peak: float | None = None) -> dict[str, float]:
        """Means of the metrics, rates of the clock. Waits for the devices.

        Args:
          flops: model FLOPs of a step, over all devices and processes.
          peak: FLOP/s that all devices could do together; None if it is not known.

        Returns:
          Among others 'clips_per_second', 'mfu' (share of the peak in [0, 1], where it is known), 'data_wait' (share of
          the window's time), 'useful_seconds', and memory in MiB. The time of a first step's compilation and that of
          evaluations are in no rate.
        """
        self.fetched = host = jax.device_get(self.values)
        total = {n: (sum(float(v[n][0]) for v in host), sum(float(v[n][1]) for v in host)) for n in host[0]}
        numbers = metrics.means(total)
        numbers['skipped'] = total['skipped'][0]
        del numbers['not_finite']  # see mvdjax/rollback.py
        elapsed = time.perf_counter() - self.start
        seconds = max(elapsed - self.lost.get('compile', 0.0) - self.lost.get('evaluate', 0.0), 1e-9)
        numbers |= {
            'substituted': float(self.substituted),
            'clips_per_second': self.records / seconds,
            'steps_per_second': len(host) / seconds,
            **({'mfu': flops * len(host) / seconds / peak} if flops and peak else {}),
            'data_wait': self.lost.get('data', 0.0) / seconds,
            'useful_seconds': max(elapsed - sum(self.lost.values()), 0.0),
            **workers.memory(),
            **device_memory(),
        }
        return numbers
