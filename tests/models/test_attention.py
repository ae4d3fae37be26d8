"""What computes attention: the choice by device, and the Pallas kernel against XLA, forward and gradients."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mvdjax import attention_check, sharding
from mvdjax.errors import UserError
from mvdjax.main import main
from mvdjax.models.attention import attention, choose, pallas_attention
from mvdjax.models.layers import Transformer

CPU, TPU = SimpleNamespace(platform='cpu'), SimpleNamespace(platform='tpu')
AMPERE, HOPPER, TURING = (SimpleNamespace(platform='gpu', compute_capability=c) for c in ('8.0', '9.0', '7.5'))
AMD = SimpleNamespace(platform='gpu', compute_capability='gfx942')
GOOD = {'dtype': jnp.bfloat16, 'head_dim': 64, 'lengths': (1568, 1568), 'biased': False}


@pytest.mark.parametrize(
    ('device', 'inputs', 'chosen'),
    [
        (CPU, {}, 'xla'),
        (TPU, {}, 'xla'),
        (AMD, {}, 'xla'),
        (TURING, {}, 'xla'),
        (AMPERE, {}, 'cudnn'),
        (AMPERE, {'dtype': jnp.float32}, 'xla'),
        (AMPERE, {'head_dim': 136}, 'xla'),
        (HOPPER, {'head_dim': 136}, 'cudnn'),
        (HOPPER, {'head_dim': 60}, 'xla'),
        (HOPPER, {'head_dim': 80}, 'cudnn'),
        (HOPPER, {'lengths': (49, 49)}, 'cudnn'),
        (HOPPER, {'lengths': (49, 49), 'biased': True}, 'xla'),
        (HOPPER, {'lengths': (392, 392), 'biased': True}, 'xla'),  # by name only, until somebody has run it
    ],
)
def test_auto_takes_the_fused_kernel_where_it_can(device, inputs, chosen):
    assert choose('auto', device=device, **{**GOOD, **inputs}) == chosen


def test_a_fused_kernel_with_a_bias_comes_by_name():
    assert choose('cudnn', device=HOPPER, **{**GOOD, 'lengths': (392, 392), 'biased': True}) == 'cudnn'


@pytest.mark.parametrize(
    ('wanted', 'device', 'inputs', 'message'),
    [
        ('flash', CPU, {}, "must be one of auto, xla, cudnn, pallas, not 'flash'"),
        ('cudnn', CPU, {}, 'needs an NVIDIA GPU, and this is a cpu'),
        ('cudnn', TURING, {}, 'compute capability 8.0'),
        ('cudnn', HOPPER, {'dtype': jnp.float32}, 'needs 16-bit inputs'),
        ('cudnn', HOPPER, {'lengths': (49, 49), 'biased': True}, 'even lengths'),
        ('pallas', HOPPER, {}, 'needs a TPU, and this is a gpu'),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(wanted, device, inputs, message):
    with pytest.raises(UserError, match=message):
        choose(wanted, device=device, **{**GOOD, **inputs})


def test_models_refuse_what_cannot_be_had_here():
    stack = Transformer(depth=1, heads=2, attention='cudnn')
    with pytest.raises(UserError, match='needs an NVIDIA GPU, and this is a cpu'):
        jax.eval_shape(lambda: stack.init(jax.random.key(0), jnp.zeros((1, 4, 16)), False))


def outputs_and_gradients(function, *inputs):
    target = np.random.RandomState(9).standard_normal(inputs[0].shape).astype(np.float32)

    def loss(*inputs):
        y = function(*inputs)
        return jnp.sum(y * target), y

    gradients, y = jax.jit(jax.grad(loss, argnums=tuple(range(len(inputs))), has_aux=True))(*inputs)
    return [y, *gradients]


@pytest.mark.parametrize('biased', [False, True])
def test_the_pallas_kernel_gives_xlas_numbers(biased):
    random = np.random.RandomState(0)
    q, k, v = (random.standard_normal((2, 100, 2, 24)).astype(np.float32) for _ in range(3))  # 28 tokens of padding
    bias = (random.standard_normal((1, 2, 100, 100)).astype(np.float32),) if biased else ()
    want = outputs_and_gradients(attention, q, k, v, *bias)
    with pltpu.force_tpu_interpret_mode():
        got = outputs_and_gradients(pallas_attention, q, k, v, *bias)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_the_bias_is_added_to_the_logits():
    random = np.random.RandomState(0)
    q, k, v = (random.standard_normal((2, 5, 2, 8)).astype(np.float32) for _ in range(3))
    bias = random.standard_normal((1, 2, 5, 5)).astype(np.float32)
    logits = np.einsum('bqhd,bkhd->bhqk', q, k) / np.sqrt(8) + bias
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(attention(q, k, v, bias), np.einsum('bhqk,bkhd->bqhd', weights, v), atol=1e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason='needs 8 devices')
def test_the_pallas_kernel_runs_on_every_devices_own_rows_and_heads():
    random = np.random.RandomState(0)
    q, k, v = (random.standard_normal((4, 16, 2, 8)).astype(np.float32) for _ in range(3))
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    rows = sharding.batch_sharding(mesh)
    with pltpu.force_tpu_interpret_mode():
        on_mesh = jax.jit(sharding.traced_on(mesh, pallas_attention), in_shardings=(rows,) * 3)
        got = on_mesh(q, k, v)
    assert {shard.data.shape for shard in got.addressable_shards} == {(1, 16, 1, 8)}
    np.testing.assert_allclose(got, attention(q, k, v), atol=1e-5)


@pytest.fixture
def quick_cases(monkeypatch):
    cases = (attention_check.Case('small', 20, 2, 8), attention_check.Case('window', 8, 2, 8, biased=True))
    monkeypatch.setattr(attention_check, 'CASES', cases)


def test_the_check_says_what_it_compared(quick_cases, capsys):
    assert main(['selfcheck', '--attention']) == 0
    out = capsys.readouterr().out
    assert 'nothing was compared: a cpu has none of cudnn, pallas' in out
    assert 'small: 20 tokens, 2 heads of 8' in out
    assert 'dbias' in out
    assert main(['selfcheck']) == 1
    assert 'give selfcheck a checkpoint, or --attention' in capsys.readouterr().err


@pytest.mark.parametrize('broken', [False, True])
def test_the_check_finds_a_kernel_that_is_off(quick_cases, monkeypatch, capsys, broken):
    def kernel(q, k, v, bias=None, *, implementation):
        scale = 1.05 if broken and implementation == 'pallas' else 1.0
        return attention(scale * q, k, v, bias)

    monkeypatch.setattr(attention_check, 'attention', kernel)
    monkeypatch.setattr(attention_check, 'available', lambda *_: ['pallas'])
    assert main(['selfcheck', '--attention']) == int(broken)
    printed = capsys.readouterr()
    assert ('further off' in printed.err) if broken else ('pallas agrees with XLA' in printed.out)
