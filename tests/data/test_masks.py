import numpy as np
import pytest

from mvdjax.data import masks
from mvdjax.errors import UserError

GRID = (8, 14, 14)


def test_counts_follow_the_three_published_roundings():
    # mvd/distill_tiny_random_l2 masks 115 of 128 tokens at 0.9; MAE's rule would mask 116.
    assert masks.num_masked('random_clip', (8, 4, 4), 0.9) == 115
    assert masks.num_masked('random', (8, 4, 4), 0.9) == 116
    assert masks.num_masked('tube', (8, 4, 4), 0.9) == 8 * 14
    # mvd/distill_tiny_tube
    assert masks.num_masked('tube', (8, 4, 4), 0.75) == 96
    # The published models: 196 - 49 tokens of an image, 1408 of a clip's 1568.
    assert masks.num_masked('random', (1, 14, 14), 0.75) == 147
    assert masks.num_masked('tube', GRID, 0.9) == 1408
    assert masks.num_masked('random_clip', GRID, 0.9) == 1411


@pytest.mark.parametrize('kind', masks.KINDS)
@pytest.mark.parametrize('ratio', [0.1, 0.5, 0.75, 0.9, 0.95])
@pytest.mark.parametrize('grid', [(1, 14, 14), GRID, (8, 3, 5)])
def test_masks_have_the_promised_count(kind, ratio, grid):
    for seed in range(5):
        mask = masks.make_mask(kind, np.random.default_rng(seed), grid, ratio)
        assert mask.dtype == np.bool_
        assert mask.shape == (np.prod(grid),)
        assert mask.sum() == masks.num_masked(kind, grid, ratio)


def test_tubes_are_the_same_in_every_slot_and_random_masks_are_not():
    rng = np.random.default_rng(0)
    tube = masks.tube_mask(rng, GRID, 0.9).reshape(8, -1)
    assert (tube == tube[0]).all()
    assert tube[0].sum() == 176
    for make in (masks.random_mask, masks.random_clip_mask):
        mask = make(rng, GRID, 0.9).reshape(8, -1)
        assert not (mask == mask[0]).all()


@pytest.mark.parametrize('kind', masks.KINDS)
def test_masks_repeat_with_the_seed_and_differ_between_seeds(kind):
    first, again, other = (masks.make_mask(kind, np.random.default_rng(s), GRID, 0.75) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize('kind', masks.KINDS)
def test_every_place_is_equally_likely(kind):
    rng = np.random.default_rng(0)
    total = sum(masks.make_mask(kind, rng, (2, 4, 4), 0.5).astype(int) for _ in range(4000))
    np.testing.assert_allclose(total / 4000, 0.5, atol=0.04)  # 5 standard deviations


@pytest.mark.parametrize('ratio', [0, 1, -0.5, 1.5, float('nan')])
@pytest.mark.parametrize('kind', masks.KINDS)
def test_ratios_outside_zero_to_one_are_refused(kind, ratio):
    with pytest.raises(UserError, match=f'not {ratio}'):
        masks.make_mask(kind, np.random.default_rng(0), GRID, ratio)


def test_ratios_that_mask_nothing_or_all_are_refused():
    with pytest.raises(UserError, match=r'0\.01 would mask no token of a 8 x 4 x 4 grid'):
        masks.num_masked('tube', (8, 4, 4), 0.01)
    with pytest.raises(UserError, match=r'0\.999 would mask every token'):
        masks.num_masked('random', (1, 4, 4), 0.999)


def test_unknown_kinds_name_the_known_ones():
    for call in (masks.num_masked, lambda *a: masks.make_mask(a[0], np.random.default_rng(0), *a[1:])):
        with pytest.raises(UserError, match=r"'cube'.*tube, random, random_clip"):
            call('cube', GRID, 0.5)
