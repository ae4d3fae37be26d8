"""Windows, biases and the options of Video Swin, against slow and plain versions of the same rules."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import quick_jit
from jax.sharding import PartitionSpec as P

from mvdjax import sharding, trees
from mvdjax.errors import UserError
from mvdjax.models import attention
from mvdjax.models.bevt import MaskedSwin, SwinClassifier
from mvdjax.models.video_swin import Stage, resize_mask
from mvdjax.models.window_attention import FORBIDDEN, WindowAttention, cut, position_bias, weigh
from mvdjax.tasks.base import build_swin

SMALL = {'width': 8, 'depths': (1, 5), 'heads': (1, 2), 'window': (2, 2, 2)}


@pytest.mark.parametrize('size', [(2, 3, 2), (1, 3, 2), (2, 2, 2), (2, 3, 1), (1, 1, 1)])
@pytest.mark.parametrize('corrected', [False, True])
def test_position_bias(size, corrected):
    window = (2, 3, 2)
    table = np.random.RandomState(0).standard_normal((3, 5, 3, 2)).astype(np.float32)
    full = list(itertools.product(*map(range, window)))
    places = list(itertools.product(*map(range, size))) if corrected else full[: int(np.prod(size))]
    expected = [[table[tuple(np.subtract(q, k) + np.array(window) - 1)] for k in places] for q in places]
    found = position_bias(jnp.asarray(table), window, size, corrected)
    np.testing.assert_array_equal(found, np.moveaxis(np.array(expected), -1, 0))


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 2e-6), ('bfloat16', 2e-2)])
def test_the_backward_pass_from_the_logits_on(masked, dtype, tolerance):
    keys = jax.random.split(jax.random.key(0), 4)
    logits, bias = jax.random.normal(keys[0], (2, 3, 2, 6, 6)), jax.random.normal(keys[1], (2, 6, 6))
    v, dy = (jax.random.normal(key, (2, 3, 6, 2, 4)).astype(dtype) for key in keys[2:])
    apart = jnp.asarray(np.random.RandomState(0).rand(3, 1, 6, 6) < 0.3) if masked else None

    def plain(logits, bias, v):
        shown = logits + bias
        shown = shown if apart is None else jnp.where(apart, shown + FORBIDDEN, shown)
        weights = jax.nn.softmax(shown).astype(dtype).astype(jnp.float32)
        return jnp.einsum('bwhqk,bwkhd->bwqhd', weights, v.astype(jnp.float32))

    expected, plain_backward = jax.vjp(plain, logits, bias, v)
    found, backward = jax.vjp(lambda logits, bias, v: weigh(logits, bias, apart, v), logits, bias, v)
    assert found.dtype == v.dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=tolerance)
    for one, other in zip(backward(dy), plain_backward(dy.astype(jnp.float32)), strict=True):
        assert one.dtype == other.dtype
        if one.shape == logits.shape:
            np.testing.assert_allclose(one.sum(-1), 0.0, atol=1e-5)  # a softmax does not feel what all logits share
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), atol=4 * tolerance)


def slow_regions(grid, size, shift):
    """For each pair of tokens of a window whether they were neighbours before the map was rolled, in window order."""
    tokens = np.stack(np.meshgrid(*map(np.arange, grid), indexing='ij'), -1)
    rolled = np.roll(tokens, [-s for s in shift], (0, 1, 2))
    windows = []
    for corner in itertools.product(*(range(0, n, s) for n, s in zip(grid, size, strict=True))):
        cube = rolled[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))].reshape(-1, 3)
        apart = np.abs(cube[:, None] - cube[None]) >= np.array(size)
        windows.append(~apart.any(-1))
    return np.array(windows)


@pytest.mark.parametrize('grid', [(4, 6, 9), (2, 6, 3), (4, 3, 6)])
def test_a_shift_keeps_apart_what_it_brings_together(grid):
    windows = cut(grid, (2, 3, 3), shifted=True, image=False, corrected=False)
    assert windows.shift == tuple(w // 2 if n > w else 0 for n, w in zip(grid, (2, 3, 3), strict=True))
    same = windows.regions[:, :, None] == windows.regions[:, None, :]
    np.testing.assert_array_equal(same, slow_regions(grid, windows.size, windows.shift))
    x = np.arange(np.prod(grid), dtype=np.float32).reshape(1, *grid, 1)
    np.testing.assert_array_equal(windows.join(windows.split(x)), x)
    assert cut(grid, (2, 3, 3), shifted=False, image=False, corrected=False).regions is None


def test_a_map_that_is_one_window_is_neither_shifted_nor_masked():
    windows = cut((2, 3, 3), (4, 7, 7), shifted=True, image=False, corrected=False)
    assert (windows.size, windows.shift, windows.regions) == ((2, 3, 3), (0, 0, 0), None)


def test_images_are_cut_as_published_or_as_clips():
    for shifted in (False, True):  # regions in every block, four of them in a map that is one window
        windows = cut((1, 7, 7), (8, 7, 7), shifted, image=True, corrected=False)
        assert windows.shift == ((0, 3, 3) if shifted else (0, 0, 0))
        same = windows.regions[:, :, None] == windows.regions[:, None, :]
        np.testing.assert_array_equal(same, slow_regions((1, 7, 7), (1, 7, 7), (0, 3, 3)) & four_quarters())
        corrected = cut((1, 7, 7), (8, 7, 7), shifted, image=True, corrected=True)
        assert corrected == cut((1, 7, 7), (8, 7, 7), shifted, image=False, corrected=True)
        assert corrected.regions is None
    with pytest.raises(UserError, match='a map of 6x7 tokens does not divide into windows of 7x7'):
        cut((1, 6, 7), (8, 7, 7), False, image=True, corrected=False)
    assert cut((1, 8, 9), (8, 7, 7), False, image=True, corrected=True).padding == (0, 6, 5)


def four_quarters():
    """Pairs of a 7x7 map on the same side of row 4 and of column 4."""
    side = (np.arange(7) >= 4).astype(int)
    quarter = (2 * side[:, None] + side).reshape(-1)
    return (quarter[:, None] == quarter)[None]


@pytest.mark.parametrize('corrected', [False, True])
def test_padding_is_seen_as_published_and_hidden_when_corrected(corrected):
    x = jax.random.normal(jax.random.key(0), (1, 1, 5, 5, 8))
    attention = WindowAttention(2, (1, 4, 4), corrected, 'auto', jnp.float32)
    windows = cut((1, 5, 5), (1, 4, 4), shifted=False, image=False, corrected=corrected)
    params = attention.init(jax.random.key(1), windows.split(x), windows)['params']
    params['qkv']['bias'] = jax.random.normal(jax.random.key(2), params['qkv']['bias'].shape)
    found = windows.join(attention.apply({'params': params}, windows.split(x), windows))[0, 0, 4, 4]
    # The last token is alone in its window, but for padding: it sees its own value.
    value = jnp.einsum('c,chd->hd', x[0, 0, 4, 4], params['qkv']['kernel'][:, 2]) + params['qkv']['bias'][2]
    alone = jnp.einsum('hd,hdc->c', value, params['proj']['kernel'])
    assert np.allclose(found, alone, atol=1e-5) == corrected


def apply(options, params, video, **kwargs):
    return quick_jit(lambda p, x: build_swin({**SMALL, **options}).apply({'params': p}, x, **kwargs)[0])(params, video)


@pytest.fixture(scope='module')
def clip():
    """A clip whose second map has several windows, and parameters large enough for everything to matter."""
    video = np.random.RandomState(3).standard_normal((2, 8, 16, 16, 3)).astype(np.float32)
    abstract = jax.eval_shape(build_swin(SMALL).init, jax.random.key(0), video)['params']
    flat = trees.flatten(abstract)
    rng = np.random.RandomState(0)
    values = {n: rng.standard_normal(x.shape).astype(np.float32) / np.sqrt(x.shape[-2:][0]) for n, x in flat.items()}
    return video, trees.unflatten(values)


def test_where_only_time_is_cut_the_corrected_network_is_the_published_one(clip):
    video, params = clip
    short = video[:, :2]
    published = apply({}, params, short)
    np.testing.assert_array_equal(apply({'corrected': True}, params, short), published)
    small = video[:, :, :12, :12]  # the second map is 2x2 in windows of 2; the first is padded
    assert published.shape == (2, 1, 2, 2, 16)
    wide = {'window': (2, 2, 2), 'corrected': True}
    assert apply(wide, params, small).shape == (2, 4, 2, 2, 16)


def loss_and_gradient(params, video, **options):
    def loss(params):
        return jnp.mean(build_swin({**SMALL, **options}).apply({'params': params}, video)[0] ** 3)

    return quick_jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope='module')
def unrolled(clip):
    """Loss and gradients with blocks written out and everything kept."""
    video, params = clip
    return loss_and_gradient(params, video, scan=False)


@pytest.mark.parametrize('remat', ['dots', 'attention', 'offload'])
def test_loops_and_remat_change_nothing(clip, unrolled, remat):
    video, params = clip
    got = loss_and_gradient(params, video, remat=remat)
    np.testing.assert_allclose(got[0], unrolled[0], rtol=1e-6)
    for path, leaf in trees.flatten(got[1]).items():
        expected = trees.flatten(unrolled[1])[path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=path)


@pytest.mark.parametrize(
    ('shifted', 'dtype', 'tolerance'), [(False, 'float32', 1e-5), (True, 'float32', 1e-5), (True, 'bfloat16', 2e-2)]
)
def test_windows_are_heads_to_a_fused_kernel(monkeypatch, shifted, dtype, tolerance):
    """What a kernel is handed, computed by XLA: outputs and gradients, the position table's among them."""
    windows = cut((4, 6, 4), (2, 3, 2), shifted, image=False, corrected=False)
    assert (windows.regions is not None) == shifted
    module = WindowAttention(2, (2, 3, 2), False, 'auto', jnp.dtype(dtype))
    rng = np.random.RandomState(0)
    x, cotangent = (rng.standard_normal((3, 8, 12, 8)).astype(np.float32) for _ in range(2))
    params = module.init(jax.random.key(0), x, windows)
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), params)

    def run():
        return quick_jit(jax.value_and_grad(lambda p, x: jnp.sum(module.apply(p, x, windows) * cotangent), (0, 1)))(
            params, x
        )

    want, handed, attend = run(), [], attention.attention
    monkeypatch.setattr(attention, 'choose', lambda *_, **__: 'cudnn')

    def kernel(q, k, v, bias, *, implementation):
        handed.append((implementation, q.shape, bias.shape, bias.dtype))
        monkeypatch.undo()
        return attend(q, k, v, bias, implementation='xla')

    monkeypatch.setattr(attention, 'attention', kernel)
    got = run()
    assert handed == [('cudnn', (3, 12, 16, 4), (1, 16, 12, 12), jnp.dtype(dtype))]
    for (path, leaf), expected in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert np.linalg.norm(leaf - expected) <= tolerance * np.linalg.norm(expected), path


def kept_shapes(remat):
    """Shapes of what the backward pass of a stage of two blocks finds kept; a window has 7 x 5 x 3 tokens."""
    stage = Stage(2, 2, (7, 5, 3), 4.0, False, remat, True, 'auto', jnp.float32)
    x = jax.ShapeDtypeStruct((1, 7, 5, 3, 8), jnp.float32)
    params = jax.eval_shape(lambda k, x: stage.init(k, x, False, None), jax.random.key(0), x)
    kept = jax.eval_shape(lambda p, x: jax.vjp(lambda p: stage.apply(p, x, False, None), p)[1], params, x)
    return [leaf.shape for leaf in jax.tree.leaves(kept)]


def test_dots_keeps_the_linear_layers_alone():
    pairs = (105, 105)
    kept = {remat: kept_shapes(remat) for remat in ('none', 'dots', 'full')}
    assert any(shape[-2:] == pairs for shape in kept['none'])
    assert not any(shape[-2:] == pairs or np.prod(shape) >= 105 * 105 * 2 for shape in kept['dots'])
    for remat, outputs in (('dots', 2), ('full', 0)):
        assert sum(shape == (1, 1, 105, 3, 2, 4) for shape in kept[remat]) == outputs, 'q, k and v of each block'


def test_scores_over_the_vocabulary_are_float32():
    model = MaskedSwin(build_swin({**SMALL, 'dtype': 'bfloat16'}), 3)
    rng = np.random.RandomState(0)
    x, head = rng.standard_normal((5, 16)), {'kernel': rng.standard_normal((16, 3)), 'bias': rng.standard_normal(3)}
    x = np.asarray(jnp.asarray(x, jnp.bfloat16))
    params = {'lm_head': jax.tree.map(lambda a: a.astype(np.float32), head)}
    scores = model.apply({'params': params}, x, method=lambda m, x: m.lm_head(x))
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, x.astype(np.float64) @ head['kernel'] + head['bias'], rtol=1e-5, atol=1e-5)


def test_drop_path_acts_in_training_alone(clip):
    video, params = clip
    swin = build_swin({**SMALL, 'drop_path': 0.9})

    @quick_jit
    def train(seed):
        return swin.apply({'params': params}, video, train=True, rngs={'drop_path': jax.random.key(seed)})[0]

    first = train(1)
    np.testing.assert_array_equal(first, train(1))
    assert not np.allclose(first, train(2))
    np.testing.assert_array_equal(apply({'drop_path': 0.9}, params, video), apply({}, params, video))


def test_bfloat16_computes_close_to_float32(clip):
    video, params = clip
    rough, exact = apply({'dtype': 'bfloat16'}, params, video), apply({}, params, video)
    assert rough.dtype == jnp.bfloat16
    assert np.abs(rough.astype(jnp.float32) - exact).mean() < 0.05 * np.abs(exact).mean()
    model = SwinClassifier(build_swin({**SMALL, 'dtype': 'bfloat16'}), 3)
    assert jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), video)[0][0]).dtype == jnp.float32


def test_masks_are_resized_by_nearest_neighbour():
    mask = np.random.RandomState(0).rand(2, 3, 4, 5) < 0.5
    grid = (6, 7, 3)
    found = resize_mask(jnp.asarray(mask), grid)
    for place in itertools.product(*map(range, grid)):
        source = tuple(int(np.floor(p * old / new)) for p, old, new in zip(place, mask.shape[1:], grid, strict=True))
        np.testing.assert_array_equal(found[:, *place], mask[:, *source])


def test_a_stream_has_parameters_of_its_own_and_shared_ones():
    model = MaskedSwin(build_swin({**SMALL, 'depths': (1, 1)}), 4)
    mask = jnp.zeros((1, 1, 1, 1), bool)

    def of(frames, image):
        video = jnp.zeros((1, frames, 16, 16, 3))
        tree = jax.eval_shape(lambda: model.init(jax.random.key(0), video, mask, image=image))['params']
        return {*tree['backbone'], *tree} - {'backbone'}

    clips, images = of(4, False), of(1, True)
    assert clips - images == {'patch_embed', 'fpn_s', 'fpn_t', 'lm_down_st'}
    assert images - clips == {'patch_embed_2d', 'fpn', 'lm_down'}
    assert {'mask_token', 'norm', 'stage1', 'lm_head'} <= clips & images


def test_heads_and_hidden_units_are_split_and_depth_is_not():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2) if jax.device_count() == 8 else sharding.make_mesh()
    abstract = jax.eval_shape(build_swin({'variant': 'B'}).init, jax.random.key(0), jnp.zeros((1, 2, 32, 32, 3)))
    stage = 'stage3/blocks/'
    specs = {}
    for path, leaf in trees.flatten(abstract['params']).items():
        if path.startswith(stage):
            specs[path.removeprefix(stage)] = sharding.parameter_sharding(path, leaf.shape, mesh).spec
    if mesh.shape['tensor'] == 2:
        assert specs['attn/qkv/kernel'] == P(None, 'fsdp', None, 'tensor', None)
        assert specs['attn/proj/kernel'] == P(None, 'tensor', None, 'fsdp')
        assert specs['attn/relative_position_table'][-1] == 'tensor'
        assert specs['mlp/fc2/kernel'] == P(None, 'tensor', 'fsdp')
    assert all(spec[0] is None for spec in specs.values())


@pytest.mark.parametrize(
    ('options', 'call', 'message'),
    [
        ({'remat': 'all'}, {}, "remat must be one of none, full, attention, dots, offload, not 'all'"),
        ({'attention': 'cudnn'}, {}, "attention='cudnn' needs an NVIDIA GPU, and this is a cpu"),
        ({'heads': (1,)}, {}, 'need one number above 0 per stage each'),
        ({'window': (2, 0, 2)}, {}, 'must be above 0'),
        ({'heads': (3, 3)}, {}, 'width 8 is not a multiple of heads 3'),
        ({}, {'image': True}, 'an image is a clip of one frame, not of 8'),
    ],
)
def test_what_cannot_be_built(options, call, message):
    swin = build_swin({**SMALL, **options})
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: swin.init(jax.random.key(0), jnp.zeros((1, 8, 16, 16, 3)), **call))


def test_sections_that_cannot_be_read():
    with pytest.raises(UserError, match="no Swin variant 'X'; there are debug, nano, T, S, B, L"):
        build_swin({'variant': 'X'})
    with pytest.raises(UserError, match=r"the VideoSwin section has no key 'depth'; did you mean 'depths'\?"):
        build_swin({'variant': 'T', 'depth': 2})
    with pytest.raises(UserError, match=r'window must be \(frames, rows, columns\), not \(7, 7\)'):
        build_swin({'variant': 'T', 'window': (7, 7)})
    assert build_swin({'variant': 'debug', 'depths': [1, 1], 'heads': [1, 2]}).depths == (1, 1)
