"""Changes of colour: AVA's to the level, the jitter against Pillow's operations."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from rand_augment_table import scene

from mvdjax.data import color
from mvdjax.errors import UserError

GOLDEN = Path(__file__).parents[1] / 'golden' / 'data'


class Scripted:
    """A Generator that hands out a given order and given draws."""

    def __init__(self, order, draws):
        self.order, self.draws = order, draws

    def permutation(self, count):
        assert count == 4
        return np.array(self.order)

    def uniform(self, low, high, count):
        assert (low, high, count) == (-1, 1, 4)
        return np.array(self.draws)


def test_hsv_shift_matches_golden():
    """To one level: OpenCV 4.14 differs from the others by that in a fifth of the values."""
    shifts = json.loads((GOLDEN / 'ava_transforms.json').read_text())['randint_shifts']
    with np.load(GOLDEN / 'ava_transforms.npz') as file:
        clip, expected = file['jitter_in'], file['jitter_out']
    out = color.hsv_shift(clip, *shifts)
    assert out.dtype == np.uint8
    assert np.abs(out.astype(int) - expected).max() <= 1
    assert np.abs(clip.astype(int) - expected).mean() > 10
    view = np.repeat(clip, 2, axis=2)[:, :, ::2]
    np.testing.assert_array_equal(color.hsv_shift(view, *shifts), out)


def test_random_hsv_shifts_lie_within_the_published_limits():
    golden = json.loads((GOLDEN / 'ava_transforms.json').read_text())

    class Noting:
        def __init__(self):
            self.calls = []

        def integers(self, low, high):
            self.calls.append([low, high - 1])
            return golden['randint_shifts'][len(self.calls) - 1]

    clip = scene(1)
    rng = Noting()
    out = color.random_hsv_shift(rng, clip)
    assert [[low, high, value] for (low, high), value in zip(rng.calls, golden['randint_shifts'], strict=True)] == (
        golden['randint']
    )
    np.testing.assert_array_equal(out, color.hsv_shift(clip, *golden['randint_shifts']))


@pytest.mark.parametrize('order', [(0, 1, 2, 3), (2, 0, 3, 1), (1, 2, 0, 3)])
def test_jitter_is_pillows_operations_in_the_order_drawn(order):
    clip, draws = scene(2, 40, 56), [0.6, -0.8, 0.9, 0.0]
    out = color.color_jitter(Scripted(order, draws), clip, 0.4, 0.3, 0.2, 0.0)
    enhance = {
        0: lambda image: ImageEnhance.Brightness(image).enhance(1.24),
        1: lambda image: ImageEnhance.Contrast(image).enhance(0.76),
        2: lambda image: ImageEnhance.Color(image).enhance(1.18),
        3: lambda image: image,
    }
    for frame, result in zip(clip, out, strict=True):
        image = Image.fromarray(frame)
        for which in order:
            image = enhance[which](image)
        assert np.abs(np.asarray(image).astype(int) - result).max() <= 2  # a level each from saturation and contrast
    other = color.color_jitter(Scripted(order[::-1], draws), clip, 0.4, 0.3, 0.2, 0.0)
    assert (other != out).any()


def test_jitter_turns_the_hue_by_a_share_of_the_circle():
    clip = scene(1, 24, 32)
    out = color.color_jitter(Scripted((3, 0, 1, 2), [0, 0, 0, 1.0]), clip, 0, 0, 0, 1 / 3)
    np.testing.assert_array_equal(out, color.hsv_shift(clip, 60, 0, 0))
    assert np.abs(out[..., 1].astype(int) - clip[..., 0]).max() <= 8  # red became green, in the grain of 8-bit hue


def test_jitter_is_a_function_of_the_generator_and_zero_limits_change_nothing():
    clip = scene(2, 24, 32)
    before = clip.copy()
    outs = [color.color_jitter(np.random.default_rng(seed), clip, 0.4, 0.4, 0.4, 0.1) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert (outs[0] != outs[2]).any()
    np.testing.assert_array_equal(color.color_jitter(np.random.default_rng(3), clip, 0, 0, 0, 0), clip)
    np.testing.assert_array_equal(clip, before)
    rngs = [np.random.default_rng(5) for _ in range(2)]
    color.color_jitter(rngs[0], clip, 0, 0, 0, 0)
    color.color_jitter(rngs[1], clip)
    assert rngs[0].random() == rngs[1].random()  # limits do not shift later draws


@pytest.mark.parametrize('limits', [(1.2, 0, 0, 0), (0, -0.1, 0, 0), (0, 0, 2, 0), (0, 0, 0, 0.6)])
def test_limits_outside_their_range_are_refused(limits):
    with pytest.raises(UserError, match=r'hue in \[0, 0.5\], not \('):
        color.check_jitter(limits)
