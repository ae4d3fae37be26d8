"""Goodput: which part of the time since a run was first started went into steps that its result is made of."""

import contextlib
import json
import os
import time
from collections.abc import Callable

from mvdjax.metric_writer import read_metrics

FILE = 'starts.jsonl'


class Goodput:
    """Keeps the sum over restarts; for the process that writes the metrics.

    The time is that of the wall clock, from the first start of the run on, so it includes what happened while nothing
    ran. Useful are the seconds of steps whose results were kept: `metrics.jsonl` loses the lines after the checkpoint
    that a run is resumed from, and with them the seconds of the steps that have to be taken again. Waiting for data,
    compiling, saving and evaluating are not useful in this sense.
    """

    def __init__(self, workdir: str, start_step: int, now: Callable[[], float] = time.time) -> None:
        """Records a start of the run at `start_step`, after `MetricWriter` has taken back the lines behind it.

        Raises:
          OSError: the folder cannot be written.
        """
        self._now = now
        path = os.path.join(workdir, FILE)
        with open(path, 'a', encoding='utf-8') as file:
            # The first of the two ends a line that a crash has cut short.
            file.write('\n' + json.dumps({'time': now(), 'step': start_step}) + '\n')
        starts = _read(path)
        self._first = min(start['time'] for start in starts)
        self.starts = len(starts)
        self.back_to(workdir, start_step)

    def back_to(self, workdir: str, step: int) -> None:
        """Forgets the seconds of steps after `step`: the run goes on from there."""
        self._useful = sum(
            record.get('useful_seconds', 0.0) for record in read_metrics(workdir) if record['step'] <= step
        )

    def add(self, useful: float) -> dict[str, float]:
        """Counts the useful seconds of a window.

        Returns:
          {'useful_seconds': of this window, 'goodput': share in [0, 1] of the run so far, 'starts': of the run}.
        """
        self._useful += useful
        passed = max(self._now() - self._first, self._useful, 1e-9)  # a clock that was set back gives no share above 1
        return {'useful_seconds': useful, 'goodput': self._useful / passed, 'starts': float(self.starts)}


def _read(path: str) -> list[dict[str, float]]:
    """The lines that are whole."""
    found = []
    with open(path, encoding='utf-8', errors='replace') as file:
        for line in file:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return [start for start in found if isinstance(start, dict) and 'time' in start]
