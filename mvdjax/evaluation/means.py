"""Mean of per-sample numbers over an evaluation set."""

from collections.abc import Mapping

import numpy as np


class Means:
    """Averages every output of a task's `predict`, over the samples that could be read."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def update(self, outputs: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]) -> None:
        """Adds a batch of (b,) outputs; `batch['valid']` (b,) bool tells which rows are real."""
        valid = batch['valid']
        for name, values in outputs.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(np.sum(values[valid], dtype=np.float64))
        self._count += int(valid.sum())

    def result(self) -> dict[str, float]:
        """The means; NaN when nothing was scored."""
        return {name: total / self._count if self._count else float('nan') for name, total in self._sums.items()}
