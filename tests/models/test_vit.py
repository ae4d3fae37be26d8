"""Sizes, layouts and options of the models: what the golden cases hold fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import quick_jit

from mvdjax import trees
from mvdjax.errors import UserError
from mvdjax.models.layers import Transformer, drop_path
from mvdjax.models.masked_vit import split_mask
from mvdjax.models.vit import VARIANTS, Classifier, ViT, variant
from mvdjax.tasks.base import build_decoder, build_vit

# Classifiers of 400 classes; the publications' tables say 22M, 87M, 305M and 633M for S, B, L and H.
PARAMETERS = {
    'debug': 87_792,
    'nano': 633_520,
    'tiny': 5_708_752,
    'S': 22_033_936,
    'B': 86_534_800,
    'L': 304_270_736,
    'H': 632_119_440,
}


@pytest.mark.parametrize('name', VARIANTS)
def test_parameter_count(name):
    model = Classifier(ViT(**variant(name), final_norm=False), 400)
    video = jax.ShapeDtypeStruct((1, 16, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video)['params']
    d, depth = VARIANTS[name].width, VARIANTS[name].depth
    block = 12 * d * d + 2 * d + 2 * 2 * d + d + 5 * d  # matrices, q and v bias, norms, output bias, MLP biases
    by_hand = (2 * 16 * 16 * 3 * d + d) + depth * block + 2 * d + (400 * d + 400)
    assert trees.count(params) == by_hand == PARAMETERS[name]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def tiny(**options):
    return ViT(**{'width': 32, 'depth': 3, 'heads': 2, 'patch': (2, 8, 8)} | options)


@pytest.fixture(scope='module')
def clip():
    return jax.random.normal(jax.random.key(1), (2, 4, 16, 24, 3))


def random_params(model, *args):
    """Parameters with no zeros or ones left, biases and scales included."""
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), *args))['params']
    flat = {}
    for number, (path, leaf) in enumerate(trees.flatten(abstract).items()):
        x = np.random.RandomState(number).standard_normal(leaf.shape).astype(np.float32)
        flat[path] = 1 + 0.1 * x if path.endswith('scale') else 0.2 * x
    return trees.unflatten(flat)


@pytest.fixture(scope='module')
def params(clip):
    return random_params(tiny(), clip)


def loss_and_gradient(model):
    def loss(params, clip):
        return jnp.mean(jnp.square(model.apply({'params': params}, clip)[0] - 1.0))

    return quick_jit(jax.value_and_grad(loss))


@pytest.fixture(scope='module')
def reference(params, clip):
    """Loss and gradient of the plain, scanned, float32 model."""
    return loss_and_gradient(tiny())(params, clip)


def assert_trees_close(got, want, tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.max(jnp.abs(b))))


def test_unrolled_equals_scanned_on_the_same_parameters(params, clip, reference):
    loss, grads = loss_and_gradient(tiny(scan=False))(params, clip)
    np.testing.assert_allclose(loss, reference[0], rtol=1e-6)
    assert_trees_close(grads, reference[1], 1e-5)
    made = [jax.eval_shape(tiny(scan=scan).init, jax.random.key(0), clip) for scan in (True, False)]
    assert made[0] == made[1]


@pytest.fixture(scope='module')
def long_clip():
    return jax.random.normal(jax.random.key(1), (2, 8, 64, 64, 3))


def test_rematerialisation_changes_the_memory_and_nothing_else(params, long_clip):
    found = {}
    for remat in ('none', 'dots', 'attention', 'full', 'offload'):
        compiled = loss_and_gradient(tiny(remat=remat)).lower(params, long_clip).compile()
        found[remat] = compiled(params, long_clip), compiled.memory_analysis().temp_size_in_bytes
    (loss, grads), _ = found['none']
    for (other, others), _ in found.values():
        np.testing.assert_allclose(other, loss, rtol=1e-6)
        assert_trees_close(others, grads, 1e-5)
    memory = [size for _, size in found.values()]
    assert memory[0] > memory[1] > memory[2] > memory[3]


def test_bfloat16_stays_close_to_float32(params, clip):
    exact, _ = quick_jit(tiny().apply)({'params': params}, clip)
    rough, _ = quick_jit(tiny(dtype=jnp.bfloat16).apply)({'params': params}, clip)
    assert rough.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(rough, np.float32) - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.02
    head = Classifier(tiny(dtype=jnp.bfloat16, final_norm=False), 5)
    (logits, _), _ = jax.eval_shape(head.init_with_output, jax.random.key(0), clip)
    assert logits.dtype == jnp.float32


def test_visible_tokens_are_a_selection_before_attention(clip):
    model = tiny(depth=1)
    params = {'params': random_params(model, clip)}
    apply = quick_jit(model.apply)
    every = jnp.tile(jnp.arange(12)[::-1], (2, 1))  # all 12 tokens, backwards: attention does not know the order
    backwards, _ = apply(params, clip, every)
    forwards, _ = apply(params, clip)
    np.testing.assert_allclose(backwards[:, ::-1], forwards, atol=1e-5)
    some, _ = apply(params, clip, jnp.asarray([[0, 5], [3, 4]]))
    changed = clip.at[0, :, :8, 8:16].set(9.0).at[1, :2, :8, :8].set(9.0)  # tokens 1 and 7 of one clip, 0 of the other
    again, _ = apply(params, changed, jnp.asarray([[0, 5], [3, 4]]))
    np.testing.assert_array_equal(some, again)


def test_one_set_of_parameters_serves_any_grid(params):
    longer, _ = quick_jit(tiny().apply)({'params': params}, jnp.ones((1, 8, 32, 8, 3)))
    assert longer.shape == (1, 16, 32)


def test_split_mask():
    mask = np.array([[True, False, True, False], [False, False, True, True]])
    visible, masked = split_mask(mask, 2)
    np.testing.assert_array_equal(visible, [[1, 3], [0, 1]])
    np.testing.assert_array_equal(masked, [[0, 2], [2, 3]])


def test_drop_path_keeps_the_mean():
    x = jnp.ones((20_000, 1, 2))
    y = np.asarray(drop_path(x, jnp.float32(0.3), jax.random.key(0)))
    kept = y[:, 0, 0] > 0
    np.testing.assert_allclose(y[kept], 1 / 0.7, rtol=1e-6)
    assert not y[~kept].any()  # whole samples, both channels
    assert abs(kept.mean() - 0.7) < 0.015  # 4.6 standard deviations
    assert abs(y.mean() - 1.0) < 0.02
    np.testing.assert_array_equal(drop_path(x, jnp.float32(0.0), jax.random.key(0)), x)


def test_drop_path_rises_from_zero_at_the_first_block():
    x = jax.random.normal(jax.random.key(2), (64, 4, 16))
    last_dropped = Transformer(depth=2, heads=2, drop_path=0.99999)
    params = random_params(last_dropped, x, False)
    rngs = {'drop_path': jax.random.key(3)}
    y = quick_jit(last_dropped.apply, static_argnums=2)({'params': params}, x, True, rngs=rngs)
    first = jax.tree.map(lambda p: p[:1], params)
    expected = quick_jit(Transformer(depth=1, heads=2).apply, static_argnums=2)({'params': first}, x, False)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    off = quick_jit(last_dropped.apply, static_argnums=2)({'params': params}, x, False)
    assert np.abs(np.asarray(off) - expected).max() > 0.1


def test_drop_path_differs_by_sample_layer_and_branch():
    x = jax.random.normal(jax.random.key(2), (256, 2, 16))
    stack = Transformer(depth=3, heads=2, drop_path=0.5)
    # Branches that only add their last bias: the sum tells which of them were kept.
    params = jax.tree.map(np.zeros_like, random_params(stack, x, False))
    params['blocks']['attn']['proj']['bias'] = jnp.stack([jnp.zeros(16), jnp.ones(16), 100 * jnp.ones(16)])
    params['blocks']['mlp']['fc2']['bias'] = jnp.stack([jnp.zeros(16), 10 * jnp.ones(16), 1000 * jnp.ones(16)])
    rngs = {'drop_path': jax.random.key(3)}
    y = quick_jit(stack.apply, static_argnums=2)({'params': params}, x, True, rngs=rngs)
    added = np.asarray(y - x)
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-3)
    scale = {'1': 0.75, '10': 0.75, '100': 0.5, '1000': 0.5}
    seen = {round(float(a), 2) for a in added[:, 0, 0]}
    sums = {0.0}
    for size, keep in scale.items():
        sums |= {s + int(size) / keep for s in sums}
    assert seen <= {round(s, 2) for s in sums}
    assert len(seen) > 12  # of 16 combinations; layers that shared their draws would give 9


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'qkv_bias': 'kv'}, "qkv_bias must be 'full' or 'qv', not 'kv'"),
        ({'remat': 'some'}, "remat must be one of none, full, attention, dots, offload, not 'some'"),
        ({'heads': 5}, 'width 32 is not a multiple of heads 5'),
        ({'patch': (2, 7, 8)}, 'does not divide into patches'),
        ({'pos_embed': 'sincos4d'}, 'pos_embed must be one of'),
    ],
)
def test_wrong_options(options, message, clip):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(tiny(**options).init, jax.random.key(0), clip)


def test_wrong_config_sections():
    with pytest.raises(UserError, match="no ViT variant 'XL'; there are debug, nano, tiny, S, B, L, H"):
        variant('XL')
    with pytest.raises(UserError, match="no ViT variant 'XL'"):
        build_vit({'variant': 'XL'})
    with pytest.raises(UserError, match='dropout'):
        build_vit({'variant': 'debug', 'dropout': 0.1})
    with pytest.raises(UserError, match='out_dim'):
        build_decoder({'width': 32, 'depth': 1, 'heads': 2})
    built = build_vit({'variant': 'debug', 'patch': [1, 8, 8], 'dtype': 'bfloat16', 'depth': 5})
    assert (built.width, built.depth, built.patch, built.dtype) == (32, 5, (1, 8, 8), jnp.bfloat16)
