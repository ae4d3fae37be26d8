"""mmcv's rules, by which BEVT was trained: schedules, parameter groups and the moving average (golden/bevt)."""

import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import golden

from mvdjax import optimizers, schedules, trees
from mvdjax.errors import UserError
from mvdjax.settings import Run
from mvdjax.train_state import average

SCHEDULES = golden('bevt/lr_schedule')['cases']
GROUPS = ['pretrain', 'ssv2', 'k400']
AVERAGES = golden('bevt/ema')


def scheduled(case, micro_batches):
    """The schedule that a config makes, `micro_batches` iterations of the case being a step."""
    by_epoch = case['lr_config'].get('by_epoch', True)
    return optimizers.make_schedule(
        'epoch_cosine' if by_epoch else 'scaled_cosine',
        case['lr'],
        case['lr_config']['min_lr'],
        case['lr_config']['warmup_iters'],
        case['iterations'] // micro_batches,
        case['epoch_len'] // micro_batches,
        micro_batches,
    )


@pytest.mark.parametrize('case', SCHEDULES, ids=lambda case: case['what'])
def test_rate_of_every_iteration(case):
    found = np.asarray(scheduled(case, 1)(jnp.arange(case['iterations'])))
    np.testing.assert_allclose(found, case['lr_per_iteration'], rtol=2e-6, atol=2e-7 * case['lr'])


@pytest.mark.parametrize('micro_batches', [2, 3])
def test_a_step_takes_the_rate_of_its_last_micro_batch(micro_batches):
    case = SCHEDULES[0]
    schedule = scheduled(case, micro_batches)
    wanted = case['lr_per_iteration'][micro_batches - 1 :: micro_batches]
    np.testing.assert_allclose(schedule(jnp.arange(len(wanted))), wanted, rtol=2e-6, atol=2e-7 * case['lr'])
    assert float(schedule(10_000_000)) == pytest.approx(0.0, abs=1e-10)  # the end is held


def test_long_runs_are_counted_exactly():
    """1.8 million micro-batches: the epochs of an 'epoch_cosine' begin where they should."""
    epoch, epochs = 15_000, 120
    schedule = schedules.scaled_cosine(1.0, 0.0, 0, epoch * epochs, epoch)
    for number in (1, 59, 119):
        before, first, last = (float(schedule(number * epoch + i)) for i in (-1, 0, epoch - 1))
        assert before > first == last
        assert first == pytest.approx(0.5 * (1 + np.cos(np.pi * number / epochs)), abs=1e-6)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'name': 'cosine'}, r"optim\.schedule must be one of .*, not 'cosine'"),
        ({'micro_batches': 2, 'name': 'warmup_cosine'}, r'optim\.micro_batches counts only in'),
        ({'micro_batches': 0}, r'optim\.micro_batches must be at least 1'),
        ({'warmup_epochs': 3.5}, r'a warm-up of 70 iterations does not fit into a run of 60'),
    ],
)
def test_schedules_that_cannot_be(values, message):
    usual = {'name': 'scaled_cosine', 'peak': 1.0, 'end': 0.0, 'warmup_epochs': 1.0, 'micro_batches': 2}
    with pytest.raises(UserError, match=message):
        optimizers.make_schedule(**{**usual, **values}, steps=30, steps_per_epoch=10)


@pytest.mark.parametrize('name', GROUPS)
def test_the_longest_key_decides_about_every_published_name(name):
    case = golden(f'bevt/param_groups_{name}')
    assert len(case['groups']) > 300
    for parameter, (rate, decay) in case['groups'].items():
        key = optimizers.longest_key(parameter, case['custom_keys'])
        found = case['custom_keys'].get(key, {})
        assert found.get('lr_mult', 1.0) == pytest.approx(rate, abs=1e-11), parameter
        assert found.get('decay_mult', 1.0) == decay, parameter


def test_equally_long_keys_go_by_the_alphabet():
    assert optimizers.longest_key('a/bb/cc', ['cc', 'bb', 'a']) == 'bb'
    assert optimizers.longest_key('a/bb/cc', ['x']) is None


PARAMS = {
    'backbone': {
        'blocks': {'attn': {'kernel': np.ones((3, 2, 2), np.float32)}, 'norm': {'scale': np.ones((3, 2), np.float32)}},
        'norm': {'scale': np.ones(2, np.float32)},
    },
    'head': {'kernel': np.ones((2, 4), np.float32)},
}


def made(**options):
    usual = {'warmup_epochs': 0, 'peak_rate': 0.1, 'end_rate': 0.1, 'weight_decay': 0.5}
    return optimizers.make_optimizer(PARAMS, lambda path, depth: 0, 8, 1, 10, 5, **usual, **options)


def test_groups_reach_single_blocks_of_a_stack():
    rates, decays = optimizers.group_factors(
        PARAMS, {'norm': (1.0, 0.0), 'backbone/block_1/': (0.5, 1.0), 'backbone/block_2/': (0.25, 0.5)}
    )
    flat = {path: np.squeeze(value).tolist() for path, value in trees.flatten(rates).items()}
    assert flat['backbone/blocks/attn/kernel'] == flat['backbone/blocks/norm/scale'] == [1.0, 0.5, 0.25]
    assert flat['backbone/norm/scale'] == flat['head/kernel'] == 1.0
    flat = {path: np.squeeze(value).tolist() for path, value in trees.flatten(decays).items()}
    assert flat['backbone/blocks/norm/scale'] == [0.0, 1.0, 0.5]  # the longer key wins: block 1's norm decays
    assert flat['backbone/blocks/attn/kernel'] == [1.0, 1.0, 0.5]
    assert (flat['backbone/norm/scale'], flat['head/kernel']) == (0.0, 1.0)


def test_groups_scale_the_rate_and_the_decay():
    optimizer = made(groups={'block_1/': (0.5, 2.0), 'norm': (1.0, 0.0)})
    grads = trees.unflatten({path: np.zeros_like(leaf) for path, leaf in trees.flatten(PARAMS).items()})
    updates, _ = optimizer.transform.update(grads, optimizer.transform.init(PARAMS), PARAMS, step=jnp.asarray(0))
    flat = trees.flatten(updates)
    np.testing.assert_allclose(flat['backbone/blocks/attn/kernel'][:, 0, 0], [0.5, 0.5 * 2 * 0.5, 0.5])
    np.testing.assert_allclose(flat['backbone/blocks/norm/scale'][:, 0], [0.0, 0.5 * 2 * 0.5, 0.0])
    np.testing.assert_allclose(flat['head/kernel'], 0.5)


@pytest.mark.parametrize(
    ('groups', 'message'),
    [
        ({'nrom': (1.0, 0.0)}, r"no parameter has 'nrom' in its name"),
        ({'block_3/': (1.0, 0.0)}, r"no parameter has 'block_3/' in its name"),
        ({'norm': (1.0,)}, r'optim\.groups\.norm must be \(factor of the rate, factor of the decay\)'),
        ({'norm': (-1.0, 1.0)}, r'optim\.groups\.norm must be .* both at least 0'),
    ],
)
def test_groups_that_cannot_be(groups, message):
    with pytest.raises(UserError, match=message):
        made(groups=groups)
    with pytest.raises(UserError, match='either groups or layer_decay'):
        made(groups={'norm': (1.0, 0.0)}, layer_decay=0.9)


def drawn(name, shape):
    """The golden README's rule for a parameter of one axis whose name does not end in 'weight'."""
    return (0.1 * np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).astype(np.float32)


def test_the_average_of_every_iteration():
    case = AVERAGES['cases'][0]
    ema, params = drawn('ema.init', 4), None
    for number, wanted in enumerate(case['ema_after_each_iteration']):
        params = drawn(f'ema.{AVERAGES["seed"]}.{number}', 4)
        ema = average(ema, None, params, 1.0 - case['momentum'])
        np.testing.assert_allclose(ema, wanted, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(params, case['raw_before_epoch_end'], rtol=1e-6)


def test_a_step_averages_as_often_as_the_published_loop():
    """The traced run: two micro-batches a step, the average moves after both, the parameters with the second."""
    trace = [entry for entry in AVERAGES['real_run']['trace'] if 'iteration' in entry]
    ema = before = np.asarray(trace[0]['w'], np.float32)
    for number in range(0, len(trace), 2):
        after = np.asarray(trace[number + 1]['w'], np.float32)
        # Momentum 0.1 meets mmcv's warm-up of it, (1 + i) / (100 + i), which no published run notices.
        shares = [(1 + i) / (100 + i) for i in (number, number + 1)]
        ema = average(ema, None, before, 1.0 - shares[0])
        ema = average(ema, before, after, 1.0 - shares[1])
        np.testing.assert_allclose(ema, trace[number + 1]['ema_w'], rtol=1e-6)
        before = after


def test_several_updates_at_once_are_the_same_one_by_one():
    ema, before, after = (drawn(f'average.{i}', 5) for i in range(3))
    slowly = ema
    for params in [before] * 7 + [after]:
        slowly = average(slowly, None, params, 0.9)
    np.testing.assert_allclose(average(ema, before, after, 0.9, 8), slowly, rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match=r'config\.run\.ema_updates must be at least 1'):
        Run(global_batch=8, steps=1, ema_updates=0)
