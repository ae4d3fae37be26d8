"""Learned tables (positions, position biases) and patch embeddings for another grid, on the host: NumPy only."""

import numpy as np

PLANES = ('cubic', 'linear')
CUBIC = -0.75  # the kernel's free parameter, as in PyTorch's bicubic mode, which the published codes use


def resize_table(table: np.ndarray, grid: tuple[int, int, int], plane: str = 'cubic') -> np.ndarray:
    """Interpolates a table over time, height and width.

    Half-pixel centres, edges clamped, no antialiasing; linear in time. The published codes resize position tables of
    MAE, VideoMAE and MVD, and the 2-D bias tables of Swin, by 'cubic' in each time slot, and the 3-D bias tables of
    Video Swin by 'linear' on all three axes (golden: bevt/inflate_bevt_window4to7, bevt/transfer_window444_to_844).

    Args:
      table: (t, h, w, c).
      grid: the new (t, h, w); an axis that keeps its length is left as it is, to the bit.
      plane: 'cubic' or 'linear' in height and width.

    Returns:
      (*grid, c) of the table's dtype, computed in float64.

    Raises:
      ValueError: unknown `plane`, or a grid without places.
    """
    if plane not in PLANES or min(grid) < 1:
        raise ValueError(
            f'a table is resized by {" or ".join(PLANES)} to at least 1 place per axis, not {plane} to {grid}'
        )
    resized = table
    for axis, places in enumerate(grid):
        if table.shape[axis] != places:
            weights = _weights(table.shape[axis], places, cubic=axis > 0 and plane == 'cubic')
            resized = np.moveaxis(np.tensordot(weights, resized, (1, axis)), 0, axis)
    return resized.astype(table.dtype)


def resize_biases(table: np.ndarray, sides: tuple[int, int, int]) -> np.ndarray:
    """Resizes tables of relative position biases for another window, as the published BEVT does.

    An image's table, of one place in time, is resized by 'cubic' and repeated over time (golden:
    bevt/inflate_bevt_window4to7); a clip's is resized by 'linear' on all three axes (bevt/transfer_window444_to_844).

    Args:
      table: (..., t, h, w, heads) with any leading axes (blocks).
      sides: the new (t, h, w): twice the window's, less one.

    Returns:
      (..., *sides, heads) of the table's dtype.
    """
    lead = table.shape[:-4]
    flat = np.moveaxis(table.reshape(-1, *table.shape[-4:]), 0, -1)  # (t, h, w, heads, blocks)
    plane = 'cubic' if table.shape[-4] == 1 else 'linear'
    resized = resize_table(flat.reshape(*flat.shape[:3], -1), sides, plane).reshape(*sides, *flat.shape[3:])
    return np.moveaxis(resized, -1, 0).reshape(*lead, *sides, table.shape[-1])


def inflate_patches(kernel: np.ndarray, frames: int) -> np.ndarray:
    """An image's patch embedding for cubes of several frames: repeated, and divided, so that a still gives the same.

    Args:
      kernel: (rows * columns * channels, width).
      frames: of a cube.

    Returns:
      (frames * rows * columns * channels, width).
    """
    return np.tile(kernel, (frames, 1)) / np.asarray(frames, kernel.dtype)


def _weights(source: int, target: int, *, cubic: bool) -> np.ndarray:
    """(target, source) float64: what each place of the old axis gives to each place of the new one; rows sum to 1."""
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(centre).astype(int)
    taps = first[:, None] + (np.arange(-1, 3) if cubic else np.arange(2))
    distance = np.abs(taps - centre[:, None])
    weights = np.zeros((target, source))
    rows = np.arange(target)[:, None]
    np.add.at(weights, (rows, np.clip(taps, 0, source - 1)), _cubic(distance) if cubic else 1 - distance)
    return weights


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' convolution kernel (IEEE ASSP 29, 1981, equation 4) at distances x in [0, 2]."""
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, far)
