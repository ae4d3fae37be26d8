"""Patches, and positions: sin-cos tables (1-D, 2-D and 3-D, each as its original computes it) or learned ones."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mvdjax.errors import UserError
from mvdjax.models.layers import linear_init, token_init
from mvdjax.models.placement import gathering

Grid = tuple[int, int, int]  # tokens along time, height, width


def token_grid(shape: tuple[int, ...], patch: Grid) -> Grid:
    """The (t, h, w) token grid of a (..., frames, height, width, channels) video cut into `patch` cubes.

    Raises:
      UserError: a side is not a multiple of the patch.
    """
    sides = shape[-4:-1]
    if any(s % p for s, p in zip(sides, patch, strict=True)):
        raise UserError(f'a video of (frames, height, width) {sides} does not divide into patches of {patch}')
    t, h, w = (s // p for s, p in zip(sides, patch, strict=True))
    return t, h, w


def patchify(video: jax.Array, patch: Grid) -> jax.Array:
    """Cuts a video into cubes.

    Args:
      video: (b, t, h, w, c).
      patch: (frames, rows, columns) of a cube; frames is the tubelet size.

    Returns:
      (b, tokens, prod(patch) * c): tokens in t, h, w order; values in frame, row, column, channel order, which is
      also the order of VideoMAE's pixel targets.
    """
    t, h, w = token_grid(video.shape, patch)
    b, c = video.shape[0], video.shape[-1]
    x = video.reshape(b, t, patch[0], h, patch[1], w, patch[2], c)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)  # b, t, h, w, frame, row, column, channel
    return x.reshape(b, t * h * w, -1)


def unpatchify(patches: np.ndarray, grid: Grid, patch: Grid) -> np.ndarray:
    """The inverse of `patchify`: (b, tokens, values) -> (b, t, h, w, c)."""
    b = patches.shape[0]
    x = patches.reshape(b, *grid, *patch, -1)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)  # b, t, frame, h, row, w, column, channel
    return x.reshape(b, grid[0] * patch[0], grid[1] * patch[1], grid[2] * patch[2], -1)


def sincos_1d(grid: Grid, width: int) -> np.ndarray:
    """VideoMAE's table over the flattened tokens: sin at even channels, cos at odd ones. (tokens, width) float32."""
    tokens = int(np.prod(grid))
    channel = np.arange(width)
    angle = np.arange(tokens)[:, None] / np.power(10000.0, 2 * (channel // 2) / width)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def _axis_table(positions: np.ndarray, width: int) -> np.ndarray:
    """[sin | cos] of positions times 10000^(-i / (width / 2)). (n, width) float64."""
    if width % 2:
        raise UserError(f'a sin-cos table needs an even number of channels per axis, not {width}')
    omega = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2))
    angle = positions.reshape(-1, 1) * omega
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _plane_table(h: int, w: int, width: int) -> np.ndarray:
    """MAE's 2-D table, first half of the channels the column, second half the row. (h * w, width) float64."""
    row, column = np.meshgrid(np.arange(h, dtype=np.float64), np.arange(w, dtype=np.float64), indexing='ij')
    return np.concatenate([_axis_table(column, width // 2), _axis_table(row, width // 2)], axis=1)


def sincos_2d(grid: Grid, width: int) -> np.ndarray:
    """MAE's table, the same for each time slice. (tokens, width) float32."""
    return np.tile(_plane_table(grid[1], grid[2], width), (grid[0], 1)).astype(np.float32)


def sincos_3d(grid: Grid, width: int) -> np.ndarray:
    """MVD's table: a quarter of the channels for time, then three quarters for the plane. (tokens, width) float32.

    Raises:
      UserError: `width` is not a multiple of 16 (time takes a quarter, each plane axis three eighths, all even).
    """
    if width % 16:
        raise UserError(f'the 3-D sin-cos table needs a width that is a multiple of 16, not {width}')
    t, h, w = grid
    time = np.repeat(_axis_table(np.arange(t, dtype=np.float64), width // 4), h * w, axis=0)
    plane = np.tile(_plane_table(h, w, width // 4 * 3), (t, 1))
    return np.concatenate([time, plane], axis=1).astype(np.float32)


POSITION_TABLES = {'sincos1d': sincos_1d, 'sincos2d': sincos_2d, 'sincos3d': sincos_3d}


def position_table(kind: str, grid: Grid, width: int) -> np.ndarray:
    """The (tokens, width) float32 table of `kind`: 'sincos1d' VideoMAE, 'sincos2d' MAE, 'sincos3d' MVD.

    Raises:
      UserError: unknown kind, or a width the table cannot have.
    """
    if kind not in POSITION_TABLES:
        raise UserError(f'pos_embed must be one of {", ".join(POSITION_TABLES)} or learned, not {kind!r}')
    return POSITION_TABLES[kind](grid, width)


def positions(module: nn.Module, kind: str, grid: Grid, width: int) -> jax.Array:
    """The (tokens, width) float32 positions of a module: a fixed table, or for 'learned' its parameter.

    The parameter `position_table` is (t, h, w, width): its shape says which grid it was learned on, which is all that
    `handover.load_params` needs to resize it for another. A class token has no position: it is learned itself.

    Raises:
      UserError: as `position_table`.
    """
    if kind == 'learned':
        return module.param('position_table', token_init, (*grid, width)).reshape(-1, width)
    return jnp.asarray(position_table(kind, grid, width))


def patch_embedding(width: int, dtype: Any) -> nn.Dense:
    """The patch embedding: a linear layer on `patchify` values (equal to the originals' strided convolution)."""
    dense = gathering(nn.Dense, 'patch_embed', None, dtype)
    return dense(width, kernel_init=linear_init, dtype=dtype, name='patch_embed')
