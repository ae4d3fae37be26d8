"""What the recipes make: shapes, types, mask counts, reproducibility, and refusals of options that make no sample."""

import pickle

import numpy as np
import pytest
from video_files import encode

from mvdjax.data import ops, sampling
from mvdjax.data.decode import read_frames, read_image
from mvdjax.data.masks import num_masked
from mvdjax.data.pipeline import make_recipe
from mvdjax.data.recipes import finetune, images, pretrain, views
from mvdjax.data.schema import Record
from mvdjax.errors import UserError

MASK = {'kind': 'tube', 'ratio': 0.75}
PRETRAIN = {'size': 48, 'length': 8, 'stride': 2, 'patch': (2, 8, 8), 'mask': MASK}
IMAGES = {'size': 48, 'patch': (1, 8, 8), 'mask': {'kind': 'random', 'ratio': 0.75}}
FINETUNE = {'size': 48, 'length': 8, 'stride': 2}
VIEWS = {'size': 48, 'length': 8, 'stride': 2, 'clips': 3, 'crops': 3}


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    """60 frames of 96 x 64."""
    return Record(str(encode(tmp_path_factory.mktemp('recipes') / 'video.mp4', 'libx264')), 5, 1)


@pytest.fixture(scope='module')
def image(demo_data):
    return Record(str(sorted((demo_data / 'images').iterdir())[0]), 2, 1)


def shapes(sample):
    return {name: (np.shape(x), np.asarray(x).dtype.name) for name, x in sample.items()}


def draw(recipe, record, seed=0):
    return recipe(record, np.random.default_rng(seed))


def test_pretrain_shapes_and_masks(video):
    recipe = pretrain.Recipe(**PRETRAIN)
    sample = draw(recipe, video)
    assert shapes(sample) == {'video': ((8, 48, 48, 3), 'uint8'), 'mask': ((144,), 'bool')}
    counts = {int(draw(recipe, video, seed)['mask'].sum()) for seed in range(10)}
    assert counts == {num_masked(grid=(4, 6, 6), **MASK)}
    tube = sample['mask'].reshape(4, 36)
    assert (tube == tube[0]).all()
    loose = draw(pretrain.Recipe(**{**PRETRAIN, 'mask': {'kind': 'random_clip', 'ratio': 0.75}}), video)
    assert loose['mask'].sum() == 108
    assert not (loose['mask'].reshape(4, 36) == loose['mask'].reshape(4, 36)[0]).all()


def test_teacher_size_is_another_resize_of_the_same_crop(video):
    plain = draw(pretrain.Recipe(**PRETRAIN), video)
    both = draw(pretrain.Recipe(**PRETRAIN, teacher_size=24), video)
    assert shapes(both)['teacher_video'] == ((8, 24, 24, 3), 'uint8')
    for name in plain:  # the second resize changes nothing else
        np.testing.assert_array_equal(both[name], plain[name])
    halved = both['video'].astype(float).reshape(8, 24, 2, 24, 2, 3).mean((2, 4))
    assert np.abs(halved - both['teacher_video']).mean() < 6
    assert np.abs(halved[:, ::-1] - both['teacher_video']).mean() > 20  # the measure tells crops apart


def test_pretrain_views_each_have_their_own_clip_and_mask(video):
    sample = draw(pretrain.Recipe(**PRETRAIN, views=2, teacher_size=24), video)
    assert shapes(sample) == {
        'video': ((2, 8, 48, 48, 3), 'uint8'),
        'mask': ((2, 144), 'bool'),
        'teacher_video': ((2, 8, 24, 24, 3), 'uint8'),
    }
    for name in ('video', 'mask'):
        assert not np.array_equal(sample[name][0], sample[name][1])
    assert sample['mask'].sum(1).tolist() == [num_masked(grid=(4, 6, 6), **MASK)] * 2


def test_images_shapes_and_masks(image):
    recipe = images.Recipe(**IMAGES)
    assert shapes(draw(recipe, image)) == {'video': ((1, 48, 48, 3), 'uint8'), 'mask': ((36,), 'bool')}
    assert {int(draw(recipe, image, seed)['mask'].sum()) for seed in range(10)} == {27}


def test_finetune_shapes(video):
    assert shapes(draw(finetune.Recipe(**FINETUNE), video)) == {
        'video': ((8, 48, 48, 3), 'uint8'),
        'label': ((), 'int32'),
    }
    options = {**FINETUNE, 'views': 2, 'erasing': 1.0, 'rand_augment': 'rand-m7-n4-mstd0.5-inc1'}
    sample = draw(finetune.Recipe(**options), video)
    assert shapes(sample) == {
        'video': ((2, 8, 48, 48, 3), 'uint8'),
        'label': ((2,), 'int32'),
        'erase': ((2, 4), 'int32'),
    }
    assert sample['label'].tolist() == [5, 5]
    assert not np.array_equal(sample['video'][0], sample['video'][1])
    assert not np.array_equal(sample['erase'][0], sample['erase'][1])
    top, left, height, width = sample['erase'].T
    assert (sample['erase'] >= 0).all()
    assert (height * width > 0).all()
    assert (top + height <= 48).all()
    assert (left + width <= 48).all()
    segments = draw(finetune.Recipe(size=48, length=8, sampling='segments'), video)
    assert segments['video'].shape == (8, 48, 48, 3)


def test_every_recipe_makes_oblong_samples(video, image):
    oblong = {'size': (24, 56)}
    mask = {'mask': {'kind': 'tube', 'ratio': 0.6}}
    sample = draw(pretrain.Recipe(**{**PRETRAIN, **oblong, **mask}, teacher_size=(12, 28)), video)
    assert shapes(sample) == {
        'video': ((8, 24, 56, 3), 'uint8'),
        'mask': ((84,), 'bool'),
        'teacher_video': ((8, 12, 28, 3), 'uint8'),
    }
    assert sample['mask'].reshape(4, 21).sum(axis=1).tolist() == [12] * 4
    sample = draw(images.Recipe(**{**IMAGES, **oblong}), image)
    assert shapes(sample) == {'video': ((1, 24, 56, 3), 'uint8'), 'mask': ((21,), 'bool')}
    samples = [draw(finetune.Recipe(**{**FINETUNE, **oblong}, erasing=1.0), video, seed) for seed in range(20)]
    assert {s['video'].shape for s in samples} == {(8, 24, 56, 3)}
    boxes = np.stack([s['erase'] for s in samples])
    assert (boxes[:, 0] + boxes[:, 2] <= 24).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 56).all()
    assert (boxes[:, 1] + boxes[:, 3]).max() > 24  # drawn for the width, not for a square
    assert draw(views.Recipe(**{**VIEWS, **oblong}), video)['video'].shape == (9, 8, 24, 56, 3)
    listed = make_recipe('views', {**VIEWS, 'size': [24, 56]})  # as a checkpoint's JSON has it
    np.testing.assert_array_equal(
        draw(listed, video)['video'], draw(views.Recipe(**{**VIEWS, **oblong}), video)['video']
    )


def test_an_oblong_sample_is_not_squeezed(video):
    """A frame of the size's own aspect, 3 : 2: most crops of all its area are the whole frame."""
    recipe = finetune.Recipe(size=(32, 48), length=8, stride=2, scale=(1.0, 1.0), flip=0.0)

    def whole(seed):
        rng = np.random.default_rng(seed)
        frames = read_frames(video.path, lambda n: sampling.kinetics_train(n, rng, 8, 2))
        return ops.crop_resize_bilinear(frames, (0, 0, 64, 96), (32, 48))

    assert sum(np.array_equal(draw(recipe, video, seed)['video'], whole(seed)) for seed in range(12)) > 6


def test_repeated_augmentation_crops_the_same_frames(video):
    still = {'size': 48, 'length': 8, 'sampling': 'segments', 'flip': 0.0, 'scale': (1.0, 1.0), 'views': 2}
    both = draw(finetune.Recipe(**still), video, seed=4)['video'].astype(int)
    assert np.abs(both[0] - both[1]).mean() < 12  # crops differ by their shape only
    assert np.abs(both[0] - both[1][::-1]).mean() > 20


def mirrored(make, record):
    """How many of 12 draws a flip of probability 1 mirrors, against none."""
    pairs = [(draw(make(1.0), record, s)['video'], draw(make(0.0), record, s)['video']) for s in range(12)]
    return sum(np.array_equal(a, ops.flip(b)) and not np.array_equal(a, b) for a, b in pairs)


def test_flip_happens_by_its_probability_and_never_at_zero(video, image):
    assert mirrored(lambda flip: finetune.Recipe(**FINETUNE, flip=flip), video) == 12
    assert mirrored(lambda flip: images.Recipe(**IMAGES, flip=flip), image) == 12
    never = [draw(finetune.Recipe(**FINETUNE, flip=0.0), video, s)['video'] for s in range(30)]
    half = [draw(finetune.Recipe(**FINETUNE, flip=0.5), video, s)['video'] for s in range(30)]
    assert 5 < sum(not np.array_equal(a, b) for a, b in zip(never, half, strict=True)) < 25


@pytest.mark.parametrize('sampling', ['dense', 'segments'])
def test_views_from_one_decode_equal_separate_decodes(video, sampling):
    recipe = views.Recipe(**VIEWS, sampling=sampling)
    sample = draw(recipe, video)
    assert shapes(sample) == {'video': ((9, 8, 48, 48, 3), 'uint8'), 'label': ((), 'int32')}
    ids = recipe.indices(60)
    assert ids.shape == (3, 8)
    for clip in range(3):
        frames = ops.short_side_resize(read_frames(video.path, lambda _, clip=clip: ids[clip]), 48)
        crops = ops.spatial_crops(frames, 48, 3)
        for crop in range(3):
            np.testing.assert_array_equal(sample['video'][3 * clip + crop], crops[crop])
    assert not np.array_equal(sample['video'][0], sample['video'][2])
    assert not np.array_equal(sample['video'][0], sample['video'][3])


def test_views_draw_nothing(video):
    recipe = views.Recipe(**VIEWS)
    np.testing.assert_array_equal(draw(recipe, video, 0)['video'], draw(recipe, video, 1)['video'])


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('pretrain', {**PRETRAIN, 'teacher_size': 24}),
        ('finetune', {**FINETUNE, 'views': 2, 'erasing': 0.5, 'rand_augment': 'rand-m7-n4-mstd0.5-inc1'}),
        ('views', VIEWS),
    ],
)
def test_recipes_are_pure_and_picklable(video, name, options):
    recipe = make_recipe(name, options)
    copy = pickle.loads(pickle.dumps(recipe))
    first, second = draw(recipe, video, 7), draw(copy, video, 7)
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    if name != 'views':
        assert not np.array_equal(first['video'], draw(recipe, video, 8)['video'])


def test_an_image_is_not_cropped_beyond_the_asked_share(image):
    whole = images.Recipe(**{**IMAGES, 'size': 32}, scale=(1.0, 1.0), flip=0.0)
    height, width = read_image(image.path).shape[:2]
    expected = ops.crop_resize_antialias(read_image(image.path)[None], (0, 0, height, width), 32, 'bicubic')
    found = np.stack([draw(whole, image, s)['video'] for s in range(3)]).astype(int)
    assert np.abs(found - expected).mean() < 25


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
