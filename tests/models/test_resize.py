"""Resizing of learned tables against the tables that the published BEVT code resized, and by rules of its own."""

import numpy as np
import pytest
from golden_weights import full_arrays, golden

from mvdjax.models.resize import resize_table

TABLE = 'relative_position_bias_table'


def tables(name):
    """{layer: (before, after)} of every bias table of a case, each (rows, heads)."""
    info, stored = golden(name)['arrays'], full_arrays(name)
    assert all(info[key]['stride'] == 1 for key in info if key.endswith(TABLE))
    found = {key: array.reshape(info[key]['shape']) for key, array in stored.items() if key.endswith(TABLE)}
    layers = {key.removeprefix('before:') for key in found if key.startswith('before:')}
    assert layers
    return {layer: (found[f'before:{layer}'], found[f'after:{layer}']) for layer in layers}


def test_cubic_plane_matches_the_published_inflation():
    name = 'bevt/inflate_bevt_window4to7'
    case = golden(name)
    old, (depth, height, width) = 2 * case['window_2d'] - 1, (2 * side - 1 for side in case['config']['window_size'])
    for before, after in tables(name).values():
        resized = resize_table(before.reshape(1, old, old, -1), (1, height, width))
        expected = after.reshape(depth, height, width, -1)
        np.testing.assert_allclose(np.repeat(resized, depth, axis=0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('plane', ['linear', 'cubic'])  # the plane keeps its size: only time is interpolated
def test_linear_time_matches_the_published_transfer(plane):
    name = 'bevt/transfer_window444_to_844'
    case = golden(name)
    windows = case['pretrained_window_size'], case['config']['window_size']
    old, new = ([2 * side - 1 for side in window] for window in windows)
    for before, after in tables(name).values():
        resized = resize_table(before.reshape(*old, -1), tuple(new), plane)
        np.testing.assert_allclose(resized, after.reshape(*new, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('plane', ['linear', 'cubic'])
def test_a_grid_that_stays_keeps_every_bit(plane):
    table = np.random.RandomState(0).standard_normal((4, 3, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal(resize_table(table, (4, 3, 5), plane), table)
    longer = resize_table(table, (8, 3, 5), plane)
    np.testing.assert_array_equal(longer[0], table[0])  # beyond the first half-pixel centre: the edge, clamped
    np.testing.assert_array_equal(longer[-1], table[-1])


@pytest.mark.parametrize('plane', ['linear', 'cubic'])
@pytest.mark.parametrize('grid', [(1, 7, 3), (6, 2, 11), (3, 14, 9)])
def test_axes_are_independent_and_constants_stay(plane, grid):
    rng = np.random.RandomState(1)
    parts = [rng.standard_normal(side) for side in (3, 7, 5)]
    product = np.einsum('t,h,w->thw', *parts)[..., None]
    alone = [
        resize_table(part.reshape([-1 if i == axis else 1 for i in range(4)]), side_of(axis, grid[axis]), plane).ravel()
        for axis, part in enumerate(parts)
    ]
    np.testing.assert_allclose(resize_table(product, grid, plane)[..., 0], np.einsum('t,h,w->thw', *alone), atol=1e-12)
    np.testing.assert_allclose(resize_table(np.full((3, 7, 5, 2), 0.7), grid, plane), 0.7, rtol=1e-12)


def side_of(axis, length):
    return tuple(length if i == axis else 1 for i in range(3))


def test_one_image_slot_serves_every_slot_of_a_clip():
    image = np.random.RandomState(2).standard_normal((1, 2, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_table(image, (4, 2, 2)), np.repeat(image, 4, axis=0))


def test_what_cannot_be_resized():
    table = np.zeros((1, 2, 2, 3))
    with pytest.raises(ValueError, match=r'by cubic or linear .* not nearest to \(1, 2, 2\)'):
        resize_table(table, (1, 2, 2), 'nearest')
    with pytest.raises(ValueError, match=r'at least 1 place per axis, not cubic to \(0, 2, 2\)'):
        resize_table(table, (0, 2, 2))
