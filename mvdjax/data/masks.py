"""Which tokens are hidden in pre-training. True = masked; tokens run in time, height, width order."""

from __future__ import annotations

import math

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


def _block(
    rng: np.random.Generator, mask: np.ndarray, smallest: float, most: int, min_aspect: float, attempts: int = 10
) -> int:
    """Masks one more rectangle of bool (h, w) `mask`, in place, of 1 to `most` new places; returns their number."""
    height, width = mask.shape
    bound = math.log(1 / min_aspect)
    for _ in range(attempts):
        area = rng.uniform(min(smallest, most), max(smallest, most))
        ratio = math.exp(rng.uniform(-bound, bound))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w >= width or h >= height:
            continue
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        place = mask[top : top + h, left : left + w]
        new = h * w - int(place.sum())
        if 0 < new <= most:
            place[...] = True
            return new
    return 0


def block_mask(
    rng: np.random.Generator, grid: tuple[int, int], masked: int, smallest: int = 16, min_aspect: float = 0.3
) -> np.ndarray:
    """Rectangles on top of each other: the masks of BEiT and of BEVT's images (golden: bevt/masks_pretrain).

    Rectangles of random area, aspect and place are added until `masked` places are hidden or ten tries in a row fit
    none. The count is therefore at most `masked`, and mostly a little less; it differs between samples.

    Args:
        rng: source of the draws.
        grid: tokens along height and width.
        masked: places to hide; also the largest area of a rectangle.
        smallest: area of a rectangle, unless fewer places are left.
        min_aspect: smallest height / width; the largest is its inverse.

    Returns:
        bool (h, w).
    """
    mask = np.zeros(grid, np.bool_)
    count = 0
    while count < masked:
        new = _block(rng, mask, smallest, masked - count, min_aspect)
        if not new:
            break
        count += new
    return mask


def block_tube_mask(
    rng: np.random.Generator,
    grid: tuple[int, int, int],
    masked: int,
    smallest: int = 16,
    tube: tuple[float, float] = (0.5, 1.0),
) -> np.ndarray:
    """One `block_mask` over a run of neighbouring time slots: BEVT's clips (golden: bevt/masks_pretrain).

    The run starts anywhere, is a uniform whole number of slots long and wraps from the last slot to the first. All
    other slots stay visible.

    Args:
        rng: source of the draws: the blocks, then the start, then the length.
        grid: tokens along time, height, width.
        masked: places to hide in a slot, see `block_mask`.
        smallest: see `block_mask`.
        tube: shortest and longest run, as shares of the time slots.

    Returns:
        bool (t * h * w,).
    """
    time, height, width = grid
    blocks = block_mask(rng, (height, width), masked, smallest)
    start = int(rng.integers(0, time))
    length = int(rng.integers(max(int(tube[0] * time), 1), min(int(tube[1] * time), time) + 1))
    mask = np.zeros(grid, np.bool_)
    mask[(start + np.arange(length)) % time] = blocks
    return mask.reshape(-1)
