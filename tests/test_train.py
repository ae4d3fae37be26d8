"""The loop: resume to the bit, devices, accumulation, skipped steps, average, hand-over."""

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import multiprocess
import numpy as np
import pytest
import small_runs

from mvdjax import checkpoints, sharding, train_state
from mvdjax import config as configs
from mvdjax.data.pipeline import BadFiles, Data, train_batches
from mvdjax.errors import UserError
from mvdjax.settings import Run
from mvdjax.train import make_optimizer, train
from mvdjax.train_step import compile_step


def first_batch(config):
    data = configs.build(Data, configs.section(config, 'data'), 'data')
    batches = train_batches(
        data, data.read(), seed=0, global_batch=config.run.global_batch, start_step=0, steps=1, bad=BadFiles(None)
    )
    batch = next(batches)
    batch.pop('substituted')
    return batch


def run_steps(config, steps=2, poison_at=None):
    """Losses and final state of a few steps on one batch, without files: the step function alone."""
    mesh = configs.build(sharding.make_mesh, configs.section(config, 'mesh'), 'mesh')
    task, host = configs.make_task(config), first_batch(config)
    run = configs.build(Run, configs.section(config, 'run'), 'run')
    optimizer = make_optimizer(config, run, task, train_state.abstract_params(task, host), 32)
    views = len(host['video']) // run.global_batch
    state = train_state.create(task, optimizer, host, run.seed, run.ema_decay > 0, mesh)
    frozen = sharding.place_tree(task.frozen(), mesh)
    step = compile_step(task, optimizer, run, state, mesh, views)
    found = []
    for i in range(steps):
        if i == poison_at:
            bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), frozen)
            state, values = step(state, bad, sharding.place_batch(host, mesh))
        else:
            state, values = step(state, frozen, sharding.place_batch(host, mesh))
        found.append(jax.device_get(values))
    assert step.compilations <= 1, 'the step compiled more than once'
    return found, jax.device_get(state)


@functools.cache
def one_device(stage, data):
    """Three steps on one device: what the other runs are compared with."""
    return run_steps(small_runs.load(stage, data, 'mesh.devices=1'), 3)


def test_accumulation_is_one_large_batch(demo_data):
    whole, _ = one_device('mvd', demo_data)
    parts, _ = run_steps(small_runs.load('mvd', demo_data, 'mesh.devices=1', 'run.accumulate=4'), 1)
    np.testing.assert_allclose(whole[0]['loss'][0], parts[0]['loss'][0], rtol=1e-5)
    np.testing.assert_allclose(whole[0]['grad_norm'][0], parts[0]['grad_norm'][0], rtol=1e-4)
    assert parts[0]['loss'][1] == whole[0]['loss'][1] == 32  # 8 videos, 4 clips of each


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(demo_data):
    config = small_runs.load('mvd', demo_data, 'mesh.devices=1', 'run.ema_decay=0.9')
    _, before = run_steps(config, 1)
    values, after = run_steps(config, 2, poison_at=1)
    assert after.step == 2
    assert after.skipped == 1
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, after.opt_state)
    jax.tree.map(np.testing.assert_array_equal, before.ema, after.ema)
    assert values[1]['skipped'][0] == 1
    assert values[1]['loss'] == (0, 0)


def test_the_average_follows_the_parameters(demo_data):
    config = small_runs.load('videomae', demo_data, 'mesh.devices=1', 'run.ema_decay=0.75')
    _, start = run_steps(config, 0)
    _, one = run_steps(config, 1)
    _, two = run_steps(config, 2)
    expected = jax.tree.map(
        lambda a, b, c: 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c, start.params, one.params, two.params
    )
    jax.tree.map(lambda e, x: np.testing.assert_allclose(e, x, rtol=1e-5, atol=1e-6), expected, two.ema)


def test_bfloat16_computes_close_and_keeps_float32_state(demo_data):
    exact, state = one_device('videomae', demo_data)
    half, half_state = run_steps(
        small_runs.load('videomae', demo_data, 'mesh.devices=1', 'task.encoder.dtype=bfloat16'), 3
    )
    assert {x.dtype for x in jax.tree.leaves((state.params, half_state.params))} == {np.dtype('float32')}
    assert half[1]['loss'][0] != exact[1]['loss'][0]
    np.testing.assert_allclose(half[1]['loss'][0], exact[1]['loss'][0], rtol=2e-2)


CHAOS = Path(__file__).parent / 'integration' / 'chaos.py'
LONG = ('mesh.devices=1', 'run.compile_cache=', 'run.steps=14', 'run.save_every=3', 'run.ema_decay=0.9')


@pytest.fixture(scope='module')
def chaos(demo_data, tmp_path_factory):
    """(folder, output, status) of tests/integration/chaos.py: 2 processes, 3 kills, 2 of them in a save."""
    root = tmp_path_factory.mktemp('chaos')
    (root / 'data').symlink_to(demo_data)
    (root / 'cache').symlink_to(multiprocess.executables_folder(demo_data))
    options = ['--fork', '--devices=1', '--kills=3', '--saves=2', '--steps=14', '--save-every=3', f'--folder={root}']
    found = subprocess.run(
        [sys.executable, str(CHAOS), *options],
        env=multiprocess.environment(2),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    return root, found.stdout, found.returncode


@pytest.fixture(scope='module')
def undisturbed(chaos):
    """A finished run of 14 steps."""
    return chaos[0] / 'undisturbed'


def assert_same_end(workdir, reference):
    assert small_runs.losses(workdir) == small_runs.losses(reference)
    assert sorted(small_runs.losses(workdir)) == list(range(1, 15))
    for ema in (False, True):
        ours, theirs = (checkpoints.read_params(str(w), use_ema=ema) for w in (workdir, reference))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_a_run_killed_at_random_moments_ends_as_one_left_alone(chaos):
    """Two processes, one of them killed or both; loss by loss and parameter by parameter, no checkpoint lost."""
    root, printed, status = chaos
    assert status == 0, printed
    kills = re.search(r'^3 kills: (\{.*\})$', printed, re.MULTILINE)
    assert kills, printed
    assert ast.literal_eval(kills[1])['saving'] >= 2
    assert 'checkpoints lost or damaged: 0\n' in printed
    assert 'differences from the undisturbed run: 0\n' in printed
    assert_same_end(root / 'killed', root / 'undisturbed')
    assert not list((root / 'killed' / 'checkpoints').glob('damaged*'))


def test_a_finished_run_stays_as_it_is(demo_data, undisturbed):
    before = (undisturbed / 'metrics.jsonl').read_bytes()
    assert train(small_runs.load('videomae', demo_data, *LONG), str(undisturbed)) == {}
    assert (undisturbed / 'metrics.jsonl').read_bytes() == before


def test_resume_with_another_model_is_refused(demo_data, undisturbed):
    config = small_runs.load('videomae', demo_data, *LONG, 'run.steps=30', 'task.decoder.width=32')
    with pytest.raises(UserError, match='cannot be resumed with this config'):
        train(config, str(undisturbed))


def test_resume_as_another_run_is_refused_by_name(demo_data, undisturbed):
    for override, says in (
        ('run.seed=7', r'run\.seed is 7, the run had 0'),
        ('optim.peak_rate=1.0', 'optim.peak_rate'),
    ):
        with pytest.raises(UserError, match=f'cannot be resumed with this config: {says}'):
            train(small_runs.load('videomae', demo_data, *LONG, override), str(undisturbed))
    assert train(small_runs.load('videomae', demo_data, *LONG, 'data.threads=1'), str(undisturbed)) == {}


def test_resume_on_another_list_is_refused_and_on_moved_data_is_not(demo_data, undisturbed, tmp_path):
    config = small_runs.load('videomae', demo_data, *LONG)
    lines = Path(config.data.files).read_text().splitlines()
    for rows, says in (
        (lines[:-1], f'its list video had {len(lines)} files and has {len(lines) - 1} now; restore the list, or start'),
        (lines[::-1], f'had {len(lines)} files and has {len(lines)} now, but other ones, or in another order'),
    ):
        (tmp_path / 'list.txt').write_text('\n'.join(rows) + '\n')
        other = ('data.files=' + str(tmp_path / 'list.txt'), f'data.root={Path(config.data.files).parent}')
        with pytest.raises(UserError, match=says):
            train(small_runs.load('videomae', demo_data, *LONG, *other), str(undisturbed))
    moved = tmp_path / 'moved'
    moved.symlink_to(Path(config.data.files).parent)
    moved_list = f'data.files={moved / Path(config.data.files).name}'
    assert train(small_runs.load('videomae', demo_data, *LONG, moved_list), str(undisturbed)) == {}


def test_weights_are_not_read_with_another_meaning(demo_data, undisturbed, tmp_path):
    config = small_runs.load('finetune', demo_data, f'init.checkpoint={undisturbed}', 'task.model.pos_embed=sincos1d')
    with pytest.raises(UserError, match=r"trained with pos_embed 'sincos3d' \(here 'sincos1d'\)"):
        train(config, str(tmp_path))


def test_meta_says_where_weights_come_from(undisturbed):
    meta = checkpoints.read_meta(str(undisturbed))
    assert meta['step'] == 14
    lists = meta['data_position'].pop('lists')
    assert meta['data_position'] == {'next_sample': 14 * 8, 'files': {'video': [14 * 8, 0]}}
    assert list(lists) == ['video']
    assert re.fullmatch('[0-9a-f]{16}', lists['video']['hash'])
    assert meta['config']['task_name'] == 'mae'
    assert json.loads(json.dumps(meta)) == meta


def test_hand_over_loads_the_encoder_and_nothing_else(demo_data, undisturbed, tmp_path, capsys):
    video = ('task.teachers.video.checkpoint=' + str(undisturbed),)
    train(small_runs.load('mvd', demo_data, 'mesh.devices=1', 'run.steps=3', *video), str(tmp_path / 'student'))
    out = capsys.readouterr().out
    assert f'video teacher from {undisturbed}/checkpoints/14' in out
    meta = checkpoints.read_meta(str(tmp_path / 'student'))
    assert [s['checkpoint'] for s in meta['sources']] == [str(undisturbed)]

    frozen = ('run.steps=1', 'optim.warmup_epochs=0', 'optim.peak_rate=0.0')  # so that what was loaded can be compared
    config = small_runs.load('finetune', demo_data, 'mesh.devices=1', *frozen, f'init.checkpoint={tmp_path}/student')
    train(config, str(tmp_path / 'finetuned'))
    out = capsys.readouterr().out
    assert 'loaded  backbone/encoder' in out
    assert 'fresh   head/kernel' in out
    assert 'unused  decoders_image' in out
    source, target = (checkpoints.read_params(str(tmp_path / n)) for n in ('student', 'finetuned'))
    for name, value in target.items():
        if name.startswith('backbone/'):
            np.testing.assert_array_equal(value, source[name], err_msg=name)


def test_a_checkpoint_of_another_size_is_refused_by_name(demo_data, undisturbed, tmp_path):
    config = small_runs.load('finetune', demo_data, f'init.checkpoint={undisturbed}', 'task.model.variant=nano')
    with pytest.raises(UserError, match=r'does not fit the initial parameters: backbone/.* expected'):
        train(config, str(tmp_path))


def test_left_over_tensors_are_refused_unless_allowed(demo_data, undisturbed, tmp_path):
    config = small_runs.load('finetune', demo_data, f'init.checkpoint={undisturbed}', "init.allow_unused=('norm',)")
    with pytest.raises(UserError, match=r'has the extra .*decoders_pixels.*init.allow_unused'):
        train(config, str(tmp_path / 'a'))
    config = small_runs.load('finetune', demo_data, f'init.checkpoint={undisturbed}', 'init.allow_fresh=()')
    with pytest.raises(UserError, match=r'lacks .*fc_norm'):
        train(config, str(tmp_path / 'b'))


def test_many_skipped_steps_in_a_row_stop_the_run_with_a_report(demo_data, tmp_path):
    config = small_runs.load(
        *('videomae', demo_data, 'mesh.devices=1', 'optim.peak_rate=1e38', 'run.steps=14', 'run.log_every=3'),
        'run.max_rollbacks=1',
    )
    with pytest.raises(UserError, match=r'1[0-3] steps in a row, \d+ to \d+, were not finite .* after 1 rollbacks'):
        train(config, str(tmp_path))


def test_the_placement_of_every_parameter_is_by_rule():
    shapes = {'backbone/encoder/blocks/attn/qkv/kernel': (12, 768, 3, 12, 64), 'backbone/norm/scale': (768,)}
    mesh = sharding.make_mesh(data=1, devices=1)
    for path, shape in shapes.items():
        assert sharding.parameter_sharding(path, shape, mesh).spec == jax.sharding.PartitionSpec(*[None] * len(shape))
    if jax.device_count() >= 8:
        mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
        spec = sharding.parameter_sharding('backbone/encoder/blocks/attn/qkv/kernel', (12, 768, 3, 12, 64), mesh).spec
        assert spec == jax.sharding.PartitionSpec(None, 'fsdp', None, 'tensor', None)
