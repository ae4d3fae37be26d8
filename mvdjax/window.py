"""What a training loop counts between two lines of metrics."""

import dataclasses
import time
from typing import Any

import jax

from mvdjax import metrics
from mvdjax.data import workers


@dataclasses.dataclass
class Window:
    """What happened since the last line of metrics.

    Attributes:
      values: the metrics of each step, on the devices.
      records: rows trained on, over all processes.
      substituted: files that this process could not read, and replaced by others.
      wait: seconds that this process waited for data.
      fetched: the metrics of each step, on the host once the window is closed.
      start: when the window began.
    """

    values: list[metrics.Metrics] = dataclasses.field(default_factory=list)
    records: int = 0
    substituted: int = 0
    wait: float = 0.0
    fetched: list[Any] = dataclasses.field(default_factory=list)
    start: float = dataclasses.field(default_factory=time.perf_counter)

    def close(self) -> dict[str, float]:
        """Means of the metrics, rates of the clock. Waits for the devices."""
        self.fetched = host = jax.device_get(self.values)
        total = {n: (sum(float(v[n][0]) for v in host), sum(float(v[n][1]) for v in host)) for n in host[0]}
        numbers = metrics.means(total)
        numbers['skipped'] = total['skipped'][0]
        del numbers['not_finite']  # see mvdjax/rollback.py
        seconds = time.perf_counter() - self.start
        numbers |= {
            'substituted': float(self.substituted),
            'clips_per_second': self.records / seconds,
            'data_wait': self.wait / seconds,
            **workers.memory(),
        }
        return numbers
