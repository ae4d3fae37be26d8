"""The optimizer step by itself, on tasks of a few numbers: weight decay, skipped steps, resume, micro-batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import full_arrays, golden, quick_jit

from mvdjax import metrics, optimizers
from mvdjax.train_state import TrainState
from mvdjax.train_step import make_train_step

RATE = 0.01
DECAY = full_arrays('data/schedules')['weight_decay_increasing']
CASE = {case['name']: case for case in golden('data/schedules')['schedules']}['weight_decay_increasing']
PARAMS = {'kernel': np.ones((2, 3), np.float32), 'bias': np.ones(3, np.float32)}
GOOD, BAD = ({'x': np.full(4, value, np.float32)} for value in (1.0, np.nan))


@dataclasses.dataclass(frozen=True)
class Flat:
    """A loss that no parameter changes: whatever moves them is weight decay."""

    rng_names: tuple[str, ...] = ()

    def loss(self, params, frozen, batch, rngs, train):
        nothing = 0.0 * sum(jnp.sum(x) for x in jax.tree.leaves(params))
        return jnp.mean(batch['x']) + nothing, {'loss': metrics.weighted(batch['x'], None)}


def made(**options):
    """(optimizer, its jitted step)."""
    optimizer = optimizers.make_optimizer(
        PARAMS,
        lambda path, depth: 0,
        global_batch=4,
        views=1,
        total_steps=len(DECAY),
        steps_per_epoch=CASE['steps_per_epoch'],
        warmup_epochs=0,
        peak_rate=RATE,
        end_rate=RATE,
        weight_decay=CASE['base_value'],
        **options,
    )
    return optimizer, quick_jit(make_train_step(Flat(), optimizer, seed=0, accumulate=1, ema_decay=0.0, views=1))


def fresh(optimizer):
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, PARAMS, optimizer.transform.init(PARAMS), None)


def run(step, state, batches):
    """(state, the weight decay that each step reports)."""
    decays = []
    for batch in batches:
        state, values = step(state, {}, batch)
        decays.append(float(values['weight_decay'][0]))
    return jax.device_get(state), decays


def shrunk(decays):
    """What `decays` make of a parameter of 1."""
    return np.prod(1.0 - RATE * np.asarray(decays))


def test_scheduled_decay_is_the_published_one_and_leaves_the_rest_alone():
    optimizer, step = made(weight_decay_end=CASE['final_value'])
    state, decays = run(step, fresh(optimizer), [GOOD] * len(DECAY))
    np.testing.assert_allclose(decays, DECAY, rtol=1e-5)
    np.testing.assert_allclose(state.params['kernel'], shrunk(DECAY), rtol=1e-5)
    np.testing.assert_array_equal(state.params['bias'], PARAMS['bias'])


def test_constant_decay_is_no_metric():
    optimizer, step = made()
    state = fresh(optimizer)
    for _ in range(5):
        state, values = step(state, {}, GOOD)
    assert 'weight_decay' not in values
    np.testing.assert_allclose(state.params['kernel'], shrunk([CASE['base_value']] * 5), rtol=1e-5)
    np.testing.assert_array_equal(state.params['bias'], PARAMS['bias'])


def test_layer_decay_scales_scheduled_decay_too():
    optimizer, step = made(weight_decay_end=CASE['final_value'], layer_decay=0.5)
    state, _ = run(step, fresh(optimizer), [GOOD])
    np.testing.assert_allclose(state.params['kernel'], 1.0 - 0.5 * RATE * DECAY[0], rtol=1e-5)


def test_a_skipped_step_does_not_shift_the_decay():
    optimizer, step = made(weight_decay_end=CASE['final_value'])
    state, decays = run(step, fresh(optimizer), [GOOD] * 3 + [BAD] * 2 + [GOOD] * 4)
    np.testing.assert_allclose(decays, DECAY[:9], rtol=1e-5)
    assert (state.step, state.skipped) == (9, 2)
    np.testing.assert_allclose(state.params['kernel'], shrunk([*DECAY[:3], *DECAY[5:9]]), rtol=1e-5)


@pytest.mark.parametrize('stop', [1, 4, 7])
def test_a_resumed_run_lands_on_the_same_schedule(stop):
    batches = [GOOD, GOOD, BAD, *[GOOD] * 7]
    optimizer, step = made(weight_decay_end=CASE['final_value'])
    whole, decays = run(step, fresh(optimizer), batches)
    saved, before = run(step, fresh(optimizer), batches[:stop])
    _, again = made(weight_decay_end=CASE['final_value'])  # nothing but the state survives
    resumed, after = run(again, saved, batches[stop:])
    assert before + after == decays
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Counts the pairs of rows, (0, 1), (2, 3), ..., that show the same video."""

    rng_names: tuple[str, ...] = ()

    def loss(self, params, frozen, batch, rngs, train):
        same = (batch['video'][0::2] == batch['video'][1::2]).astype(jnp.float32)
        return 0.0 * jnp.sum(params['kernel']), {'loss': metrics.weighted(same, None)}


@pytest.mark.parametrize('accumulate', [1, 2, 4])
def test_the_views_of_a_video_stay_together_in_a_micro_batch(accumulate):
    optimizer, _ = made()
    step = make_train_step(Neighbours(), optimizer, seed=0, accumulate=accumulate, ema_decay=0.0, views=2)
    _, values = quick_jit(step)(fresh(optimizer), {}, {'video': np.arange(8).repeat(2)})
    assert values['loss'] == (8, 8)
