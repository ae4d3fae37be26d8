"""Which tokens are hidden in pre-training. True = masked; tokens run in time, height, width order."""

from __future__ import annotations

import numpy as np

from mvdjax.errors import UserError

KINDS = ('tube', 'random', 'random_clip')


def num_masked(kind: str, grid: tuple[int, int, int], ratio: float) -> int:
    """How many tokens of one sample `make_mask` masks; the same for every sample, so batches have a fixed shape.

    The published codes round differently, and their counts can differ by one for the same ratio:
      tube         t * int(ratio * h * w): VideoMAE and MVD, the same places masked in every time slot
      random       N - int(N * (1 - ratio)): MAE, which rounds the kept tokens
      random_clip  int(ratio * N): the random masking of VideoMAE and MVD
    with N = t * h * w.

    Args:
        kind: one of `KINDS`.
        grid: tokens along time, height, width; an image has t = 1.
        ratio: wanted share of masked tokens, strictly between 0 and 1.

    Raises:
        UserError: unknown kind, ratio outside (0, 1), or one that would mask no token or all of them on this grid.
    """
    if not 0 < ratio < 1:
        raise UserError(f'mask ratio must lie strictly between 0 and 1, not {ratio}')
    time, height, width = grid
    total = time * height * width
    if kind == 'tube':
        masked = time * int(ratio * (height * width))
    elif kind == 'random':
        masked = total - int(total * (1 - ratio))
    elif kind == 'random_clip':
        masked = int(ratio * total)
    else:
        raise UserError(f'unknown mask {kind!r}; there are {", ".join(KINDS)}')
    if not 0 < masked < total:
        what = 'no token' if masked <= 0 else 'every token'
        raise UserError(f'{kind} mask with ratio {ratio} would mask {what} of a {time} x {height} x {width} grid')
    return masked


def _choose(rng: np.random.Generator, total: int, masked: int) -> np.ndarray:
    """Bool (total,) with `masked` True, every subset equally likely."""
    mask = np.zeros(total, np.bool_)
    mask[rng.permutation(total)[:masked]] = True
    return mask


def tube_mask(rng: np.random.Generator, grid: tuple[int, int, int], ratio: float) -> np.ndarray:
    """Random places, masked in every time slot: int(ratio * h * w) per slot.

    Returns:
        bool (t * h * w,). Raises as `num_masked`.
    """
    time, height, width = grid
    masked = num_masked('tube', grid, ratio) // time
    return np.tile(_choose(rng, height * width, masked), time)


def random_mask(rng: np.random.Generator, grid: tuple[int, int, int], ratio: float) -> np.ndarray:
    """Random tokens by MAE's count: int(N * (1 - ratio)) stay visible.

    Returns:
        bool (t * h * w,). Raises as `num_masked`.
    """
    return _choose(rng, int(np.prod(grid)), num_masked('random', grid, ratio))


def random_clip_mask(rng: np.random.Generator, grid: tuple[int, int, int], ratio: float) -> np.ndarray:
    """Random tokens by the count of VideoMAE and MVD: int(ratio * N) are masked (golden: mvd/distill_tiny_random_l2).

    Returns:
        bool (t * h * w,). Raises as `num_masked`.
    """
    return _choose(rng, int(np.prod(grid)), num_masked('random_clip', grid, ratio))


def make_mask(kind: str, rng: np.random.Generator, grid: tuple[int, int, int], ratio: float) -> np.ndarray:
    """The mask of the kind named in a config.

    Returns:
        bool (t * h * w,) with exactly `num_masked(kind, grid, ratio)` True. Raises as `num_masked`.
    """
    if kind == 'tube':
        return tube_mask(rng, grid, ratio)
    if kind == 'random':
        return random_mask(rng, grid, ratio)
    if kind == 'random_clip':
        return random_clip_mask(rng, grid, ratio)
    raise UserError(f'unknown mask {kind!r}; there are {", ".join(KINDS)}')
