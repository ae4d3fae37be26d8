import json
from pathlib import Path

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


BEVT = json.loads((Path(__file__).parents[1] / 'golden' / 'bevt' / 'masks_pretrain.json').read_text())
DRAWS = 1000


@pytest.fixture(scope='module')
def tubes():
    rng = np.random.default_rng(0)
    return np.stack([masks.block_tube_mask(rng, GRID, 98) for _ in range(DRAWS)]).reshape(-1, 8, 196)


@pytest.fixture(scope='module')
def blocks():
    rng = np.random.default_rng(1)
    return np.stack([masks.block_mask(rng, (14, 14), 98) for _ in range(DRAWS)])


def golden_masks(name):
    info = BEVT['arrays'][name]
    with np.load(Path(__file__).parents[1] / 'golden' / 'bevt' / 'masks_pretrain.npz') as file:
        stored = file[name]
    if info.get('packed'):
        stored = np.unpackbits(stored, count=int(np.prod(info['shape'])))
    return stored.reshape(info['shape'])


def near(values, golden, errors=5):
    """Whether the mean of `values` is within a few standard errors of the golden one, both being samples."""
    error = np.sqrt(golden['variance'] * (1 / len(values) + 1 / BEVT['draws']))
    return abs(np.mean(values) - golden['mean']) < errors * error


def test_block_masks_have_the_published_statistics(blocks):
    assert blocks.dtype == np.bool_
    counts = blocks.sum((1, 2))
    assert near(counts, BEVT['image']['masked_patches'])
    assert counts.max() == 98
    assert counts.min() >= 85
    pairs = [(blocks[:, 1:] == blocks[:, :-1]).mean((1, 2)), (blocks[:, :, 1:] == blocks[:, :, :-1]).mean((1, 2))]
    assert near(np.mean(pairs, axis=0), BEVT['image']['agreement_of_neighbouring_positions'])
    likely = golden_masks('position_probability_image')
    assert np.abs(blocks.mean(0) - likely).max() < 0.09  # 5 standard errors


def test_first_block_has_the_published_shape():
    rng = np.random.default_rng(2)
    sizes = []
    for _ in range(DRAWS):
        mask = np.zeros((14, 14), np.bool_)
        masks._block(rng, mask, 16, 98, 0.3)
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        sizes.append((len(rows), len(columns), rows[0], columns[0]))
    for i, name in enumerate(('height', 'width', 'top', 'left')):
        assert near([size[i] for size in sizes], BEVT['first_block'][name])
    areas = np.array([size[0] * size[1] for size in sizes])
    assert near(areas, BEVT['first_block']['area'])
    assert areas.min() >= 12


def assert_one_tube(mask, used):
    """The same places in a run of 4 to 8 slots that may wrap, nothing elsewhere: (slots, places) and (slots,) bool."""
    assert (mask[used] == mask[used][0]).all()
    assert not mask[~used].any()
    assert 4 <= used.sum() <= 8
    runs = np.flatnonzero(used & ~np.roll(used, 1))  # where a run begins, going round
    assert len(runs) == (0 if used.all() else 1)


@pytest.mark.parametrize('number', range(3))
def test_published_masks_are_such_tubes_and_are_scored_as_ours(number):
    (mask,) = golden_masks(f'sample{number}_input').astype(bool)
    assert_one_tube(mask.reshape(8, -1), mask.reshape(8, -1).any(1))
    # The scored positions: those of the mask, brought to the frames by nearest neighbour as the task does.
    (scored,) = golden_masks(f'sample{number}_output').astype(bool)
    np.testing.assert_array_equal(scored, mask[np.arange(16) * 8 // 16])
    image = golden_masks(f'sample{number}_image')
    assert 0 < image.sum() <= 98


class Scripted:
    """A generator whose draws are given; it notes what it was asked."""

    def __init__(self, *draws):
        self.draws, self.asked = list(draws), []

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.draws.pop(0)

    def integers(self, low, high):  # `high` itself is not drawn
        self.asked.append((low, high - 1))
        return self.draws.pop(0)


def test_a_block_is_drawn_as_the_published_code_draws_it():
    log = np.log(1 / 0.3)
    # 36 places, twice as high as wide: round(8.49) x round(4.24); area, ratio, top, left are drawn in this order.
    rng, mask = Scripted(36.0, np.log(2.0), 3, 5), np.zeros((14, 14), np.bool_)
    assert masks._block(rng, mask, 16, 98, 0.3) == 8 * 4
    assert rng.asked == [(16, 98), (-log, log), (0, 6), (0, 10)]
    assert mask[3:11, 5:9].all()
    assert mask.sum() == 32
    # A side as long as the grid is dropped before its place is drawn; so is a block that hides nothing new, after.
    rng = Scripted(196.0, 0.0, 16.0, 0.0, 4, 5, 25.0, 0.0, 2, 5)
    assert masks._block(rng, mask, 16, 98, 0.3) == 5 * 5 - 4 * 4
    assert rng.asked[2:4] == [(16, 98), (-log, log)]
    assert not rng.draws
    # One that would hide too much is dropped; where less is left than the smallest block, the range turns round.
    rng = Scripted(9.0, 0.0, 0, 0, 4.0, 0.0, 0, 0)
    assert masks._block(rng, mask, 16, 8, 0.3) == 4
    assert rng.asked[0] == (8, 16)
    # Ten failures end it. Halves are rounded to even: 2.5 x 2.5 places are 2 x 2.
    assert masks._block(Scripted(*[196.0, 0.0] * 10), mask, 16, 98, 0.3) == 0
    assert masks._block(Scripted(6.25, 0.0, 12, 12), mask, 1, 98, 0.3) == 4


def test_a_tube_starts_anywhere_and_wraps():
    block = (36.0, 0.0, 0, 0)  # 6 x 6, and nothing more is wanted
    rng = Scripted(*block, 6, 5)
    mask = masks.block_tube_mask(rng, GRID, 36).reshape(GRID)
    assert rng.asked[-2:] == [(0, 7), (4, 8)]  # the start, then the length
    assert mask.any((1, 2)).tolist() == [True, True, True, False, False, False, True, True]
    assert mask[6, :6, :6].all()


def test_block_tubes_have_the_published_statistics(tubes):
    assert tubes.dtype == np.bool_
    slots = tubes.any(2)
    lengths = slots.sum(1)
    assert set(lengths) == {4, 5, 6, 7, 8}
    assert near(lengths, BEVT['video']['tube_length'])
    assert near(tubes.mean((1, 2)), BEVT['video']['fraction_masked_overall'])
    assert near((tubes[:, 1:] == tubes[:, :-1]).mean((1, 2)), BEVT['video']['agreement_of_adjacent_latent_frames'])
    counts = tubes.sum(2)[np.arange(DRAWS), slots.argmax(1)]
    assert near(counts, BEVT['video']['masked_patches_per_masked_frame'])
    histogram = BEVT['video']['masked_patches_per_masked_frame']['histogram']
    for count in (95, 96, 97, 98):
        share = histogram[str(count)] / BEVT['draws']
        assert abs(np.mean(counts == count) - share) < 5 * np.sqrt(share * (1 / DRAWS + 1 / BEVT['draws']))
    # Where the 2-D mask falls, and that each slot is hidden as often as any other: 5 standard errors.
    assert np.abs(slots.mean(0) - golden_masks('latent_frame_probability')).max() < 0.09
    given = tubes[np.arange(DRAWS), slots.argmax(1)].reshape(-1, 14, 14)
    assert np.abs(given.mean(0) - golden_masks('position_probability_video')).max() < 0.09
    for mask, used in zip(tubes, slots, strict=True):
        assert_one_tube(mask, used)
    starts = [int(np.flatnonzero(used & ~np.roll(used, 1))[0]) for used in slots if not used.all()]
    assert np.bincount(starts, minlength=8).min() > 0.06 * len(starts)


def test_block_masks_repeat_with_the_seed_and_stop_where_nothing_fits():
    first, again, other = (masks.block_tube_mask(np.random.default_rng(s), GRID, 98) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # A block is strictly smaller than the grid: nothing fits into a single place.
    assert not masks.block_mask(np.random.default_rng(0), (1, 1), 1, smallest=1).any()
    whole = masks.block_tube_mask(np.random.default_rng(0), (4, 6, 6), 12, smallest=2, tube=(1.0, 1.0)).reshape(4, 36)
    assert (whole == whole[0]).all()
    assert 1 <= whole[0].sum() <= 12
