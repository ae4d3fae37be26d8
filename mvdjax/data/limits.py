"""Checks of recipe options, made before the first file is read: what the options alone show to be wrong."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mvdjax import keywords
from mvdjax.data import ops
from mvdjax.data.masks import num_masked
from mvdjax.errors import UserError


def check_counts(least: int = 1, **values: ops.Size) -> None:
    """Raises UserError for a count, or a side of a (height, width), below `least`."""
    for name, value in values.items():
        if np.min(value) < least:
            raise UserError(f'data options: {name} must be at least {least}, not {value}')


def check_shares(**values: float) -> None:
    """Raises UserError for a probability outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f'data options: {name} must lie in [0, 1], not {value}')


def check_scale(scale: tuple[float, float]) -> None:
    """Raises UserError unless `scale` is a range of shares of the area."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f'data options: scale must be two rising shares of the area in (0, 1], not {scale}')


def token_grid(length: int, size: ops.Size, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """The (time, height, width) token grid of a clip.

    Raises:
      UserError: the clip does not divide into patches.
    """
    if min(patch) < 1:
        raise UserError(f'data options: patch must be (frames, rows, columns) of a token, not {patch}')
    height, width = ops.height_width(size)
    if length % patch[0] or height % patch[1] or width % patch[2]:
        raise UserError(
            f'data options: a clip of {length} frames of {height} x {width} does not divide into patches of '
            f'{tuple(patch)} frames, rows and columns: change length, size or patch'
        )
    return length // patch[0], height // patch[1], width // patch[2]


def check_blocks(grid: tuple[int, int, int], masked: int, smallest_block: int) -> None:
    """Raises UserError unless block masks of these counts fit into a time slot of the grid."""
    places = grid[1] * grid[2]
    if not 1 <= smallest_block <= masked < places:
        raise UserError(
            f'data options: smallest_block <= masked < {places}, the tokens of a frame, must hold; they are '
            f'{smallest_block} and {masked}'
        )


def check_short_sides(short_sides: tuple[int, int], size: ops.Size) -> None:
    """Raises UserError unless crops of `size` fit into frames with these short sides."""
    if not max(ops.height_width(size)) <= short_sides[0] <= short_sides[1]:
        raise UserError(
            f'data options: short_sides must be a rising range that starts at {max(ops.height_width(size))}, the side '
            f'of the crop, or above, not {tuple(short_sides)}'
        )


def mask_grid(
    length: int, size: ops.Size, patch: tuple[int, int, int], mask: Mapping[str, Any]
) -> tuple[int, int, int]:
    """The (time, height, width) token grid of a clip.

    Raises:
      UserError: the clip does not divide into patches, or the mask section makes no mask for the grid.
    """
    grid = token_grid(length, size, patch)

    def masked(kind: str, ratio: float) -> int:
        return num_masked(kind, grid, ratio)

    keywords.build(masked, mask, 'data options: mask')
    return grid
