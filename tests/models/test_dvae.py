"""DALL-E's encoder against the published one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import assert_array, assert_close, golden, model_arrays, quick_jit, weight

from mvdjax import trees
from mvdjax.convert import dalle, files, rules
from mvdjax.errors import UserError
from mvdjax.models.dvae import DalleEncoder, map_pixels
from mvdjax.tasks.tokenizer import make_tokenizer


def images(case):
    """The README's: flat blocks of 8 x 8 pixels, black or white in each channel, uint8 (b, h, w, 3)."""
    height, width = case['size']
    shape = (case['batch'], 1, -(-height // 8), -(-width // 8), 3)
    noise = np.random.RandomState(case['seed']).randint(0, 256, shape).astype(np.uint8)[:, 0]
    blocks = ((noise > 127) * 255).astype(np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]


def params_of(case, encoder):
    """The README's weights, through the converter."""
    source = files.Source.of({name: weight(name, shape) for name, shape in case['shapes'].items()})
    expected = dalle.encoder_shapes(encoder)
    mapping = dalle.make_rules(expected)
    rules.check_source(mapping, {}, source.shapes, expected, ())
    return trees.unflatten({rule.ours: rules.to_ours(rule, source, expected[rule.ours]) for rule in mapping})


@pytest.mark.parametrize('variant', ['tiny', 'full'])
def test_logits_and_tokens(variant):
    name = f'bevt/dalle_{variant}'
    case = golden(name)
    config = case['config']
    encoder = dalle.read_encoder({n: tuple(s) for n, s in case['shapes'].items()})
    assert encoder == DalleEncoder(config['n_hid'], config['n_blk_per_group'], config['vocab_size'])
    params = params_of(case, encoder)
    assert trees.count(params) == case['n_params']
    pixels = images(case)
    mapped = map_pixels(pixels)
    assert_array(np.moveaxis(mapped, -1, 1), name, 'map_pixels', rtol=1e-6, atol=1e-6)
    logits, maps = jax.device_get(quick_jit(encoder.apply)({'params': params}, mapped))
    assert_array(np.moveaxis(logits, -1, 1), name, 'logits')
    for stage, found in maps.items():
        want = case['stages'][stage.replace('group', 'group_')]
        found = np.moveaxis(np.asarray(found, np.float64), -1, 1)
        assert_close(np.linalg.norm(found), want['norm'], name, f'{stage}, norm', rtol=1e-5)
        assert_close(found.reshape(-1)[:4], want['head'], name, f'{stage}, first values', rtol=1e-4, atol=1e-5)
    stored = model_arrays(name)
    tokens = np.argmax(logits, axis=-1)
    sure = stored['token_margin'] > 1e-4
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(tokens[sure], stored['tokens'][sure])


def test_the_tokenizer_gives_the_golden_tokens_of_clips():
    name = 'bevt/dalle_tiny'
    case, stored = golden(name), model_arrays(name)['tokens']
    model = {'width': 64, 'vocabulary': 512}
    params = params_of(case, DalleEncoder(**model))
    clip = images(case)[None]  # both images as the frames of one clip
    for at_once in (0, 1):
        tokenizer = make_tokenizer({'kind': 'dalle', 'checkpoint': 'random', 'model': model, 'frames_at_once': at_once})
        assert tokenizer.vocabulary == 512
        assert tokenizer.grid(clip.shape) == (2, 4, 4)
        tokens = quick_jit(tokenizer.tokens)(params, clip)
        assert tokens.dtype == np.int32
        np.testing.assert_array_equal(tokens, stored.reshape(1, -1))  # frame, row, column


def test_the_scores_of_codes_are_float32_on_any_hardware():
    model = DalleEncoder(width=4, blocks=1, vocabulary=8, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    with jax.default_matmul_precision('default'):  # the tests' own is the highest
        program = str(jax.make_jaxpr(model.apply)(params, images))
    assert program.count('Precision.HIGHEST') == 2  # both sides of one convolution, the last
    assert program.rindex('conv_general_dilated') < program.index('Precision.HIGHEST')


def test_sizes_that_make_no_encoder_are_refused():
    with pytest.raises(UserError, match=r'\(20, 32\) pixels do not divide into codes of 8 x 8'):
        jax.eval_shape(DalleEncoder(width=4).init, jax.random.key(0), np.zeros((1, 20, 32, 3), np.float32))
    with pytest.raises(UserError, match='must be a multiple of 4, not 6'):
        jax.eval_shape(DalleEncoder(width=6).init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
