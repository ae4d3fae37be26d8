"""Resizing of learned tables against PyTorch's own interpolation, which the published codes call."""

import numpy as np
import pytest
import torch

from mvdjax.models.resize import resize_table

GRIDS = [
    ((8, 14, 14), (8, 7, 7)),
    ((8, 14, 14), (4, 16, 10)),
    ((2, 3, 5), (7, 11, 2)),
    ((1, 14, 14), (1, 24, 14)),
    ((5, 1, 6), (1, 4, 1)),
]


def table_of(grid):
    return np.random.RandomState(0).standard_normal((*grid, 6)).astype(np.float32)


@pytest.mark.parametrize(('old', 'new'), GRIDS)
def test_linear_is_trilinear(old, new):
    table = table_of(old)
    channels_first = torch.from_numpy(table).permute(3, 0, 1, 2)[None]
    expected = torch.nn.functional.interpolate(channels_first, size=new, mode='trilinear', align_corners=False)
    found = resize_table(table, new, 'linear')
    np.testing.assert_allclose(found, expected[0].permute(1, 2, 3, 0).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('old', 'new'), GRIDS)
def test_cubic_is_bicubic_in_each_time_slot(old, new):
    table = table_of(old)
    slots = torch.from_numpy(table).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(slots, size=new[1:], mode='bicubic', align_corners=False)
    found = resize_table(table, (old[0], *new[1:]))
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-5)
    if new[0] != old[0]:  # then linear in time
        found = resize_table(table, new)
        in_time = resize_table(expected.permute(0, 2, 3, 1).numpy(), new, 'linear')
        np.testing.assert_allclose(found, in_time, rtol=1e-5, atol=1e-5)
