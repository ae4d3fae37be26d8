"""Crops, resizes and boxes against the published pipelines: uint8 to the byte, boxes exactly."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mvdjax.data import ops, sampling
from mvdjax.errors import UserError

GOLDEN = Path(__file__).parents[1] / 'golden' / 'data'
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
FLOAT = {'rtol': 1e-5, 'atol': 1e-5}


def golden(name):
    return json.loads((GOLDEN / f'{name}.json').read_text())


def arrays(name):
    with np.load(GOLDEN / f'{name}.npz') as file:
        return dict(file)


def normalised(frames):
    """(C, T, H, W) float32, as the golden outputs."""
    return ((frames.astype(np.float32) / 255 - MEAN) / STD).transpose(3, 0, 1, 2)


class Scripted:
    """The draws of golden/data/README: uniform values in turn (cyclic), integers by a fraction of their range."""

    def __init__(self, uniform, fractions, apply_draw=0.0):
        self.u = uniform
        self.fractions = fractions
        self.apply_draw = apply_draw
        self.uniforms = []
        self.ranges = []

    def random(self):
        return self.apply_draw

    def uniform(self, low, high):
        value = self.u[len(self.uniforms) % len(self.u)]
        self.uniforms.append([low, high])
        return low + (high - low) * value

    def integers(self, low, high):
        fraction = self.fractions[len(self.ranges) % len(self.fractions)]
        self.ranges.append([low, high - 1])
        return low + round((high - 1 - low) * fraction)


def test_multiscale_candidates_match_every_golden_case():
    for case in golden('multiscale_crop')['cases']:
        width, height = case['image_w_h']
        boxes = ops.multiscale_crop_candidates(height, width, case['input_size'])
        assert boxes.shape == (10, 13, 4)
        for crop, (w, h), offsets in zip(boxes, case['crop_w_h'], case['offsets_w_h'], strict=True):
            expected = [[top, left, h, w] for left, top in offsets]
            assert crop.tolist() == expected, (case['image_w_h'], w, h)


def test_multiscale_box_draws_size_then_place_uniformly():
    rng = Scripted([], [3 / 9, 1.0])
    info = golden('multiscale_crop_pixels')['clip']
    box = ops.multiscale_crop_box(rng, 60, 80, info['input_size'])
    assert rng.ranges == [[0, 9], [0, 12]]
    assert box == (info['offset_w_h'][1], info['offset_w_h'][0], info['crop_w_h'][1], info['crop_w_h'][0])
    assert all(type(value) is int for value in box)
    seen = {ops.multiscale_crop_box(np.random.default_rng(s), 256, 340, 224) for s in range(1500)}
    assert seen == {tuple(b) for b in ops.multiscale_crop_candidates(256, 340, 224).reshape(-1, 4).tolist()}


def test_multiscale_boxes_have_the_aspect_of_an_oblong_target():
    boxes = ops.multiscale_crop_candidates(130, 300, (128, 112), scales=(1, 0.875))
    assert boxes[:, 0, 2:].tolist() == [[128, 112], [128, 99], [113, 112], [113, 99]]
    boxes = ops.multiscale_crop_candidates(300, 130, (60, 120), scales=(1, 0.5))  # as wide as the image
    assert boxes[:, 0, 2:].tolist() == [[65, 130], [65, 65], [32, 130], [32, 65]]
    assert boxes[0, :, 0].max() == 300 - 65 - (300 - 65) % 4


def test_random_resized_boxes_have_the_aspect_of_an_oblong_target():
    assert ops.crop_ratio(40) == ops.crop_ratio((40, 40)) == (0.75, 1.3333)
    ratio = ops.crop_ratio((40, 120))
    rng = np.random.default_rng(0)
    boxes = np.array([ops.random_resized_crop_box(rng, 200, 300, (0.1, 0.3), ratio) for _ in range(300)])
    aspect = boxes[:, 3] / boxes[:, 2] / 3
    assert 0.72 < aspect.min() < 0.85
    assert 1.25 < aspect.max() < 1.38
    assert abs(np.log(aspect).mean()) < 0.03


def test_antialiased_resize_matches_every_golden_pixel():
    case, data = golden('multiscale_crop_pixels'), arrays('multiscale_crop_pixels')
    for i, (x0, y0, x1, y1) in enumerate(case['boxes_x0_y0_x1_y1']):
        for image in ('noise', 'smooth'):
            for size in case['sizes']:
                out = ops.crop_resize_antialias(data[f'{image}_image'][None], (y0, x0, y1 - y0, x1 - x0), size)
                assert out.dtype == np.uint8
                np.testing.assert_array_equal(out[0], data[f'{image}_box{i}_to{size}'])


def test_antialiased_clip_matches_both_golden_views():
    case, data = golden('multiscale_crop_pixels')['clip'], arrays('multiscale_crop_pixels')
    box = (case['offset_w_h'][1], case['offset_w_h'][0], case['crop_w_h'][1], case['crop_w_h'][0])
    for view, size in (('student', case['input_size']), ('teacher', case['input_size_1'])):
        out = ops.crop_resize_antialias(data['clip'], box, size)
        np.testing.assert_array_equal(out, data[f'clip_{view}_u8'])
        np.testing.assert_allclose(normalised(out), data[f'clip_{view}'], **FLOAT)


def test_antialiased_crop_pads_black_outside_and_may_be_oblong():
    frames = np.full((1, 20, 19, 3), 200, np.uint8)
    out = ops.crop_resize_antialias(frames, (0, -1, 20, 20), 20)
    assert (out[:, :, 0] == 0).all()
    assert (out[:, :, 1:] == 200).all()
    assert ops.crop_resize_antialias(frames, (2, 3, 10, 8), (6, 5)).shape == (1, 6, 5, 3)


def test_fast_antialiased_resize_is_within_a_level_where_it_enlarges():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 70, 90, 3), np.uint8)
    for _ in range(30):
        h, w = (int(side) for side in rng.integers(5, 49, 2))
        box = (int(rng.integers(0, 71 - h)), int(rng.integers(0, 91 - w)), h, w)
        exact = ops.crop_resize_antialias(frames, box, 48).astype(int)
        fast = ops.crop_resize_antialias(frames, box, 48, fast=True)
        assert fast.dtype == np.uint8
        assert np.abs(exact - fast).max() <= 1, box
    same = ops.crop_resize_antialias(frames, (3, 4, 48, 48), 48, fast=True)
    np.testing.assert_array_equal(same, frames[:, 3:51, 4:52])
    outside = (-2, 0, 40, 40)  # padded as without `fast`
    np.testing.assert_array_equal(
        ops.crop_resize_antialias(frames, outside, 48, fast=True), ops.crop_resize_antialias(frames, outside, 48)
    )
    for kernel, size in (('bicubic', 48), ('bilinear', (30, 31))):  # to less than half: Pillow
        modes = [ops.crop_resize_antialias(frames, (1, 1, 61, 62), size, kernel, fast) for fast in (False, True)]
        np.testing.assert_array_equal(*modes)


def test_fast_antialiased_resize_is_near_pillow_where_it_shrinks():
    """As docs/data.md states: half a level in the mean on pictures, whatever the factor; next to nothing at 2."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 16, 20, 3), np.uint8)
    frames = np.stack([cv2.resize(frame, (160, 128), interpolation=cv2.INTER_CUBIC) for frame in coarse])
    frames = (frames + rng.integers(-4, 5, frames.shape)).clip(0, 255).astype(np.uint8)
    means = {}
    for size in ((112, 140), (100, 160), (128, 100), (90, 110), (70, 90), (64, 80)):
        exact, fast = (ops.crop_resize_antialias(frames, (0, 0, 128, 160), size, fast=f) for f in (False, True))
        off = np.abs(exact.astype(int) - fast)
        assert off.max() <= 4, size
        assert off.mean() < 0.6, size
        means[size] = off.mean()
        unsmoothed = ops.crop_resize_bilinear(frames, (0, 0, 128, 160), size)
        assert off.mean() < np.abs(exact.astype(int) - unsmoothed).mean(), size
    assert means[64, 80] < 0.25


def test_random_resized_boxes_match_every_golden_case():
    for case in golden('rrc_boxes')['cases']:
        rng = Scripted(case['u'], case['randint_fraction'])
        box = ops.random_resized_crop_box(rng, case['height'], case['width'], case['scale'], case['ratio'])
        assert list(box) == case['i_j_h_w'], case
        assert rng.ranges == case['randint_ranges_inclusive']
        assert len(rng.uniforms) == 2 * case['attempts']
        assert all(type(value) is int for value in box)


def test_random_resized_defaults_are_the_published_ones():
    case = golden('rrc_boxes')['cases'][0]
    box = ops.random_resized_crop_box(Scripted(case['u'], case['randint_fraction']), case['height'], case['width'])
    assert list(box) == case['i_j_h_w']


def test_bilinear_resize_of_floats_matches_every_golden_case():
    data = arrays('rrc_resize')
    clip = np.ascontiguousarray(data['clip'].transpose(1, 2, 3, 0))
    for case in golden('rrc_resize')['cases']:
        out = ops.crop_resize_bilinear(clip, tuple(case['i_j_h_w']), case['size'])
        assert out.dtype == np.float32
        np.testing.assert_allclose(out.transpose(3, 0, 1, 2), data[case['key']], **FLOAT)


def test_bilinear_resize_matches_the_published_fine_tuning_pipeline():
    case, data = golden('train_pipeline'), arrays('train_pipeline')
    clip = np.ascontiguousarray(normalised(data['clip']).transpose(1, 2, 3, 0))
    out = ops.crop_resize_bilinear(clip, tuple(case['box_i_j_h_w']), case['crop_size'])
    np.testing.assert_allclose(out.transpose(3, 0, 1, 2), data['k400_noflip'], **FLOAT)
    out = ops.crop_resize_bilinear(clip, tuple(case['ssv2_box_i_j_h_w']), case['crop_size'])
    np.testing.assert_allclose(out.transpose(3, 0, 1, 2), data['ssv2_flip_draw_ignored'], **FLOAT)


def test_bilinear_resize_of_bytes_is_within_a_level_of_floats():
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width, h, w = (int(value) for value in rng.integers(8, 200, 4))
        frames = rng.integers(0, 256, (2, height, width, 3), np.uint8)
        box = (0, 0, height, width)
        out = ops.crop_resize_bilinear(frames, box, (h, w))
        assert out.dtype == np.uint8
        exact = ops.crop_resize_bilinear(frames.astype(np.float32), box, (h, w))
        assert np.abs(out - exact).max() <= 1


def test_bilinear_resize_refuses_boxes_outside():
    frames = np.zeros((1, 10, 12, 3), np.uint8)
    for box in ((-1, 0, 5, 5), (0, -1, 5, 5), (6, 0, 5, 5), (0, 8, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0)):
        with pytest.raises(ValueError, match='does not lie inside a 10 x 12 image'):
            ops.crop_resize_bilinear(frames, box, 4)


def test_validation_transform_matches_every_golden_case():
    data = arrays('val_transform')
    for case in golden('val_transform')['cases']:
        i = case['index']
        resized = ops.short_side_resize(data[f'clip{i}'], case['short_side'])
        assert list(resized.shape[1:3]) == case['resized_h_w']
        np.testing.assert_array_equal(resized, data[f'resized{i}'])
        top, left = case['crop_top_left']
        crop = ops.center_crop(resized, case['crop'])
        np.testing.assert_array_equal(crop, resized[:, top : top + case['crop'], left : left + case['crop']])
        np.testing.assert_allclose(normalised(crop), data[f'out{i}'], **FLOAT)


@pytest.mark.parametrize('dataset', ['k400', 'ssv2'])
def test_spatial_crops_match_every_golden_case(dataset):
    for case in golden('spatial_test')[dataset]:
        clip = np.random.default_rng(0).integers(0, 256, (1, case['height'], case['width'], 3), np.uint8)
        resized = ops.short_side_resize(clip, case['short_side'])
        assert list(resized.shape[1:3]) == case['resized_h_w']
        crops = ops.spatial_crops(resized, case['short_side'], case['num_crop'])
        side = case['short_side']
        for crop, start in zip(crops, case['spatial_start'], strict=True):
            window = slice(start, start + side)
            expected = resized[:, window] if case['crop_axis'] == 'height' else resized[:, :, window]
            np.testing.assert_array_equal(crop, expected)


def test_all_views_of_a_video_match_golden():
    data = arrays('test_views')
    for case in golden('test_views')['cases']:
        clip, args = data[f'clip{case["index"]}'], case['args']
        if case['dataset'] == 'k400':
            ids = sampling.kinetics_test(
                len(clip), args['clip_len'], args['frame_sample_rate'], args['test_num_segment']
            )
        else:
            ids = sampling.segments_test(len(clip), args['num_segment'], args['test_num_segment'])
        crops = ops.spatial_crops(ops.short_side_resize(clip, case['short_side']), case['short_side'])
        views = [normalised(crops[split][ids[chunk]]) for chunk, split in case['chunk_split']]
        np.testing.assert_allclose(np.stack(views), data[f'out{case["index"]}'], **FLOAT)


def test_bevt_crops_match_every_golden_case():
    case = json.loads((GOLDEN.parent / 'bevt' / 'frame_sampling.json').read_text())
    rng = np.random.default_rng(0)
    for crop in case['three_crop']:
        frames = rng.integers(0, 256, (1, crop['height'], crop['width'], 3), np.uint8)
        crops = ops.spatial_crops(frames, crop['crop'], 3, 'bevt')
        for found, (x1, y1, x2, y2) in zip(crops, crop['boxes_x1y1x2y2'], strict=True):
            np.testing.assert_array_equal(found, frames[:, y1:y2, x1:x2])


def test_one_spatial_crop_is_the_centre_and_smaller_crops_are_centred_on_the_short_side():
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 33, 3), np.uint8)
    np.testing.assert_array_equal(ops.spatial_crops(frames, 20, 1)[0], ops.center_crop(frames, 20))
    crops = ops.spatial_crops(frames, 16, 2)
    np.testing.assert_array_equal(crops[0], frames[:, 2:18, :16])
    np.testing.assert_array_equal(crops[1], frames[:, 2:18, 17:])


@pytest.mark.parametrize(
    ('shape', 'size', 'covering'),
    [
        ((60, 80), (30, 60), (45, 60)),
        ((60, 80), (40, 30), (40, 53)),
        ((80, 40), (20, 20), (40, 20)),
        ((9, 7), (9, 3), (9, 7)),
    ],
)
def test_oblong_test_crops_are_cut_from_the_frame_that_just_covers_them(shape, size, covering):
    frames = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    resized = ops.short_side_resize(frames, size)
    assert resized.shape == (2, *covering, 3)
    crops = ops.spatial_crops(resized, size, 3)
    assert crops.shape == (3, 2, *size, 3)
    down, right = covering[0] - size[0], covering[1] - size[1]
    for crop, share in zip(crops, (0, 0.5, 1), strict=True):
        top, left = int(down * share), int(right * share)
        np.testing.assert_array_equal(crop, resized[:, top : top + size[0], left : left + size[1]])


def test_crops_that_do_not_fit_are_the_users_mistake():
    frames = np.zeros((1, 20, 33, 3), np.uint8)
    for crops in (1, 3):
        with pytest.raises(UserError, match='does not fit into frames of 20 x 33'):
            ops.spatial_crops(frames, 24, crops)
    with pytest.raises(UserError, match='at least 1, not 0'):
        ops.spatial_crops(frames, 20, 0)
    with pytest.raises(UserError, match='at least 1 pixel'):
        ops.center_crop(frames, (0, 4))
    assert ops.center_crop(frames, (10, 30)).shape == (1, 10, 30, 3)


def test_random_short_side_crops_are_cut_from_frames_of_every_size_asked_for():
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), np.uint8)
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        crop = ops.random_short_side_crop(rng, frames, (40, 44), (48, 51))
        replayed = np.random.default_rng(seed)
        short = int(replayed.integers(48, 52))
        long = int(80 * short / 48 + 0.5)
        top, left = int(replayed.integers(0, short - 40 + 1)), int(replayed.integers(0, long - 44 + 1))
        resized = np.stack([cv2.resize(f, (long, short), interpolation=cv2.INTER_CUBIC) for f in frames])
        np.testing.assert_array_equal(crop, resized[:, top : top + 40, left : left + 44])
        seen.add(short)
    assert seen == {48, 49, 50, 51}
    tall = ops.random_short_side_crop(np.random.default_rng(0), frames.swapaxes(1, 2), 48, (48, 48))
    assert tall.shape == (2, 48, 48, 3)
    with pytest.raises(UserError, match='a crop of 60 x 60 does not fit into frames of 48 x 80'):
        ops.random_short_side_crop(np.random.default_rng(0), frames, 60, (48, 48))


def test_the_tokenizers_view_is_half_the_size_and_not_averaged():
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    out = ops.resize_lanczos(frames, (16, 24))
    assert out.shape == (2, 16, 24, 3)
    expected = cv2.resize(frames[1], (24, 16), interpolation=cv2.INTER_LANCZOS4)
    np.testing.assert_array_equal(out[1], expected)
    assert ops.resize_lanczos(frames, 16).shape == (2, 16, 16, 3)
    assert out.std() > 1.2 * frames.reshape(2, 16, 2, 24, 2, 3).mean((2, 4)).std()


def test_flip_mirrors_left_and_right():
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    flipped = ops.flip(frames)
    assert flipped.flags.c_contiguous
    np.testing.assert_array_equal(flipped[:, :, 0], frames[:, :, 4])
    np.testing.assert_array_equal(ops.flip(flipped), frames)


def test_erasing_boxes_match_every_golden_case():
    for case in golden('erasing_boxes')['cases']:
        rng = Scripted(case['u'], case['randint_fraction'], case['apply_draw'])
        box = ops.random_erasing_box(rng, case['height'], case['width'])
        assert box.dtype == np.int32
        for expected in case['top_left_h_w_per_frame']:
            assert box.tolist() == (expected or [0, 0, 0, 0]), case
        assert rng.ranges == case['randint_ranges_inclusive']
        assert len(rng.uniforms) == 2 * case['attempts']
        for asked, expected in zip(rng.uniforms, case['uniform_ranges'], strict=False):
            assert asked == pytest.approx(expected, rel=1e-12)


def test_erasing_box_of_the_fine_tuning_pipeline():
    case = golden('train_pipeline')
    erase = case['erase']
    rng = Scripted(erase['u'], erase['randint_fraction'])
    box = ops.random_erasing_box(rng, case['crop_size'], case['crop_size'])
    assert box.tolist() == erase['top_left_h_w']
    assert rng.ranges == erase['randint_ranges_inclusive']
