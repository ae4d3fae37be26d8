"""A fine-tuning sample against its parts, one after the other, drawn from the same generator."""

import numpy as np
import pytest
from video_files import encode

from mvdjax.data import color, ops, sampling
from mvdjax.data.decode import read_frames
from mvdjax.data.rand_augment import RandAugment
from mvdjax.data.recipes import finetune
from mvdjax.data.schema import Record


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    """60 frames of 96 x 64."""
    return Record(str(encode(tmp_path_factory.mktemp('finetune') / 'video.mp4', 'libx264')), 5, 1)


@pytest.mark.parametrize(('mode', 'jitter'), [('fast', 0.0), ('exact', 0.0), ('fast', 0.3), ('', 0.0)])
def test_a_sample_is_what_its_parts_make_in_the_published_order(video, mode, jitter):
    spec = 'rand-m7-n4-mstd0.5-inc1' if mode else ''
    limits = (jitter, jitter, jitter, 0.0)
    options = {'size': (48, 40), 'length': 8, 'stride': 2, 'views': 3, 'erasing': 0.5, 'color_jitter': limits}
    recipe = finetune.Recipe(**options, rand_augment=spec, rand_augment_mode=mode or 'fast', flip_swaps=((5, 9),))
    mirrored = set()
    for seed in range(4):
        sample, rng = recipe(video, np.random.default_rng(seed)), np.random.default_rng(seed)
        assert sample['video'].flags.c_contiguous
        frames = read_frames(video.path, lambda n, rng=rng: sampling.kinetics_train(n, rng, 8, 2))
        for view in range(3):
            augment = RandAugment(spec, mode=mode) if spec else None
            steps = augment.plan(rng, 8) if augment else ()
            box = ops.random_resized_crop_box(rng, 64, 96, ratio=ops.crop_ratio((48, 40)), scale=(0.08, 1.0))
            clip = augment.apply(steps, frames, box) if augment else frames
            clip = ops.crop_resize_bilinear(clip, (0, 0, *box[2:]) if augment else box, (48, 40))
            flip = rng.random() < 0.5
            clip = ops.flip(clip) if flip else clip
            clip = color.color_jitter(rng, clip, *limits) if jitter else clip
            np.testing.assert_array_equal(sample['video'][view], clip)
            assert sample['label'][view] == (9 if flip else 5)
            np.testing.assert_array_equal(sample['erase'][view], ops.random_erasing_box(rng, 48, 40, 0.5))
            mirrored.add(flip)
    assert mirrored == {True, False}
