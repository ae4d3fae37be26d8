"""The three tasks on clips that are not square, of other lengths, patches and channels, with masks made for them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import quick_jit

from mvdjax.data.masks import KINDS, make_mask
from mvdjax.errors import UserError
from mvdjax.tasks import classify, mae, mvd
from mvdjax.tasks.base import IMAGENET_MEAN, IMAGENET_STD, build_vit, check_backbone, describe, normalize

DECODER = {'width': 16, 'depth': 1, 'heads': 2}
GREY = {'mean': (0.5,), 'std': (0.25,)}
FIVE = {'mean': (0.1, 0.2, 0.3, 0.4, 0.5), 'std': (1.0, 0.5, 0.25, 0.2, 0.1)}
# (frames, height, width), patch, model options
CLIPS = [
    ((4, 32, 48), (2, 16, 8), {}),
    ((6, 20, 10), (3, 10, 5), {'pos_embed': 'sincos1d', **GREY}),
    ((1, 24, 36), (1, 6, 12), {'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full', **FIVE}),
    ((8, 16, 32), (2, 8, 8), {'pos_embed': 'learned'}),
]


def model(patch, options):
    return {'variant': 'debug', 'patch': patch, **options}


def clip(sides, options):
    channels = len(options.get('mean', IMAGENET_MEAN))
    return np.random.default_rng(0).integers(0, 256, (2, *sides, channels), np.uint8)


def grid(sides, patch):
    return tuple(side // p for side, p in zip(sides, patch, strict=True))


def masked_batch(sides, patch, options, mask):
    rows = [make_mask(rng=np.random.default_rng(i), grid=grid(sides, patch), **mask) for i in range(2)]
    return {'video': clip(sides, options), 'mask': np.stack(rows)}


def shapes(task, batch):
    """Checks a batch and traces a training step's loss and its gradient."""
    task.check(batch)
    params = jax.eval_shape(task.init, jax.random.key(0), batch)
    frozen = jax.eval_shape(task.frozen)
    rngs = {name: jax.random.key(0) for name in task.rng_names}
    grad = jax.grad(lambda p, f, b: task.loss(p, f, b, rngs, train=True), has_aux=True)
    grads, metrics = jax.eval_shape(grad, params, frozen, batch)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    return params, metrics


@pytest.mark.parametrize(
    ('sides', 'patch', 'options', 'kind', 'target'), [(*c, KINDS[i % 3], mae.TARGETS[i]) for i, c in enumerate(CLIPS)]
)
def test_pixels(sides, patch, options, kind, target):
    mask = {'kind': kind, 'ratio': 0.6}
    decoder = {**DECODER, 'pos_embed': options.get('pos_embed', 'sincos3d')}
    batch = masked_batch(sides, patch, options, mask)
    task = mae.Task(encoder=model(patch, options), decoder=decoder, mask=mask, target=target)
    params, _ = shapes(task, batch)
    channels = batch['video'].shape[-1]
    assert params['decoders_pixels']['head']['kernel'].shape == (16, np.prod(patch) * channels)
    outputs = jax.eval_shape(task.predict, params, {}, batch)
    assert outputs['loss'].shape == (2,)


@pytest.mark.parametrize(('sides', 'patch', 'options'), CLIPS)
def test_classification(sides, patch, options):
    mix = {'mixup': 0.8, 'cutmix': 1.0, 'group': 2}
    task = classify.Task(model=model(patch, options), num_classes=5, mix=mix)
    video = clip(sides, options)
    batch = {'video': video, 'label': np.array([0, 4]), 'erase': np.array([[0, 1, 5, 3], [0, 0, 0, 0]])}
    params, _ = shapes(task, batch)
    found = jax.eval_shape(task.predict, params, {}, {'video': np.stack([video] * 3, axis=1)})
    assert found['probability'].shape == (2, 5)


@pytest.mark.parametrize(('sides', 'patch', 'options'), [CLIPS[0], CLIPS[1], CLIPS[3]])
def test_distillation(sides, patch, options):
    pixels = {key: options[key] for key in ('mean', 'std') if key in options}
    image = model((1, *patch[1:]), {'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full', **pixels})
    teachers = {
        'image': {'model': image, 'checkpoint': 'random', 'decoder': DECODER},
        'video': {
            'model': model(patch, {'pos_embed': 'sincos1d', **pixels}),
            'checkpoint': 'random',
            'decoder': DECODER,
        },
    }
    mask = {'kind': 'tube', 'ratio': 0.5}
    task = mvd.Task(student=model(patch, options), teachers=teachers, mask=mask)
    batch = masked_batch(sides, patch, options, mask)
    params, metrics = shapes(task, batch)
    assert sorted(metrics) == ['loss', 'loss_image', 'loss_video']
    assert ('position_table' in params['backbone']) == (options.get('pos_embed') == 'learned')

    # An image teacher with smaller patches sees a smaller resize: the same grid, from another size.
    small = {**image, 'patch': (1, patch[1] // 2, patch[2])}
    task = dataclasses.replace(task, teachers={**teachers, 'image': {**teachers['image'], 'model': small}})
    frames, height, width = sides
    shapes(task, {**batch, 'teacher_video': clip((frames, height // 2, width), options)})
    with pytest.raises(UserError, match=r'the image teacher makes a .* token grid of its input, the student'):
        task.check(batch)


def test_real_numbers_of_a_grey_oblong_clip():
    sides, patch, options = CLIPS[1]
    mask = {'kind': 'random_clip', 'ratio': 0.5}
    task = mae.Task(encoder=model(patch, options), decoder=DECODER, mask=mask, target='mae_raw')
    batch = masked_batch(sides, patch, options, mask)

    def run(key):
        params = task.init(key, batch)
        return task.loss(params, {}, batch, {}, train=False)[0], task.reconstruct(params, batch, {}, False)

    loss, (prediction, target, masked) = quick_jit(run)(jax.random.key(0))
    assert np.isfinite(loss)
    assert prediction.shape == target.shape == (2, 4, 150)
    # Token 5 of a (2, 2, 2) grid is time 1, row 0, column 1: frames 3 to 5, rows 0 to 9, columns 5 to 9.
    np.testing.assert_array_equal(masked[0], np.flatnonzero(batch['mask'][0]))
    expected = (batch['video'][:, 3:, :10, 5:].astype(float) / 255 - 0.5) / 0.25
    targets = quick_jit(task.targets)(batch['video'])
    np.testing.assert_allclose(targets[:, 5], expected.reshape(2, -1), atol=1e-5)


def test_normalisation():
    video = clip((2, 4, 6), FIVE)
    expected = (video / 255 - np.array(FIVE['mean'])) / np.array(FIVE['std'])
    np.testing.assert_allclose(normalize(video, **FIVE), expected, atol=1e-5)
    rgb = clip((2, 4, 6), {})
    np.testing.assert_array_equal(normalize(rgb), normalize(rgb, IMAGENET_MEAN, IMAGENET_STD))


@pytest.mark.parametrize('options', [GREY, FIVE, {}])
def test_other_channels_than_the_models_are_refused_in_a_sentence(options):
    batch = {'video': np.zeros((2, 2, 16, 16, 2), np.uint8), 'label': np.array([0, 1])}
    task = classify.Task(model=model((2, 8, 8), options), num_classes=2)
    with pytest.raises(UserError, match=r'pixels of 2 channels cannot be normalised with mean \(0\.\d+.*one std per'):
        jax.eval_shape(task.init, jax.random.key(0), batch)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'mean': (0.5,)}, r'mean \(0\.5,\) and std \(0\.229, .*\) need one value per channel each'),
        ({'mean': (0.5,), 'std': (0.0,)}, 'std above 0'),
        ({'mean': (), 'std': ()}, 'need one value per channel'),
        ({'mean': 0.5, 'std': 0.5}, 'mean must be a tuple, not 0.5'),
    ],
)
def test_wrong_statistics(options, message):
    with pytest.raises(UserError, match=message):
        build_vit(model((2, 8, 8), options))


def test_weights_keep_the_statistics_they_were_trained_with():
    rgb, grey = build_vit(model((2, 8, 8), {})), build_vit(model((2, 8, 8), {'mean': [0.5], 'std': [0.25]}))
    hash(grey)  # as jit needs it; a checkpoint's JSON has lists
    meta = {'backbone': describe(grey)}
    check_backbone(meta, grey, 'model', 'there')
    with pytest.raises(
        UserError, match=r'there was trained with mean \[0\.5\] \(here \[0\.485, .*give the model section'
    ):
        check_backbone(meta, rgb, 'model', 'there')
    older = {'backbone': {key: value for key, value in describe(rgb).items() if key not in ('mean', 'std')}}
    check_backbone(older, rgb, 'model', 'there')
    with pytest.raises(UserError, match=r'mean \[0\.485'):
        check_backbone(older, grey, 'model', 'there')


def test_a_random_teacher_has_no_learned_positions():
    video = {'model': model((2, 8, 8), {'pos_embed': 'learned'}), 'checkpoint': 'random', 'decoder': DECODER}
    with pytest.raises(UserError, match='random teacher has learned nothing'):
        mvd.Task(student=model((2, 8, 8), {}), teachers={'video': video}, mask={'kind': 'tube', 'ratio': 0.5})
