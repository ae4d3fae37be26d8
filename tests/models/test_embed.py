"""Patches and position tables on grids that the golden cases do not have."""

import math

import numpy as np
import pytest

from mvdjax.errors import UserError
from mvdjax.models.embed import patchify, position_table, token_grid, unpatchify


def waves(position, width):
    """[sin | cos] of one axis, in plain Python."""
    angles = [position / 10000 ** (i / (width / 2)) for i in range(width // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def alternating(position, width):
    angles = [position / 10000 ** (2 * (c // 2) / width) for c in range(width)]
    return [math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)]


def expected_row(kind, token, place, width):
    t, row, column = place
    if kind == 'sincos1d':
        return alternating(token, width)
    if kind == 'sincos2d':
        return waves(column, width // 2) + waves(row, width // 2)
    return waves(t, width // 4) + waves(column, width * 3 // 8) + waves(row, width * 3 // 8)


@pytest.mark.parametrize('kind', ['sincos1d', 'sincos2d', 'sincos3d'])
@pytest.mark.parametrize('grid', [(1, 3, 5), (4, 5, 2), (8, 14, 14)])
def test_position_table_of_any_grid(kind, grid):
    table = position_table(kind, grid, 32)
    assert table.shape == (math.prod(grid), 32)
    assert table.dtype == np.float32
    for token, place in enumerate(np.ndindex(*grid)):
        np.testing.assert_allclose(table[token], expected_row(kind, token, place, 32), atol=1e-6)


def test_position_table_errors():
    with pytest.raises(UserError, match=r"pos_embed must be one of sincos1d, .* or learned, not 'sincos'"):
        position_table('sincos', (1, 2, 2), 32)
    with pytest.raises(UserError, match='multiple of 16, not 40'):
        position_table('sincos3d', (2, 2, 2), 40)
    with pytest.raises(UserError, match='even number of channels per axis, not 15'):
        position_table('sincos2d', (1, 2, 2), 30)


def test_patchify_order_and_inverse():
    video = np.arange(2 * 4 * 6 * 10 * 3).reshape(2, 4, 6, 10, 3)
    patch, grid = (2, 3, 5), (2, 2, 2)
    patches = np.asarray(patchify(video, patch))
    assert patches.shape == (2, 8, 90)
    # Token (1, 0, 1) is frames 2:4, rows 0:3, columns 5:10; its values run frame, row, column, channel.
    np.testing.assert_array_equal(patches[1, 5], video[1, 2:4, 0:3, 5:10].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, grid, patch), video)


@pytest.mark.parametrize('patch', [(3, 16, 16), (2, 15, 16), (2, 16, 24)])
def test_a_patch_that_does_not_divide_is_refused(patch):
    with pytest.raises(UserError, match=r'\(16, 64, 64\) does not divide into patches of \(\d, \d+, \d+\)'):
        token_grid((1, 16, 64, 64, 3), patch)
