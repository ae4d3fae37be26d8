"""Masked token prediction by itself: batches and their checks, losses, FLOPs. Several devices: test_sharding.py."""

import dataclasses

import jax
import numpy as np
import pytest
from golden_weights import quick_jit
from traced_flops import at_full_precision, products

from mvdjax import losses, metrics
from mvdjax.errors import UserError
from mvdjax.tasks import bevt, classify, tokenizer_vq

SWIN = {'width': 16, 'depths': (1, 1), 'heads': (2, 2), 'window': (2, 2, 2)}
VQ = {'kind': 'vq', 'checkpoint': 'random', 'model': {'channels': (8, 8), 'blocks': 1, 'vocabulary': 32, 'code_dim': 4}}
DALLE = {'kind': 'dalle', 'checkpoint': 'random', 'model': {'width': 8, 'blocks': 1, 'vocabulary': 32}}
BOTH = {'video': 1.0, 'image': 0.5}
TASK = bevt.Task(SWIN, VQ, BOTH)


def part(frames, rows, seed=0, size=32, slots=None):
    """A stream's batch: 8 x 8 places a frame."""
    rng = np.random.RandomState(seed)
    slots = slots or max(1, frames // 2)
    return {
        'video': rng.randint(0, 256, (rows, frames, size, size, 3)).astype(np.uint8),
        'token_video': rng.randint(0, 256, (rows, frames, 32, 32, 3)).astype(np.uint8),
        'mask': rng.rand(rows, slots * 64) < 0.4,
    }


def both(clips=2, images=4):
    return {'video': part(4, clips), 'image': part(1, images, 1)}


@pytest.mark.parametrize('weights', [{}, {'audio': 1.0}, {'video': 0.0, 'image': 1.0}])
def test_weights_that_cannot_be(weights):
    with pytest.raises(UserError, match=r"task\.weights takes 'video' and 'image', at least one"):
        bevt.Task(SWIN, VQ, weights)


@pytest.mark.parametrize(
    ('weights', 'batch', 'message'),
    [
        (BOTH, lambda: part(4, 2), r"task\.weights has 'image', but the data has no such stream: add config\.streams"),
        ({'image': 1.0}, lambda: part(4, 2), "the stream 'image' takes images, its data makes clips of 4 frames"),
        ({'video': 1.0}, both, r'the batches have streams video, image, task\.weights video'),
        (BOTH, lambda: {**both(), 'audio': {}}, r'the batches have streams video, image, audio'),
        ({'video': 1.0}, lambda: part(4, 2, size=48), 'tokenizer makes a 4 x 8 x 8 grid .* predicts 4 x 12 x 12'),
        ({'video': 1.0}, lambda: part(4, 2, slots=4), 'makes masks of 256 places, the task needs 2 x 8 x 8'),
    ],
)
def test_batches_that_do_not_fit(weights, batch, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TASK, weights=weights).check(batch())


def test_batches_that_fit_and_the_parameters_of_each_task():
    TASK.check(both())
    paths = {}
    for weights, batch in ((BOTH, both()), ({'video': 1.0}, part(4, 2)), ({'image': 1.0}, part(1, 2))):
        task = dataclasses.replace(TASK, weights=weights)
        task.check(batch)
        tree = jax.eval_shape(task.init, jax.random.key(0), batch)
        paths[tuple(weights)] = {
            '/'.join(p.key for p in path[:2]) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
        }
    video, image = paths['video',], paths['image',]
    assert video | image == paths['video', 'image']
    assert {p.split('/')[0] for p in video - image} == {'backbone', 'fpn_s', 'fpn_t', 'lm_down_st'}
    assert {p.split('/')[0] for p in image - video} == {'backbone', 'fpn', 'lm_down'}
    assert 'backbone/patch_embed' in video - image
    assert 'backbone/patch_embed_2d' in image - video


def test_cross_entropy_of_tokens():
    scores = np.random.RandomState(0).standard_normal((2, 3, 5)).astype(np.float32) * 10
    tokens = np.array([[0, 1, 4], [2, 2, 3]])
    log = scores - np.log(np.exp(scores.astype(np.float64)).sum(-1, keepdims=True))
    wanted = -np.take_along_axis(log, tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(losses.token_cross_entropy(scores, tokens), wanted, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_all_hidden_tokens_and_predict_over_each_sample():
    batch = both()
    params = quick_jit(TASK.init)(jax.random.key(0), batch)
    frozen = TASK.frozen()
    run = quick_jit(lambda p, f, b: TASK.loss(p, f, b, {}, False))
    loss, values = run(params, frozen, batch)
    means = metrics.means(jax.device_get(values))
    assert float(loss) == pytest.approx(means['loss_video'] + 0.5 * means['loss_image'], rel=1e-6)
    assert float(values['loss_video'][1]) == 2 * batch['video']['mask'].sum()  # a slot is two frames of tokens
    found = quick_jit(TASK.predict)(params, frozen, batch['image'])  # flat, of one frame: images
    counts = batch['image']['mask'].sum(axis=1)
    assert np.average(found['loss'], weights=counts) == pytest.approx(means['loss_image'], rel=1e-5)
    assert np.average(found['accuracy'], weights=counts) == pytest.approx(means['accuracy_image'], abs=1e-6)
    assert found['loss'].shape == (4,)
    hidden = {name: {**rows, 'mask': np.zeros_like(rows['mask'])} for name, rows in batch.items()}
    loss, values = run(params, frozen, hidden)  # nothing to predict
    assert (float(loss), float(values['loss_image'][1])) == (0.0, 0.0)


def traced(task, batch):
    """FLOPs of the products of a training step, but for those that spread bias tables."""

    def counts(eqn):  # the search for the nearest code is at full precision, too
        return not at_full_precision(eqn) or eqn.outvars[0].aval.shape[-1] == VQ['model']['vocabulary']

    rngs = {name: jax.random.key(0) for name in task.rng_names}
    params = jax.eval_shape(task.init, jax.random.key(0), batch)
    with jax.default_matmul_precision('default'):
        step = jax.make_jaxpr(lambda p, f, b: jax.grad(lambda q: task.loss(q, f, b, rngs, True)[0])(p))
        return products(step(params, task.abstract_frozen(batch), batch).jaxpr, counts)


@pytest.mark.parametrize('tokenizer', [VQ, DALLE], ids=['vq', 'dalle'])
def test_flops_count_every_product_of_a_step(tokenizer):
    task = bevt.Task(SWIN, tokenizer, BOTH)
    batch = both()
    if tokenizer is DALLE:  # 8 x 8 pixels a code
        batch = {name: {**p, 'token_video': p['token_video'].repeat(2, 2).repeat(2, 3)} for name, p in batch.items()}
    task.check(batch)
    found = task.flops(batch)
    assert set(found) == {'tokenizer', 'video_encoder', 'video_decoder', 'image_encoder', 'image_decoder'}
    assert sum(found.values()) == pytest.approx(traced(task, batch), rel=1e-9)


@pytest.mark.parametrize('spare', [0.0, 0.3])
def test_flops_of_a_codebook_count_every_product_of_a_step(spare):
    image = {'width': 16, 'depth': 1, 'heads': 2, 'patch': (1, 8, 8), 'pos_embed': 'sincos2d'}
    perceptual = {'model': image, 'checkpoint': 'random'} if spare else None
    task = tokenizer_vq.Task({**VQ['model'], 'channels': (8, 16)}, spare=spare, perceptual=perceptual)
    batch = {'video': part(2, 3)['video']}
    assert sum(task.flops(batch).values()) == pytest.approx(traced(task, batch), rel=1e-9)


def test_flops_of_a_classifier_on_a_swin_and_what_its_section_refuses():
    task = classify.Task({'kind': 'swin', **SWIN}, 5)
    batch = {'video': part(4, 2)['video'], 'label': np.zeros(2, np.int32)}
    assert sum(task.flops(batch).values()) == pytest.approx(traced(task, batch), rel=1e-9)
    with pytest.raises(UserError, match="has kind 'swim'; did you mean 'swin'"):
        classify.Task({'kind': 'swim', **SWIN}, 5).backbone()
    with pytest.raises(UserError, match=r"task\.head_scale is of a ViT's head"):
        classify.Task({'kind': 'swin', **SWIN}, 5, head_scale=1.0).backbone()
