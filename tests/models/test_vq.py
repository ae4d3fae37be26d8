"""The codebook tokenizer: what its quantisation computes, and where its gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import quick_jit

from mvdjax.errors import UserError
from mvdjax.models.vq import VQ, unit

MODEL = VQ(channels=(8, 16), blocks=1, vocabulary=12, code_dim=3)


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def params(images):
    return quick_jit(MODEL.init)(jax.random.key(0), images)['params']


@pytest.fixture(scope='module')
def computed(images, params):
    """Everything in one compilation."""
    encoder = {name: value for name, value in params.items() if not name.startswith(('decoder', 'from_code'))}
    encoder['code_table'] = params['code_table'] * np.linspace(0.1, 9, 12)[:, None]

    def everything(p, encoder, x):
        output, info = MODEL.apply({'params': p}, x)
        return {
            'output': output,
            **info,
            'tokens_alone': MODEL.apply({'params': encoder}, x, method='tokens'),
            'decoded': MODEL.apply({'params': p}, info['chosen'], method='decode'),
            'grads': jax.grad(lambda q: jnp.sum(jnp.square(MODEL.apply({'params': q}, x)[0])))(p),
        }

    return jax.device_get(quick_jit(everything)(params, encoder, images))


def test_every_place_gets_the_code_of_the_smallest_angle(computed, params):
    assert computed['output'].shape == (2, 8, 12, 3)
    assert computed['tokens'].shape == (2, 2, 3)  # a code for 4 x 4 pixels
    assert computed['tokens'].dtype == np.int32
    np.testing.assert_allclose(np.linalg.norm(computed['vectors'], axis=-1), 1, rtol=1e-5)
    table = np.asarray(params['code_table'])
    codes = table / np.linalg.norm(table, axis=1, keepdims=True)
    np.testing.assert_allclose(computed['codes'], codes, rtol=1e-4)
    angles = np.arccos(np.clip(np.einsum('bhwd,kd->bhwk', computed['vectors'], codes), -1, 1))
    np.testing.assert_array_equal(computed['tokens'], angles.argmin(-1))
    np.testing.assert_allclose(computed['chosen'], codes[computed['tokens']], rtol=1e-4)


def test_tokens_need_neither_the_length_of_a_code_nor_the_decoder(computed):
    np.testing.assert_array_equal(computed['tokens_alone'], computed['tokens'])


def test_the_output_depends_on_the_codes_alone_and_its_gradient_reaches_the_encoder(computed):
    np.testing.assert_allclose(computed['decoded'], computed['output'], atol=1e-4)
    assert np.abs(computed['grads']['encoder_down0']['kernel']).max() > 0
    # Straight through: the reconstruction itself moves no code.
    np.testing.assert_allclose(computed['grads']['code_table'], 0, atol=1e-6)


def test_codes_are_compared_in_float32_on_any_hardware(params):
    with jax.default_matmul_precision('default'):  # the tests' own is the highest
        program = str(jax.make_jaxpr(lambda x: MODEL.apply({'params': params}, x, method='nearest'))(jnp.ones((2, 3))))
    assert program.count('dot_general') == program.count('precision=(Precision.HIGHEST') == 1


def test_unit_vectors_have_finite_gradients_at_zero():
    grads = jax.grad(lambda x: jnp.sum(unit(x)))(jnp.zeros(4))
    assert np.isfinite(grads).all()


def test_images_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r'\(8, 10\) pixels do not divide into codes of \(4, 4\) pixels'):
        jax.eval_shape(MODEL.init, jax.random.key(0), np.zeros((1, 8, 10, 3), np.float32))
