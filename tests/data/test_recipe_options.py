"""Options that make no sample are refused before any file is read, with a sentence."""

import pytest
from recipe_samples import BEVT, BEVT_IMAGE, FINETUNE, IMAGES, MASK, PRETRAIN, VIEWS

from mvdjax.data.pipeline import make_recipe
from mvdjax.errors import UserError

BAD = [
    ('pretrain', {**PRETRAIN, 'size': 0}, 'size must be at least 1'),
    ('pretrain', {**PRETRAIN, 'size': 50}, 'does not divide into patches'),
    ('pretrain', {**PRETRAIN, 'size': (48, 50)}, '8 frames of 48 x 50 does not divide into patches'),
    ('pretrain', {**PRETRAIN, 'size': (48, 0)}, r'size must be at least 1, not \(48, 0\)'),
    ('pretrain', {**PRETRAIN, 'size': (48, 48, 3)}, 'size must be a whole number or a tuple of 2 values'),
    ('pretrain', {**PRETRAIN, 'length': 7}, '7 frames .* does not divide into patches'),
    ('pretrain', {**PRETRAIN, 'length': 0}, 'length must be at least 1'),
    ('pretrain', {**PRETRAIN, 'stride': 0}, 'stride must be at least 1'),
    ('pretrain', {**PRETRAIN, 'teacher_size': -1}, 'teacher_size must be at least 0'),
    ('pretrain', {**PRETRAIN, 'patch': (8, 8)}, r'patch must be a tuple of 3 values, not \(8, 8\)'),
    ('pretrain', {**PRETRAIN, 'patch': (0, 8, 8)}, r'patch must be \(frames, rows, columns\)'),
    ('pretrain', {**PRETRAIN, 'mask': {'kind': 'tub', 'ratio': 0.5}}, "unknown mask 'tub'; there are tube"),
    ('pretrain', {**PRETRAIN, 'mask': {'kind': 'tube', 'ratio': 1.0}}, 'ratio must lie strictly between 0 and 1'),
    ('pretrain', {**PRETRAIN, 'mask': {'kind': 'tube', 'ratoi': 0.5}}, "mask has no key 'ratoi'; did you mean 'ratio'"),
    ('pretrain', {**PRETRAIN, 'mask': {'kind': 'tube'}}, 'mask lacks ratio'),
    ('pretrain', {**PRETRAIN, 'views': 0}, 'views must be at least 1'),
    ('images', {**IMAGES, 'size': 50}, 'does not divide into patches'),
    ('images', {**IMAGES, 'patch': (2, 8, 8)}, 'does not divide into patches'),
    ('images', {**IMAGES, 'flip': 1.5}, r'flip must lie in \[0, 1\]'),
    ('images', {**IMAGES, 'scale': (0.5, 0.2)}, 'scale must be two rising shares'),
    ('images', {**IMAGES, 'length': 3}, "has no key 'length'"),
    ('finetune', {**FINETUNE, 'views': 0}, 'views must be at least 1'),
    (
        'finetune',
        {**FINETUNE, 'sampling': 'sparse'},
        "sampling must be one of dense, segments, floor_segments, windows, not 'sparse'",
    ),
    ('finetune', {**FINETUNE, 'scale': (0.0, 1.0)}, 'scale must be two rising shares'),
    ('finetune', {**FINETUNE, 'erasing': -0.5}, r'erasing must lie in \[0, 1\]'),
    ('finetune', {**FINETUNE, 'rand_augment': 'rand-q'}, 'RandAugment spec'),
    ('finetune', {**FINETUNE, 'flip': '0'}, "flip must be a number, not '0'"),
    ('finetune', {**FINETUNE, 'flip_swaps': ((1, 2), (2, 3))}, 'flip_swaps names a class twice'),
    ('finetune', {**FINETUNE, 'flip_swaps': ((1, 2, 3),)}, 'flip_swaps must be pairs of class numbers'),
    ('finetune', {**FINETUNE, 'flip_swaps': (1, 2)}, 'flip_swaps must be pairs of class numbers'),
    ('finetune', {**FINETUNE, 'flip_swaps': ((-1, 2),)}, 'flip_swaps must be pairs of class numbers'),
    ('finetune', {**FINETUNE, 'flip_swaps': ((1, 2),), 'flip': 0.0}, 'flip_swaps does nothing where flip is 0'),
    ('finetune', {**FINETUNE, 'rand_augment': 'rand-m7-n4', 'rand_augment_mode': 'quick'}, "mode 'quick' is unknown"),
    ('finetune', {**FINETUNE, 'color_jitter': (0.4, 0.4, 0.4, 0.9)}, r'hue in \[0, 0.5\]'),
    ('pretrain', {**PRETRAIN, 'resize': 'pil'}, "resize must be 'exact' or 'fast', not 'pil'"),
    ('bevt_clips', {**BEVT, 'masked': 16}, 'smallest_block <= masked < 16'),
    ('bevt_clips', {**BEVT, 'smallest_block': 9}, 'smallest_block <= masked < 16'),
    ('bevt_clips', {**BEVT, 'short_sides': (30, 40)}, r'short_sides must be a rising range that starts at 32'),
    ('bevt_clips', {**BEVT, 'tube': (0.8, 0.5)}, 'tube must be two rising shares'),
    ('bevt_clips', {**BEVT, 'length': 7}, 'does not divide into patches'),
    ('bevt_images', {**BEVT_IMAGE, 'patch': (2, 8, 8)}, 'does not divide into patches'),
    ('bevt_images', {**BEVT_IMAGE, 'flip': 2.0}, r'flip must lie in \[0, 1\]'),
    ('bevt_images', {**BEVT_IMAGE, 'color_jitter': (-0.4, 0.4, 0.4, 0.0)}, r'saturation in \[0, 1\]'),
    ('views', {**VIEWS, 'crop_rule': 'odd'}, "crop_rule must be one of even, bevt, not 'odd'"),
    ('views', {**VIEWS, 'crop_rule': 'bevt', 'crops': 2}, "crop_rule 'bevt' makes 3 crops, not 2"),
    ('views', {**VIEWS, 'clips': 0}, 'clips must be at least 1'),
    ('views', {**VIEWS, 'crops': 0}, 'crops must be at least 1'),
    ('views', {**VIEWS, 'sampling': 'sparse'}, 'sampling must be one of dense, segments'),
    ('views', {**VIEWS, 'mask': MASK}, "'views' has no key 'mask'"),
]


@pytest.mark.parametrize(('name', 'options', 'message'), BAD)
def test_options_that_make_no_sample_are_refused_before_any_file_is_read(name, options, message):
    with pytest.raises(UserError, match=message) as found:
        make_recipe(name, options)
    assert '\n' not in str(found.value)
