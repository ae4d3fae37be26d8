"""Frozen tokenizers, and the training of one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import quick_jit

from mvdjax import config as configs
from mvdjax import trees
from mvdjax.errors import UserError
from mvdjax.evaluation.codebook import CodebookUse
from mvdjax.saving import Checkpoints
from mvdjax.tasks import tokenizer, tokenizer_vq
from mvdjax.tasks.base import describe, normalize
from mvdjax.train import train
from mvdjax.train_state import TrainState

MODEL = {'channels': (4, 8), 'blocks': 1, 'vocabulary': 16, 'code_dim': 4}
DALLE = {'kind': 'dalle', 'checkpoint': 'random', 'model': {'width': 4, 'vocabulary': 8}}
CODES = {'kind': 'vq', 'checkpoint': 'random', 'model': MODEL}


def clips(frames=4, size=(16, 24), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, frames, *size, 3)).astype(np.uint8)


@pytest.mark.parametrize(('section', 'side'), [(DALLE, 8), (CODES, 4)], ids=['dalle', 'vq'])
def test_tokens_come_in_frame_row_and_column_order(section, side):
    found = tokenizer.make_tokenizer(section)
    assert found.vocabulary == section['model']['vocabulary']
    assert found.sources() == []
    assert found.grid((2, 4, 16, 24, 3)) == (4, 16 // side, 24 // side)
    params = found.params()
    again = found.params()
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True))
    run = quick_jit(found.tokens)
    # Every place of every frame by itself, in flat colours that differ: reflections of the clip move its tokens along.
    video = np.random.default_rng(1).integers(0, 256, (2, 4, 1, 1, 3)).astype(np.uint8)
    video = np.broadcast_to(video, (2, 4, 16, 24, 3)).copy()
    tokens = np.asarray(run(params, video)).reshape(2, *found.grid(video.shape))
    turned = np.asarray(run(params, video[:, ::-1])).reshape(tokens.shape)
    np.testing.assert_array_equal(turned, tokens[:, ::-1])
    assert len(np.unique(tokens)) > 1
    features = quick_jit(found.features)(params, video)
    assert features.shape[0] == 2
    np.testing.assert_allclose(quick_jit(found.features)(params, video[:, ::-1]), features, rtol=1e-3, atol=1e-5)
    single = np.asarray(run(params, video[:, 1:2])).reshape(2, *tokens.shape[2:])
    np.testing.assert_array_equal(single, tokens[:, 1])


@pytest.mark.parametrize('at_once', [0, 1, 2, 3, 99])
def test_frames_at_a_time_change_nothing(at_once):
    video = clips(6).astype(np.float32)
    found = tokenizer.by_frames(lambda x: x.mean((1, 2)) + jnp.arange(3), video, at_once)
    np.testing.assert_allclose(found, video.mean((2, 3)) + np.arange(3), rtol=1e-5)


@pytest.mark.parametrize(
    ('section', 'message'),
    [
        ({'kind': 'bpe'}, "tokenizer.kind must be one of dalle, vq, not 'bpe'"),
        ({**DALLE, 'speed': 1}, "no key 'speed'"),
        ({**CODES, 'model': {'vocabulari': 8}}, "no key 'vocabulari'; did you mean 'vocabulary'"),
        ({**DALLE, 'frames_at_once': -1}, 'frames_at_once must be at least 0, not -1'),
        ({**CODES, 'model': {'channels': ()}}, 'needs channels for each level'),
        ({**CODES, 'model': {'channels': (8,), 'vocabulary': 0}}, 'a vocabulary and a code_dim'),
    ],
)
def test_wrong_sections_are_refused(section, message):
    with pytest.raises(UserError, match=message):
        tokenizer.make_tokenizer(section)


def test_a_codebook_takes_its_model_from_its_checkpoint(tmp_path):
    def write(name, task_name, model):
        config = {'task_name': task_name, 'task': {'model': {**model, 'dtype': 'float32'}}}
        meta = {'schema_version': 1, 'config': config, 'backbone': describe(tokenizer.build_vq(MODEL))}
        with Checkpoints(str(tmp_path / name), 1) as writer:
            params = {'x': np.zeros(1, np.float32)}
            writer.save(TrainState(np.int32(1), np.int32(0), params, {}, None), json.loads(json.dumps(meta)))
        return {'kind': 'vq', 'checkpoint': str(tmp_path / name), 'model': {'dtype': 'bfloat16'}}

    section = write('codes', 'tokenizer_vq', MODEL)
    found = tokenizer.make_tokenizer(section)
    assert found.codebook() == tokenizer.build_vq({**MODEL, 'dtype': 'bfloat16'})
    assert found.vocabulary == 16
    stated = {**section, 'checkpoint': 'runs/none', 'model': MODEL}
    assert tokenizer.make_tokenizer(stated).vocabulary == 16  # and no checkpoint need exist
    with pytest.raises(UserError, match='no checkpoint in runs/none'):
        tokenizer.make_tokenizer({**stated, 'model': {}})
    with pytest.raises(UserError, match='is a mae checkpoint; a vq tokenizer needs one of tokenizer_vq'):
        tokenizer.make_tokenizer(write('images', 'mae', {'variant': 'B'}))


def test_videos_without_a_grid_are_refused():
    with pytest.raises(UserError, match=r'does not divide into patches of \(1, 8, 8\)'):
        tokenizer.make_tokenizer(DALLE).grid((2, 4, 20, 24, 3))


@pytest.fixture(scope='module')
def task():
    return tokenizer_vq.Task(MODEL)


@pytest.fixture(scope='module')
def params(task):
    return quick_jit(task.init)(jax.random.key(0), {'video': clips()})


@pytest.fixture(scope='module')
def computed(task, params):
    """Everything in one compilation."""

    def everything(p, video):
        images = normalize(video, (0.5,) * 3, (0.5,) * 3).reshape(-1, 16, 24, 3)
        output, info = task.backbone().apply({'params': p}, images)
        total, metrics = task.loss(p, {}, {'video': video}, {}, True)

        def table_gradient(spare):
            other = dataclasses.replace(task, spare=spare)
            return jax.grad(lambda q: other.loss(q, {}, {'video': video}, {}, True)[0])(p)['code_table']

        pixels, codes = task.reconstruct(p, video)
        return {
            'images': images,
            'output': output,
            'info': info,
            'total': total,
            'metrics': metrics,
            'with_spare': table_gradient(0.3),
            'without': table_gradient(0.0),
            'pixels': pixels,
            'codes': codes,
            'predicted': task.predict(p, {}, {'video': video}),
        }

    return jax.device_get(quick_jit(everything)(params, clips()))


def test_the_loss_is_the_sum_of_its_parts(computed):
    values = {name: float(s) / float(c) for name, (s, c) in computed['metrics'].items()}
    info = computed['info']
    np.testing.assert_allclose(
        values['loss_pixels'], np.mean(np.square(computed['output'] - computed['images'])), rtol=1e-4
    )
    apart = np.mean(np.sum(np.square(info['vectors'] - info['chosen']), -1))
    np.testing.assert_allclose([values['loss_commitment'], values['loss_codebook']], apart, rtol=1e-4)
    used = np.unique(info['tokens'])
    assert len(used) < MODEL['vocabulary']  # the test would show little otherwise
    flat = info['vectors'].reshape(-1, MODEL['code_dim'])
    nearest = np.square(info['codes'][:, None] - flat[None]).sum(-1).min(1)
    nearest[used] = 0
    np.testing.assert_allclose(values['loss_spare'], nearest.mean(), rtol=1e-4)
    expected = values['loss_pixels'] + 1.25 * apart + 0.3 * nearest.mean()
    np.testing.assert_allclose([computed['total'], values['loss']], expected, rtol=1e-4)
    share = np.bincount(np.ravel(info['tokens']), minlength=16) / info['tokens'].size
    share = share[share > 0]
    np.testing.assert_allclose(values['perplexity'], np.exp(-np.sum(share * np.log(share))), rtol=1e-4)


def test_unused_codes_are_drawn_to_their_nearest_vectors_and_used_ones_to_theirs(computed, params):
    with_spare, without, info = computed['with_spare'], computed['without'], computed['info']
    used = np.isin(np.arange(16), np.unique(info['tokens']))
    np.testing.assert_allclose(without[~used], 0, atol=1e-7)  # without it they would stay where they are
    assert (np.abs(with_spare[~used]).max(1) > 0).all()
    np.testing.assert_allclose(with_spare[used], without[used], rtol=1e-4, atol=1e-7)
    # A small step against the gradient brings an unused code nearer to the vector that was nearest to it.
    flat = info['vectors'].reshape(-1, 4)
    codes = np.asarray(params['code_table'])
    moved = codes - 1e-3 * with_spare

    def cosine(table):
        return (table / np.linalg.norm(table, axis=1, keepdims=True)) @ flat.T

    nearest = cosine(codes).argmax(1)
    rows = np.flatnonzero(~used)
    assert (cosine(moved)[rows, nearest[rows]] > cosine(codes)[rows, nearest[rows]]).all()


def test_predictions_say_how_good_the_reconstruction_is(computed):
    pixels, found = computed['pixels'], computed['predicted']
    assert pixels.shape == clips().shape
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    error = np.mean(np.square(pixels - clips() / 255.0), axis=(1, 2, 3, 4))
    np.testing.assert_allclose(found['psnr'], -10 * np.log10(error), rtol=1e-4)
    np.testing.assert_array_equal(found['tokens'], computed['codes'].reshape(2, -1))


def test_a_perceptual_encoder_looks_at_the_features(params):
    vit = {'variant': 'debug', 'patch': (1, 8, 8), 'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full'}
    task = tokenizer_vq.Task(MODEL, perceptual={'model': vit, 'checkpoint': 'random', 'weight': 0.5})
    batch = {'video': clips()}
    task.check(batch)
    assert task.sources() == []
    frozen = task.frozen()
    plain = dataclasses.replace(task, perceptual=None)
    (total, metrics), (without, _) = quick_jit(
        lambda p, frozen, batch: (task.loss(p, frozen, batch, {}, True), plain.loss(p, {}, batch, {}, True))
    )(params, frozen, batch)
    features = float(metrics['loss_features'][0]) / float(metrics['loss_features'][1])
    assert 0 < features < 10
    np.testing.assert_allclose(total - without, 0.5 * features, rtol=1e-3)
    with pytest.raises(UserError, match=r'does not divide into patches of \(1, 8, 8\)'):
        task.check({'video': clips(size=(12, 24))})
    with pytest.raises(UserError, match='takes an image encoder'):
        tokenizer_vq.Task(MODEL, perceptual={'model': {**vit, 'patch': (2, 8, 8)}, 'checkpoint': 'random'})


def test_batches_and_options_that_do_not_fit_are_refused(task):
    with pytest.raises(UserError, match=r'does not divide into patches of \(1, 4, 4\)'):
        task.check({'video': clips(size=(18, 24))})
    with pytest.raises(UserError, match='images have 1 channels'):
        task.check({'video': clips()[..., :1]})
    with pytest.raises(UserError, match='must not be negative'):
        tokenizer_vq.Task(MODEL, spare=-1.0)


def test_the_use_of_a_codebook_counts_real_samples_only():
    use = CodebookUse(5)
    assert all(np.isnan(value) for value in use.result().values())
    tokens = np.array([[0, 0, 1, 1], [3, 3, 3, 3], [4, 4, 4, 4]])
    psnr = np.array([20.0, 30.0, 99.0])
    use.update({'tokens': tokens, 'psnr': psnr}, {'valid': np.array([True, True, False])})
    found = use.result()
    assert found['psnr'] == 25.0
    assert found['codes_used'] == 3.0
    np.testing.assert_allclose(found['perplexity'], np.exp(0.5 * np.log(4) + 0.5 * np.log(2)))


@pytest.fixture(scope='module')
def trained(demo_data, tmp_path_factory):
    """Workdirs of a few steps of the demo's tokenizer on one device and on all: {devices: (workdir, numbers)}."""
    found = {}
    for devices in {1, jax.device_count()}:
        workdir = tmp_path_factory.mktemp(f'tokenizer_{devices}')
        overrides = [f'data.files={demo_data}/images.txt', 'run.epochs=None', 'run.steps=3', 'run.global_batch=8']
        overrides += [f'mesh.devices={devices}', 'run.log_every=1', 'optim.warmup_epochs=0', 'run.save_every=2']
        overrides += ['task.model.channels=(4, 8, 8)', 'task.model.vocabulary=32']
        config = configs.load('configs/bevt/demo_tokenizer.py', [f'--config.{text}' for text in overrides])
        found[devices] = str(workdir), train(config, str(workdir))
    return found


def test_training_is_the_same_on_any_number_of_devices(trained):
    (one, *others) = (numbers for _, numbers in trained.values())
    assert one['grad_norm'] > 0
    for other in others:
        for name in ('loss', 'loss_spare', 'perplexity', 'grad_norm'):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-3, err_msg=name)


def test_a_trained_codebook_is_a_tokenizer(trained):
    workdir = trained[1][0]
    model = {'channels': (4, 8, 8), 'blocks': 1, 'vocabulary': 32, 'code_dim': 8}
    found = tokenizer.make_tokenizer({'kind': 'vq', 'checkpoint': workdir, 'model': model})
    assert found.sources() == [workdir]
    params = found.params()
    assert not any(name.startswith(('decoder', 'from_code')) for name in trees.flatten(params))
    video = clips()
    tokens = np.asarray(quick_jit(found.tokens)(params, video))
    assert tokens.shape == (2, 4 * 2 * 3)
    assert tokens.max() < 32
    with pytest.raises(UserError, match='does not fit the tokenizer'):
        tokenizer.make_tokenizer({'kind': 'vq', 'checkpoint': workdir, 'model': {**model, 'vocabulary': 64}}).params()
    with pytest.raises(UserError, match='is a VQ tokenizer, the tokenizer here is a DALL-E encoder'):
        tokenizer.make_tokenizer({**DALLE, 'checkpoint': workdir}).params()
    other = {**model, 'mean': (0.0, 0.0, 0.0)}
    with pytest.raises(UserError, match='was trained with mean'):
        tokenizer.make_tokenizer({'kind': 'vq', 'checkpoint': workdir, 'model': other}).params()
