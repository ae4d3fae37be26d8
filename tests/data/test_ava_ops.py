"""AVA's clips and boxes, against the published transforms."""

import json
from pathlib import Path

import numpy as np
import pytest

from mvdjax.data import ava_ops, color, sampling

GOLDEN = Path(__file__).parents[1] / 'golden' / 'data'
MEAN, STD = np.array([122.7717, 115.9465, 102.9801], np.float32), 57.375


def golden(name):
    return json.loads((GOLDEN / f'{name}.json').read_text())


def floats(values):
    return np.array(values, np.float32)


def normalised(frames):
    return ((frames - MEAN) / STD).transpose(3, 0, 1, 2)


@pytest.fixture(scope='module')
def ops_case():
    case = golden('ava_box_ops')
    width, height = case['image_w_h']
    return case, height, width, floats(case['clipped'])


def test_boxes_are_cut_to_the_pixels_of_the_image(ops_case):
    case, height, width, boxes = ops_case
    cut = ava_ops.clip_boxes(floats(case['xyxy']), height, width)
    np.testing.assert_array_equal(cut[:-1], boxes)
    assert cut[-1].tolist() == [339, 3, 339, 12]  # no width left: readers of annotations drop such a box


def test_boxes_follow_every_transform(ops_case):
    case, height, width, boxes = ops_case
    frames = np.zeros((1, height, width, 3), np.uint8)
    size = ava_ops.resized_size(height, width)
    assert size[::-1] == tuple(case['resized_size_w_h'])
    frames, resized = ava_ops.resize(frames, boxes, size)
    np.testing.assert_allclose(resized, floats(case['resized']), rtol=1e-6)
    doubled = ava_ops.resize(frames[:, :height, :width], boxes, (2 * height, 2 * width))[1]
    np.testing.assert_allclose(doubled, floats(case['resized_x2']), rtol=1e-6)
    np.testing.assert_allclose(ava_ops.flip(frames, resized)[1], floats(case['flipped']), rtol=1e-6)
    cropped, inside = ava_ops.crop(frames, resized, 16, 20)
    assert cropped.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(inside, floats(case['cropped']), rtol=1e-6)


def test_evaluation_and_training_boxes_match_golden(ops_case):
    case, height, width, boxes = ops_case
    np.testing.assert_allclose(ava_ops.extend(boxes, height, width), floats(case['extended']), atol=2e-5)
    out = ava_ops.jitter(boxes, floats(case['uniform']), height, width)
    np.testing.assert_allclose(out, floats(case['jittered']), atol=3e-5)
    point = floats([[50, 60, 50, 60]])  # inward from both sides: kept a pixel wide
    for draws in ([0.999, 0.999, 0, 0], [0, 0, 0, 0]):
        small = ava_ops.jitter(point, floats(draws)[:, None], height, width, inward=(3, 3))
        assert (small[:, 2:] - small[:, :2] >= 1).all()


def test_sizes_match_every_golden_case_with_the_published_exchange():
    for (height, width), (new_width, new_height) in golden('ava_transforms')['resize_h_w_to_w_h']:
        assert ava_ops.resized_size(height, width, swap=True) == (new_height, new_width)
        if min(height, width) == 256:
            assert ava_ops.resized_size(height, width) == (height, width)
        else:
            assert ava_ops.resized_size(height, width) == (new_height, new_width)


def test_whole_transforms_of_a_clip_match_golden():
    case = golden('ava_transforms')
    with np.load(GOLDEN / 'ava_transforms.npz') as file:
        data = dict(file)
    boxes = floats(case['boxes_in'])
    clip = data['clip'][sampling.centre_window(16)]
    frames, resized = ava_ops.resize(clip, boxes, ava_ops.resized_size(60, 80))
    assert list(frames.shape[2:0:-1]) == case['eval']['size']
    np.testing.assert_allclose(normalised(frames)[:, :1, ::3, ::3], data['eval'], atol=1e-5)
    np.testing.assert_allclose(resized, floats(case['eval']['boxes']), rtol=1e-6)
    across, down, _ = case['random']
    left, top = (int(share * (side - 224)) for share, side in ((across, frames.shape[2]), (down, frames.shape[1])))
    frames, boxes = ava_ops.crop(frames, resized, top, left)
    frames, boxes = ava_ops.flip(color.hsv_shift(frames, *case['randint_shifts']), boxes)
    np.testing.assert_allclose(boxes, floats(case['train']['boxes']), rtol=1e-5, atol=1e-5)
    assert boxes[1, 0] == -1  # a box outside the crop stays, even at a negative place
    # One level of 255 is 0.0174 here; OpenCV 4.14 makes hues that much different.
    np.testing.assert_allclose(normalised(frames)[:, :2], data['train'], atol=1.05 / STD)
