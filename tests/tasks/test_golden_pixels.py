"""MAE and VideoMAE against the published code: encoder, prediction, pixel targets, loss and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import (
    FORWARD,
    GRADIENT,
    LOSS,
    assert_array,
    assert_close,
    assert_summaries,
    clip,
    full_arrays,
    golden,
    model_arrays,
    quick_jit,
    to_ours,
    to_torch,
    weight,
)

from mvdjax import losses, train_state, trees
from mvdjax.models.embed import position_table
from mvdjax.tasks import mae
from mvdjax.tasks.base import normalize


def run(task, kind, case, video, mask):
    """Everything the case stores, by one compiled function; gradients under PyTorch names."""
    batch = {'video': video, 'mask': mask}
    task.check(batch)
    weights = fold({n: weight(n, s) for n, s in case['shapes'].items()})
    params = to_ours(kind, weights, train_state.abstract_params(task, batch))

    def everything(params):
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, {}, batch, {}, train=True)
        prediction, target, _ = task.reconstruct(params, batch, {}, train=False)
        masked = task.num_masked(video.shape)
        _, info = task.model().apply({'params': params}, normalize(video), mask, masked)
        return loss, grads, prediction, target, info['encoded']

    loss, grads, prediction, target, encoded = quick_jit(everything)(params)
    grads = to_torch(kind, grads, {n: w.shape for n, w in weights.items()})
    return trees.count(params), loss, unfold(case, grads), prediction, target, encoded


def fold(weights):
    """Multiplies LayerScale factors (gamma_1, gamma_2) into the layers before them.

    No published checkpoint has them and so neither have our models; one golden case does.
    """
    folded = {n: w for n, w in weights.items() if 'gamma' not in n}
    for name, gamma in weights.items():
        if 'gamma' in name:
            for part in ('weight', 'bias'):
                scaled = scaled_layer(name, part)
                folded[scaled] = (folded[scaled].T * gamma).T
    return folded


def scaled_layer(gamma_name, part):
    block, gamma = gamma_name.rsplit('.', 1)
    return f'{block}.{"attn.proj" if gamma == "gamma_1" else "mlp.fc2"}.{part}'


def unfold(case, grads):
    """Gradients with respect to the unfolded parameters, by the chain rule."""
    unfolded = dict(grads)
    for name in (n for n in case['shapes'] if 'gamma' in n):
        gamma, unfolded[name] = weight(name, case['shapes'][name]), 0.0
        for part in ('weight', 'bias'):
            layer = scaled_layer(name, part)
            original = weight(layer, case['shapes'][layer])
            unfolded[name] += (original * grads[layer]).reshape(len(gamma), -1).sum(axis=1)
            unfolded[layer] = (grads[layer].T * gamma).T
    return unfolded


def assert_loss_and_gradients(name, loss, grads):
    case = golden(name)
    assert_close(loss, case['loss'], name, 'loss', **LOSS)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads.values()))
    assert_close(norm, case['grad_norm'], name, 'gradient norm', rtol=GRADIENT)
    assert_summaries(grads, case['grads'], name, 'gradients')


@pytest.mark.parametrize('name', ['data/videomae_tiny', 'data/videomae_tiny_raw'])
def test_videomae(name):
    case = golden(name)
    config = case['config']
    sizes = {
        part: {'width': config[f'{part}_embed_dim'], 'depth': config[f'{part}_depth'], 'pos_embed': 'sincos1d'}
        | {'heads': config[f'{part}_num_heads']}
        for part in ('encoder', 'decoder')
    }
    task = mae.Task(
        encoder={**sizes['encoder'], 'patch': (case['tubelet'], case['patch'], case['patch'])},
        decoder={**sizes['decoder'], 'embed_bias': False},
        mask={'kind': {'tube': 'tube', 'random': 'random_clip'}[case['mask']], 'ratio': case['ratio']},
        target='videomae' if case['normlize_target'] else 'videomae_raw',
    )
    video = clip(case['seed'], case['batch'], case['frames'], case['img'])
    count, loss, grads, prediction, target, encoded = run(task, 'videomae', case, video, model_arrays(name)['mask'])
    gammas = sum(s[0] for n, s in case['shapes'].items() if 'gamma' in n)
    assert count + gammas == case['n_params']
    assert_array(encoded, name, 'encoder')
    assert_array(prediction, name, 'prediction')
    assert_array(target, name, 'target')
    assert_loss_and_gradients(name, loss, grads)


@pytest.mark.parametrize('name', ['data/mae_tiny', 'data/mae_tiny_norm_pix'])
def test_mae(name):
    case, stored = golden(name), model_arrays(name)
    config, mask = case['config'], stored['mask']
    task = mae.Task(
        encoder={
            'width': config['embed_dim'],
            'depth': config['depth'],
            'heads': config['num_heads'],
            'patch': (1, case['patch'], case['patch']),
            'pos_embed': 'sincos2d',
            'cls_token': True,
            'qkv_bias': 'full',
        },
        decoder={
            'width': config['decoder_embed_dim'],
            'depth': config['decoder_depth'],
            'heads': config['decoder_num_heads'],
            'pos_embed': 'sincos2d',
            'qkv_bias': 'full',
        },
        mask={'kind': 'random', 'ratio': case['mask_ratio']},
        target='mae' if case['norm_pix_loss'] else 'mae_raw',
    )
    video = clip(case['seed'], case['batch'], 1, case['img'])
    _, loss, grads, prediction, target, encoded = run(task, 'mae', case, video, mask)
    np.testing.assert_array_equal(encoded.shape, stored['encoder'].shape)
    for b, shuffled in enumerate(case['ids_shuffle']):  # the original keeps its tokens in shuffled order
        kept = np.argsort(shuffled[: case['len_keep']])
        assert_close(encoded[b], stored['encoder'][b, np.concatenate([[0], 1 + kept])], name, 'encoder', **FORWARD)
    for got, key in ((prediction, 'pred'), (target, 'target_patches')):
        info = case['arrays'][key]
        whole = np.full(info['shape'], np.nan)
        whole[mask] = np.asarray(got).reshape(-1, info['shape'][-1])
        thinned = whole.reshape(-1)[:: info['stride']]
        masked = ~np.isnan(thinned)
        assert masked.sum() == got.size / info['stride']
        if key == 'pred' or not case['norm_pix_loss']:  # stored before normalisation: the loss holds the rest
            assert_close(thinned[masked], stored[key][masked], name, key, **FORWARD)
    assert_loss_and_gradients(name, loss, grads)
    key_bias = case['grads']['blocks.0.attn.qkv.bias']['norm'] * 1e-5
    assert np.abs(np.split(grads['blocks.0.attn.qkv.bias'], 3)[1]).max() < key_bias  # softmax does not see it


@pytest.mark.parametrize(('key', 'part'), [('pos_embed', 'embed_dim'), ('decoder_pos_embed', 'decoder_embed_dim')])
def test_mae_position_table(key, part):
    case, stored = golden('data/mae_tiny'), model_arrays('data/mae_tiny')
    table = position_table('sincos2d', (1, 4, 4), case['config'][part])
    assert_close(table, stored[key][0, 1:], 'data/mae_tiny', key, **FORWARD)
    assert not stored[key][0, 0].any()  # the class token has no position


@pytest.mark.parametrize('name', ['data/videomae_pixels', 'data/videomae_pixels_patch8'])
@pytest.mark.parametrize('normalized', [True, False])
def test_videomae_pixel_targets(name, normalized):
    case, stored = golden(name), full_arrays(name)
    patch = (case['tubelet'], case['patch'], case['patch'])
    task = mae.Task(
        encoder={'variant': 'debug', 'patch': patch},
        decoder={},
        mask={'kind': 'tube', 'ratio': 0.5},
        target='videomae' if normalized else 'videomae_raw',
    )
    video, mask = stored['video_u8'], stored['mask']
    target = np.asarray(task.targets(jnp.asarray(video)))[mask].reshape(stored['prediction'].shape)
    want = stored['target_normalized' if normalized else 'target_raw']
    flat = case['constant_token']
    assert flat['token'] == 0
    ordinary = np.ones(want.shape[:2], bool)
    ordinary[flat['sample'], 0] = not mask[flat['sample'], 0]
    assert_close(target[ordinary], want[ordinary], name, 'targets', **FORWARD)
    np.testing.assert_allclose(target[~ordinary], want[~ordinary], atol=0.1)  # rounding noise over 1e-6, see the file
    loss = losses.per_sample(losses.l2(stored['prediction'], target)).mean()
    assert_close(loss, case['loss_normalized' if normalized else 'loss_raw'], name, 'loss', **LOSS)


@pytest.mark.parametrize(('target', 'loss_key'), [('mae', 'loss_norm_pix'), ('mae_raw', 'loss')])
def test_mae_pixel_targets(target, loss_key):
    case, stored = golden('data/mae_loss'), full_arrays('data/mae_loss')
    task = mae.Task(
        encoder={'variant': 'debug', 'patch': (1, case['patch'], case['patch'])},
        decoder={},
        mask={'kind': 'random', 'ratio': 0.75},
        target=target,
    )
    found = np.asarray(task.targets(jnp.asarray(stored['images_u8'])))
    if target == 'mae_raw':
        assert_close(found, stored['patchified'], 'data/mae_loss', 'targets', **FORWARD)
    errors = np.asarray(losses.l2(stored['prediction'], found))[stored['mask']]
    assert_close(errors.mean(), case[loss_key], 'data/mae_loss', 'loss', **LOSS)


def test_an_unknown_target_is_refused():
    with pytest.raises(mae.UserError, match=r"task\.target must be one of mae, .* not 'pixels'"):
        mae.Task(encoder={}, decoder={}, mask={}, target='pixels')
