"""Learning-rate schedules and scaling against the published ones, and the optimizer options built on them."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import full_arrays, golden
from ml_collections import ConfigDict

from mvdjax import optimizers, schedules
from mvdjax.errors import UserError
from mvdjax.settings import Run
from mvdjax.train import make_optimizer

CASES = {case['name']: case for case in golden('data/schedules')['schedules']}
TABLES = full_arrays('data/schedules')
RECORDS = 1000
PARAMS = {'encoder': {'kernel': np.ones((2, 3), np.float32), 'bias': np.ones(3, np.float32)}}


def built(name):
    case = CASES[name]
    per_epoch, longer = case['steps_per_epoch'], case.get('warmup_steps', -1)
    warmup = longer if longer > 0 else case.get('warmup_epochs', 0) * per_epoch
    return warmup, schedules.warmup_cosine(case['base_value'], case['final_value'], warmup, case['epochs'] * per_epoch)


@pytest.mark.parametrize('name', CASES)
def test_schedule(name):
    case, table = CASES[name], TABLES[name]
    warmup, schedule = built(name)
    assert len(table) == case['length']
    first = 0
    if 'start_warmup_value' in case:  # ours start at 0, as every published run does: compare the cosine
        first = warmup
        assert table[0] == case['start_warmup_value']
    found = np.asarray(schedule(jnp.arange(len(table))))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[first:], table[first:], rtol=1e-5, atol=2e-7 * case['base_value'])


def test_first_step_has_no_rate_and_the_peak_comes_twice():
    warmup, schedule = built('finetune_75x4_warm5')
    peak = np.float32(CASES['finetune_75x4_warm5']['base_value'])
    assert float(schedule(0)) == 0.0
    assert float(schedule(warmup - 1)) == float(schedule(warmup)) == pytest.approx(peak, rel=1e-7)
    assert float(schedule(warmup - 2)) < peak > float(schedule(warmup + 1))


def test_the_end_is_held():
    case = CASES['finetune_75x4_warm5']
    _, schedule = built('finetune_75x4_warm5')
    assert float(schedule(case['length'] - 1)) > case['final_value']
    for step in (case['length'], case['length'] + 1, 10 * case['length']):
        assert float(schedule(step)) == pytest.approx(case['final_value'], rel=1e-5)


def made(data, optim, run, records=RECORDS):
    """The optimizer as the training loop makes it of these sections."""
    config = ConfigDict({'data': {'files': '', **data}, 'optim': optim})
    task = SimpleNamespace(layer_index=lambda path, depth: 0)
    return make_optimizer(config, run, task, PARAMS, records)


def recipe(name, views):
    masks = {'patch': (2, 16, 16), 'mask': {'kind': 'tube', 'ratio': 0.9}} if name == 'pretrain' else {}
    return {'recipe': name, 'options': {'size': 32, 'views': views, **masks}}


@pytest.mark.parametrize('case', golden('data/schedules')['lr_scaling'], ids=lambda c: c['script'])
def test_published_rate_scaling(case):
    asked, result, records = case['args'], case['result'], case['dataset_size']
    pretraining = case['script'].endswith('pretrain')
    run = Run(global_batch=asked['batch_size'] * asked['update_freq'] * case['world_size'], epochs=3)
    assert run.steps_per_epoch(records) == result['steps_per_epoch']
    optimizer = made(
        recipe('pretrain' if pretraining else 'finetune', asked['num_sample']),
        {
            'base_rate': asked['lr'],
            'base_end_rate': asked['min_lr'],
            'rate_counts': 'views' if pretraining else 'videos',
            'warmup_epochs': 1,
        },
        run,
        records,
    )
    assert float(optimizer.schedule(result['steps_per_epoch'])) == pytest.approx(result['lr'], rel=1e-6)
    assert float(optimizer.schedule(run.total_steps(records))) == pytest.approx(result['min_lr'], rel=1e-6)


def test_what_the_rate_counts_must_be_said_where_it_matters():
    run = Run(global_batch=256, steps=10)
    rates = {'base_rate': 1e-3, 'warmup_epochs': 0}
    assert float(made(recipe('finetune', 1), rates, run).schedule(0)) == pytest.approx(1e-3)
    with pytest.raises(
        UserError, match=r"gives 2 views, .* optim\.rate_counts is 'views' in the published pretraining"
    ):
        made(recipe('finetune', 2), rates, run)
    with pytest.raises(UserError, match=r"optim\.rate_counts must be one of videos, views, not 'clips'"):
        made(recipe('finetune', 2), {**rates, 'rate_counts': 'clips'}, run)
    absolute = made(recipe('finetune', 2), {'peak_rate': 1e-3, 'warmup_epochs': 0}, run)
    assert float(absolute.schedule(0)) == pytest.approx(1e-3)


@pytest.mark.parametrize('name', ['weight_decay_constant', 'weight_decay_increasing'])
def test_weight_decay(name):
    case, table = CASES[name], TABLES[name]
    optim = {'peak_rate': 1e-3, 'warmup_epochs': 2, 'weight_decay': case['base_value']}
    run = Run(global_batch=RECORDS // case['steps_per_epoch'], epochs=case['epochs'])
    optimizer = made(recipe('finetune', 1), {**optim, 'weight_decay_end': case['final_value']}, run)
    np.testing.assert_allclose(optimizer.weight_decay(jnp.arange(len(table))), table, rtol=1e-5)
    assert float(optimizer.weight_decay(len(table))) == pytest.approx(case['final_value'], rel=1e-6)
    assert made(recipe('finetune', 1), optim, run).weight_decay is None
    with pytest.raises(UserError, match=r'weight decays .* must not be negative'):
        made(recipe('finetune', 1), {**optim, 'weight_decay_end': -0.1}, run)


@pytest.mark.parametrize(('warmup', 'steps'), [(5, 5), (7, 5), (-1, 5), (0, 0)])
def test_a_warmup_that_does_not_fit(warmup, steps):
    with pytest.raises(UserError, match=f'a warm-up of {warmup} steps does not fit into a run of {steps} steps'):
        schedules.warmup_cosine(1.0, 0.0, warmup, steps)


@pytest.mark.parametrize('rates', [{}, {'base_rate': 1e-3, 'peak_rate': 1e-3}])
def test_exactly_one_spelling_of_the_rate(rates):
    with pytest.raises(UserError, match='give either base_rate'):
        made(recipe('finetune', 1), {'warmup_epochs': 0, **rates}, Run(global_batch=256, steps=10))


def test_every_parameter_needs_one_decay_rule():
    mask = optimizers.decay_mask(PARAMS, ('kernel$',), ('bias$',))
    assert mask == {'encoder': {'kernel': True, 'bias': False}}
    with pytest.raises(UserError, match='encoder/bias matched by neither'):
        optimizers.decay_mask(PARAMS, ('kernel$',), ())
    with pytest.raises(UserError, match='encoder/kernel matched by both'):
        optimizers.decay_mask(PARAMS, ('kernel$',), ('bias$', 'kernel'))
