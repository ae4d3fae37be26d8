"""What the recipes make: shapes, types, mask counts, frames and crops, augmentation, reproducibility."""

import pickle

import numpy as np
import pytest
from recipe_samples import BEVT, BEVT_IMAGE, FINETUNE, IMAGES, MASK, PRETRAIN, VIEWS, draw, shapes
from video_files import encode

from mvdjax.data import ops, sampling
from mvdjax.data.decode import read_frames, read_image
from mvdjax.data.masks import num_masked
from mvdjax.data.pipeline import make_recipe
from mvdjax.data.recipes import bevt_clips, bevt_images, finetune, images, pretrain, views
from mvdjax.data.schema import Record
from mvdjax.errors import UserError


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    """60 frames of 96 x 64."""
    return Record(str(encode(tmp_path_factory.mktemp('recipes') / 'video.mp4', 'libx264')), 5, 1)


@pytest.fixture(scope='module')
def image(demo_data):
    return Record(str(sorted((demo_data / 'images').iterdir())[0]), 2, 1)


EVERY = {
    'pretrain': pretrain.Recipe(**PRETRAIN),
    'both_sizes': pretrain.Recipe(**{**PRETRAIN, 'size': (48, 56)}, teacher_size=24, views=2),
    'images': images.Recipe(**IMAGES),
    'finetune': finetune.Recipe(**FINETUNE),
    'erased_twice': finetune.Recipe(**FINETUNE, erasing=0.5, views=2),
    'views': views.Recipe(**VIEWS),
    'bevt_clips': bevt_clips.Recipe(**BEVT, length=8, stride=3),
    'bevt_images': bevt_images.Recipe(**BEVT_IMAGE),
    'bevt_clips_thrice': bevt_clips.Recipe(**BEVT, length=8, stride=3, views=3),
    'images_without_a_mask': images.Recipe(32),
}


@pytest.mark.parametrize('name', EVERY)
def test_a_blank_sample_has_the_shapes_of_a_real_one(name, video, image):
    recipe = EVERY[name]
    blank = recipe.blank()
    assert shapes(blank) == shapes(draw(recipe, image if 'images' in name else video))
    assert not any(np.any(value) for value in blank.values())


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


def test_bevt_clips_shapes_and_masks(video):
    recipe = bevt_clips.Recipe(**BEVT, length=8, stride=3)
    sample = draw(recipe, video)
    assert shapes(sample) == {
        'video': ((8, 32, 32, 3), 'uint8'),
        'token_video': ((8, 16, 16, 3), 'uint8'),
        'mask': ((64,), 'bool'),
    }
    np.testing.assert_array_equal(sample['token_video'], ops.resize_lanczos(sample['video'], 16))
    for seed in range(12):
        slots = draw(recipe, video, seed)['mask'].reshape(4, 16).sum(1)
        assert 2 <= (slots > 0).sum() <= 4
        assert slots.max() <= 8
    published = bevt_clips.Recipe()
    assert published._grid() == (8, 14, 14)


def test_bevt_clips_of_one_decode_are_clips_of_their_own(video):
    sample = draw(bevt_clips.Recipe(**BEVT, length=8, stride=3, views=3), video)
    assert shapes(sample)['video'] == ((3, 8, 32, 32, 3), 'uint8')
    for view in range(3):
        np.testing.assert_array_equal(sample['token_video'][view], ops.resize_lanczos(sample['video'][view], 16))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        for name in ('video', 'mask'):
            assert not np.array_equal(sample[name][a], sample[name][b])
    with pytest.raises(UserError, match='views must be at least 1, not 0'):
        bevt_clips.Recipe(views=0)


def test_images_do_without_a_mask(image):
    without, masked = (draw(recipe, image) for recipe in (images.Recipe(48), images.Recipe(**{**IMAGES, 'size': 48})))
    assert shapes(without) == {'video': ((1, 48, 48, 3), 'uint8')}
    np.testing.assert_array_equal(without['video'], masked['video'])  # the same draws


def test_bevt_images_shapes_masks_and_jitter(image):
    recipe = bevt_images.Recipe(**BEVT_IMAGE)
    sample = draw(recipe, image)
    assert shapes(sample) == {
        'video': ((1, 32, 32, 3), 'uint8'),
        'token_video': ((1, 16, 16, 3), 'uint8'),
        'mask': ((16,), 'bool'),
    }
    np.testing.assert_array_equal(sample['token_video'], ops.resize_lanczos(sample['video'], 16))  # after the jitter
    assert 2 <= sample['mask'].sum() <= 8
    still = draw(bevt_images.Recipe(**BEVT_IMAGE, color_jitter=(0.0, 0.0, 0.0, 0.0)), image)
    assert (still['video'] != sample['video']).any()
    np.testing.assert_array_equal(still['mask'], sample['mask'])  # the draws are the same


@pytest.mark.parametrize('rule', ['dense', 'segments', 'floor_segments', 'windows'])
def test_every_sampling_rule_trains_and_tests(video, rule):
    options = {'size': 64, 'length': 8, 'stride': 2, 'sampling': rule}
    whole = finetune.Recipe(**options, scale=(1.0, 1.0), flip=0.0)

    def frames(ids):
        return ops.short_side_resize(read_frames(video.path, lambda _: ids), 64).astype(int)

    rng = np.random.default_rng(3)
    ids = sampling.RULES[rule].train(60, rng, 8, 2)
    found = draw(whole, video, seed=3)['video'].mean((1, 2))
    near, far = (np.abs(frames(chosen).mean((1, 2)) - found).mean() for chosen in (ids, ids[::-1].copy()))
    assert near < far  # crops differ by their place only, so their means follow the frames
    recipe = views.Recipe(**options, clips=2, crops=1)
    tested = draw(recipe, video)['video']
    for clip, ids in zip(tested, sampling.RULES[rule].test(60, 8, 2, 2), strict=True):
        np.testing.assert_array_equal(clip, ops.center_crop(frames(ids), 64))


def test_bevt_views_are_its_three_crops_of_each_clip(video):
    options = {**VIEWS, 'size': 49, 'sampling': 'windows', 'clips': 2}
    even, bevt = (draw(views.Recipe(**options, crop_rule=rule), video)['video'] for rule in ('even', 'bevt'))
    assert even.shape == bevt.shape == (6, 8, 49, 49, 3)
    # 49 x 73 frames have 24 pixels to spare: the same crops, in the order start, end, middle.
    np.testing.assert_array_equal(bevt.reshape(2, 3, -1), even.reshape(2, 3, -1)[:, [0, 2, 1]])


def test_a_flip_swaps_the_labels_that_it_turns_into_each_other(video):
    options = {**FINETUNE, 'views': 3}
    plain, swapped = (finetune.Recipe(**options, flip_swaps=swaps) for swaps in ((), ((5, 7), (1, 2))))
    never = finetune.Recipe(**options, flip=0.0)
    flips = 0
    for seed in range(8):
        clips, unflipped = (draw(recipe, video, seed) for recipe in (swapped, never))
        np.testing.assert_array_equal(clips['video'], draw(plain, video, seed)['video'])  # the pixels do not care
        turned = [not np.array_equal(a, b) for a, b in zip(clips['video'], unflipped['video'], strict=True)]
        assert clips['label'].tolist() == [7 if flipped else 5 for flipped in turned]
        flips += sum(turned)
    assert 4 < flips < 20
    other = Record(video.path, 3, 1)
    assert set(draw(swapped, other)['label'].tolist()) == {3}
    assert set(draw(finetune.Recipe(**options, flip=1.0, flip_swaps=((7, 5),)), video)['label'].tolist()) == {7}


def test_both_modes_of_rand_augment_are_near_each_other_and_draw_alike(video):
    options = {**FINETUNE, 'views': 2, 'erasing': 0.5, 'rand_augment': 'rand-m7-n4-mstd0.5-inc1'}
    fast, exact = (finetune.Recipe(**options, rand_augment_mode=mode) for mode in ('fast', 'exact'))
    assert finetune.Recipe(**options) == fast
    plain = finetune.Recipe(**{**options, 'rand_augment': ''})
    close, changed = 0, 0
    for seed in range(6):
        one, two, none = (draw(recipe, video, seed) for recipe in (fast, exact, plain))
        np.testing.assert_array_equal(one['erase'], two['erase'])
        close += np.abs(one['video'].astype(int) - two['video']).mean() < 1
        changed += np.abs(one['video'].astype(int) - none['video']).mean() > 5
    assert close >= 5
    assert changed >= 5


def test_both_resizes_of_pretraining_are_near_each_other(video):
    options = {**PRETRAIN, 'teacher_size': 40}
    fast, exact = (pretrain.Recipe(**options, resize=resize) for resize in ('fast', 'exact'))
    assert pretrain.Recipe(**options) == fast
    differ = 0
    for seed in range(10):
        one, two = draw(fast, video, seed), draw(exact, video, seed)
        np.testing.assert_array_equal(one['mask'], two['mask'])
        for name in ('video', 'teacher_video'):
            off = np.abs(one[name].astype(int) - two[name])
            assert off.mean() < 0.9
            assert off.max() <= 12
            differ += off.any()
    assert 0 < differ < 20


def test_colour_jitter_of_fine_tuning_leaves_the_geometry(video):
    plain, jittered = (
        finetune.Recipe(**FINETUNE, color_jitter=limits) for limits in ((0.0,) * 4, (0.6, 0.6, 0.6, 0.0))
    )
    a, b = draw(plain, video, 1)['video'], draw(jittered, video, 1)['video']
    assert (a != b).any()
    frames = [x.astype(float).reshape(8, -1) for x in (a, b)]
    assert min(np.corrcoef(x, y)[0, 1] for x, y in zip(*frames, strict=True)) > 0.7


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
        ('finetune', {**FINETUNE, 'color_jitter': (0.4, 0.4, 0.4, 0.1), 'flip_swaps': ((5, 7),)}),
        ('bevt_clips', {**BEVT, 'length': 8, 'stride': 2}),
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
