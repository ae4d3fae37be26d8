"""What a tokenizer makes of an evaluation set: how well it reconstructs, and how much of its codebook it uses."""

from collections.abc import Mapping

import numpy as np


class CodebookUse:
    """Mean peak signal-to-noise ratio, and the distribution of the codes over the whole set."""

    def __init__(self, vocabulary: int) -> None:
        self._counts = np.zeros(vocabulary, np.int64)
        self._psnr = 0.0
        self._samples = 0

    def update(self, outputs: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]) -> None:
        """Adds (b,) `psnr` and (b, tokens) `tokens`; `batch['valid']` (b,) bool tells which rows are real."""
        valid = batch['valid']
        tokens = outputs['tokens'][valid].reshape(-1)
        self._counts += np.bincount(tokens, minlength=len(self._counts))
        self._psnr += float(np.sum(outputs['psnr'][valid], dtype=np.float64))
        self._samples += int(valid.sum())

    def result(self) -> dict[str, float]:
        """Numbers of the set.

        Returns:
          {'psnr': mean over the samples, in decibels; 'perplexity': e to the entropy of the codes, at most the
          vocabulary, the number of codes if all were used equally often; 'codes_used': codes that occur}; NaN when
          nothing was scored.
        """
        total = self._counts.sum()
        if not total:
            return {'psnr': float('nan'), 'perplexity': float('nan'), 'codes_used': float('nan')}
        share = self._counts[self._counts > 0] / total
        perplexity = float(np.exp(-np.sum(share * np.log(share))))
        return {'psnr': self._psnr / self._samples, 'perplexity': perplexity, 'codes_used': float(len(share))}
