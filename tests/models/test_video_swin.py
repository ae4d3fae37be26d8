"""Video Swin against the published implementation, and where the two are meant to differ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import assert_array, golden, model_arrays, normalize_clip, quick_jit, to_ours, weight

from mvdjax import trees
from mvdjax.models.bevt import MaskedSwin, SwinClassifier
from mvdjax.tasks.base import build_swin

# float32 noise that the golden README states, 4e-6 on tokens of size 5, and as much again for ours
NOISE = {'rtol': 2e-6, 'atol': 8e-6}
CASES = (
    'backbone3d_tiny',
    'backbone3d_tiny_pad',
    'backbone3d_tiny_short',
    'backbone3d_tiny_aligned',
    'backbone2d_tiny',
    'backbone2d_tiny_window2',
)


def swin(config, **options):
    """The backbone of a golden configuration."""
    names = {'embed_dim': 'width', 'num_heads': 'heads', 'window_size': 'window', 'patch_size': 'patch'}
    section = {names[key]: tuple(np.atleast_1d(config[key]).tolist()) for key in names}
    return build_swin({**section, 'width': config['embed_dim'], 'depths': tuple(config['depths']), **options})


def both_streams(backbone, vocabulary=4):
    """Abstract parameters of a masked model of both streams, without its head."""
    video, images, mask = jnp.zeros((1, 8, 64, 64, 3)), jnp.zeros((1, 1, 64, 64, 3)), jnp.zeros((1, 1, 1, 1), bool)
    model = MaskedSwin(backbone, vocabulary)
    tree = jax.eval_shape(
        lambda key: model.init(key, video, mask, images, mask, method='two_streams')['params'], jax.random.key(0)
    )
    return {name: child for name, child in tree.items() if name != 'lm_head'}


@functools.cache
def case_params(window, shapes):
    """The README's weights for a masked model of both streams; most cases share them."""
    config = golden('bevt/backbone3d_tiny')['config'] | {'window_size': window}
    weights = {name: weight(name, shape) for name, shape in shapes}
    return to_ours('bevt', weights, both_streams(swin(config)))


@pytest.mark.parametrize('name', CASES)
def test_backbone(name):
    case, arrays = golden(f'bevt/{name}'), model_arrays(f'bevt/{name}')
    image = case['kind'] == 'backbone_2d'
    backbone = swin(case['config'])
    shapes = tuple((name, tuple(shape)) for name, shape in case['shapes'].items())
    params = case_params(tuple(case['config']['window_size']), shapes)
    assert trees.count(params) == case['n_params']
    head = {'kernel': jnp.zeros((backbone.out_width, 4)), 'bias': jnp.zeros(4)}
    size = (1, *case['size']) if image else case['size']
    video, mask = normalize_clip(case['seed'], case['batch'], *size), arrays['bool_masked_pos']
    drawn = np.random.RandomState(case['mask_seed']).rand(case['batch'], *case['mask_grid']) < case['mask_ratio']
    np.testing.assert_array_equal(mask, drawn)
    mask = mask.reshape(-1, 1, *mask.shape[1:]) if image else mask

    @quick_jit
    def run(params, video, mask):
        return MaskedSwin(backbone, 4).apply({'params': params}, video, mask, image=image)[1]

    for given, suffix in ((np.zeros_like(mask), ''), (mask, '_masked')):
        info = run({**params, 'lm_head': head}, video, given)
        keys = [key for key in case['arrays'] if key.endswith('_masked') == bool(suffix) and key != 'bool_masked_pos']
        assert 'tokens' + suffix in keys
        for key in keys:
            layer = key.removesuffix('_masked')
            layer = f'stage{int(layer[5:]) + 1}' if layer.startswith('stage') else layer
            got = np.asarray(info[layer])
            if layer == 'tokens':
                got = got.reshape(got.shape[0], -1, got.shape[-1])
            else:
                got = np.moveaxis(got[:, 0] if image else got, -1, 1)
            assert_array(got, f'bevt/{name}', key, **NOISE)


def test_published_sizes():
    """Parameters of the published Swin-B models, and that the tiny names go both ways."""
    names = golden('bevt/names_swin_b')
    counts = names['parameters']
    video, images = (jax.ShapeDtypeStruct((1, t, 224, 224, 3), jnp.float32) for t in (16, 1))
    mask = jnp.zeros((1, 1, 14, 14), bool)
    model = MaskedSwin(build_swin({'variant': 'B'}), 8192)
    tree = jax.eval_shape(
        lambda k, v, i: model.init(k, v, mask, i, mask, method='two_streams')['params'],
        jax.random.key(0),
        video,
        images,
    )
    assert trees.count(tree) == counts['two_stream_backbone'] + counts['lm_head']
    model = SwinClassifier(build_swin({'variant': 'B', 'window': (16, 7, 7)}), 174)
    tree = jax.eval_shape(lambda k, v: model.init(k, v)['params'], jax.random.key(0), video)
    assert trees.count(tree) == counts['finetune']
