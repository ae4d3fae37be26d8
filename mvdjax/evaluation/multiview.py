"""Top-k accuracy of predictions that were averaged over views, video by video."""

from collections.abc import Mapping, Sequence

import numpy as np


class TopK:
    """Counts videos whose label is among the k most probable classes.

    Counts are integers and each video is scored by itself, so the result depends neither on the batch size nor on the
    number of devices. Ties go to the lower class number (a stable sort).
    """

    def __init__(self, ks: Sequence[int] = (1, 5)) -> None:
        self._ks = tuple(ks)
        self._hits = dict.fromkeys(self._ks, 0)
        self._scored = 0
        self._probabilities: dict[int, np.ndarray] = {}

    def update(self, outputs: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]) -> None:
        """Adds (b, classes) `probability` with the batch's (b,) `label`, `valid` and `index` (line of the list)."""
        for p, label, valid, index in zip(
            outputs['probability'], batch['label'], batch['valid'], batch['index'], strict=True
        ):
            if not valid:
                continue
            rank = int(np.nonzero(np.argsort(-p, kind='stable') == label)[0][0])
            for k in self._ks:
                self._hits[k] += rank < k
            self._scored += 1
            self._probabilities[int(index)] = p

    def result(self) -> dict[str, float]:
        """{'top1': percent, 'top5': percent}; NaN when nothing was scored."""
        return {f'top{k}': 100.0 * n / self._scored if self._scored else float('nan') for k, n in self._hits.items()}

    def probabilities(self) -> dict[int, np.ndarray]:
        """Index in the list -> (classes,) mean softmax of its views."""
        return self._probabilities
