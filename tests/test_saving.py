"""Checkpoints of a run: verified before they count, kept, set aside, restored anywhere; what a broken disk does."""

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from multiprocess import environment

from mvdjax import fingerprints, integrity, saving, sharding
from mvdjax import main as cli
from mvdjax.checkpoints import find_step_folder, read_meta, step_numbers
from mvdjax.errors import UserError
from mvdjax.saving import Checkpoints, SaveTimer
from mvdjax.train_state import TrainState

META = {'schema_version': 1, 'data_position': {}, 'step': 0}


def make_state(step, mesh=None):
    """A state of every kind of leaf, that differs from step to step; the kernel is large enough to be sharded."""
    key = jax.random.key(step)
    params = {
        'encoder': {'kernel': jax.random.normal(key, (256, 64)), 'bias': jnp.full(3, step, jnp.float32)},
        'half': jax.random.normal(key, (5, 7), jnp.bfloat16),
    }
    opt_state = optax.adamw(1e-3).init(params)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), opt_state)
    state = TrainState(jnp.int32(step), jnp.int32(0), params, opt_state, jax.tree.map(lambda x: x * 2, params))
    return state if mesh is None else jax.device_put(state, sharding.tree_sharding(state, mesh))


def save(workdir, *steps, keep=9, **options):
    with Checkpoints(str(workdir), keep, **options) as saved:
        for step in steps:
            saved.save(make_state(step), {**META, 'step': step})


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
    """A workdir with checkpoints 1 and 2. Copy it before you break it."""
    workdir = tmp_path_factory.mktemp('two_steps')
    save(workdir, 1, 2)
    return workdir


@pytest.fixture
def broken(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / 'run')
    return tmp_path / 'run'


def steps_of(workdir):
    return step_numbers(epath.Path(workdir) / 'checkpoints')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'int8', 'bool'])
def test_a_fingerprint_is_the_same_on_the_host_and_on_any_devices(dtype):
    array = (
        np.asarray(jax.random.uniform(jax.random.key(0), (16, 4, 8)) * 100 > 50).astype(dtype)
        if dtype == 'bool'
        else (np.asarray(jax.random.uniform(jax.random.key(0), (16, 4, 8)) * 100).astype(dtype))
    )
    expected = integrity.fingerprint(array)
    count = min(8, jax.device_count())
    mesh = sharding.make_mesh(data=1, fsdp=count, devices=count)
    for placed in (jnp.asarray(array), jax.device_put(array, NamedSharding(mesh, P('fsdp', None)))):
        assert fingerprints.table({'item': {'x': placed}}) == {'item': {'x': [[16, 4, 8], dtype, expected]}}
    # One bit, or two values exchanged, and it is another.
    one = array.copy().reshape(-1)
    one.view(np.uint8)[5] ^= 1
    assert integrity.fingerprint(one) != expected
    two = array.copy().reshape(-1)
    other = np.flatnonzero(two != two[0])[0]
    two[[0, other]] = two[[other, 0]]
    assert integrity.fingerprint(two) != expected


def test_a_fingerprint_of_a_large_array_is_summed_in_pieces(monkeypatch):
    array = np.arange(10_000, dtype=np.float32)
    whole = integrity.fingerprint(array)
    monkeypatch.setattr(integrity, '_CHUNK', 77)
    assert integrity.fingerprint(array) == whole
    assert integrity.fingerprint(np.float64([1.5, -2.0])) == integrity.fingerprint(
        np.float64([1.5, -2.0]).view(np.uint32)
    )


def test_a_checkpoint_says_what_was_saved_and_reads_back_in_groups(two_steps, monkeypatch):
    folder = epath.Path(two_steps) / 'checkpoints' / '2'
    assert integrity.check_thoroughly(folder) is None
    monkeypatch.setattr(integrity, 'GROUP', 100)
    arrays = dict(integrity.read_arrays(folder / 'train', 100))
    stored = integrity.stored_fingerprints(folder)['train']
    assert arrays.keys() == stored.keys()
    assert {path: integrity.fingerprint(array) for path, array in arrays.items()} == {
        path: entry[2] for path, entry in stored.items()
    }
    assert 'opt_state/0/mu/encoder/kernel' in arrays


@pytest.mark.parametrize('how', ['truncated', 'removed', 'flipped', 'no meta'])
@pytest.mark.parametrize('file', ['params/d', 'train/manifest.ocdbt', 'ema/_METADATA'])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(broken, how, file, capsys):
    folder = broken / 'checkpoints' / '2'
    path = folder / ('meta/metadata' if how == 'no meta' else file)
    path = next(path.iterdir()) if path.is_dir() else path
    if how in ('removed', 'no meta'):
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if how == 'flipped' else data[:-1])
    with Checkpoints(str(broken), 9) as saved:
        assert saved.latest() == 1
        mesh = sharding.make_mesh(data=1, devices=1)
        restored = saved.restore(1, jax.eval_shape(make_state, 1), mesh)
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(1))
    assert 'WARNING' in (said := capsys.readouterr().out)
    assert 'set aside as damaged-2' in said
    assert (broken / 'checkpoints' / 'damaged-2').is_dir()
    assert find_step_folder(str(broken)).name == '1'


def test_where_all_are_damaged_nothing_starts_afresh(broken):
    for step in (1, 2):
        (broken / f'checkpoints/{step}/params/manifest.ocdbt').unlink()
    for _ in range(2):
        with Checkpoints(str(broken), 9) as saved, pytest.raises(UserError, match=r'every checkpoint .* is damaged'):
            saved.latest()


def test_flipped_bytes_in_a_checkpoint_without_sums_are_found_by_its_fingerprints(broken):
    folder = epath.Path(broken) / 'checkpoints' / '2'
    (folder / integrity.RECORD).unlink()
    assert integrity.check(folder) is None  # all is read and compared
    table = json.loads((folder / 'fingerprints' / 'metadata').read_text())
    table['params']['encoder/bias'][2] ^= 1
    (folder / 'fingerprints' / 'metadata').write_text(json.dumps(table))
    assert integrity.check(folder) == 'params/encoder/bias holds other values than were saved'
    with Checkpoints(str(broken), 9) as saved, pytest.raises(UserError, match='restored with other values'):
        saved.restore(2, jax.eval_shape(make_state, 1), sharding.make_mesh(data=1, devices=1))


def test_what_is_kept_and_what_is_never_deleted(tmp_path):
    save(tmp_path, 1)
    (tmp_path / 'checkpoints/1').rename(tmp_path / 'checkpoints/3')  # from elsewhere: the run has not made a step 3
    for name in ('2.orbax-checkpoint-tmp', '4.orbax-checkpoint-tmp'):
        (tmp_path / 'checkpoints' / name).mkdir()
    with Checkpoints(str(tmp_path), 2, keep_every=10) as saved:
        assert saved.latest() == 3
        for step in (4, 8, 10, 12, 14):
            saved.save(make_state(step), {**META, 'step': step})
            saved.wait()
    assert steps_of(tmp_path) == [3, 10, 12, 14]
    names = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
    assert '2.orbax-checkpoint-tmp' in names  # not of a save of this run
    save(tmp_path, 16, keep=1, keep_every=5)
    assert steps_of(tmp_path) == [3, 10, 16]


def test_half_a_save_is_cleaned_away_at_the_next_start(tmp_path):
    save(tmp_path, 1, 2)
    half = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
    (tmp_path / 'checkpoints' / '2').rename(half)
    with Checkpoints(str(tmp_path), 9) as saved:
        assert saved.latest() == 1
        assert not half.exists()
        saved.save(make_state(2), {**META, 'step': 2})
    assert read_meta(str(tmp_path))['step'] == 2


def test_a_deletion_that_is_cut_short_leaves_no_half_step_and_is_done_later(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    folder, cut = tmp_path / 'checkpoints', []

    def removed_by_half(path):
        cut.append(path.name)
        (path / integrity.RECORD).unlink()
        raise OSError('the process dies here')

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(folder)), 'rmtree', removed_by_half)
        save(tmp_path, 3, keep=2)
    assert cut
    assert set(cut) == {'deleted-1'}
    assert steps_of(tmp_path) == [2, 3]
    assert [integrity.check(epath.Path(folder / name)) for name in ('2', '3')] == [None, None]
    (folder / 'deleted-5').mkdir()  # the run has not made a step 5
    with Checkpoints(str(tmp_path), 2) as saved:
        assert saved.latest() == 3
    assert {p.name for p in folder.iterdir()} == {'2', '3', 'deleted-5'}


def test_another_process_that_is_lost_amid_a_save_is_no_fault_of_the_disk(tmp_path, monkeypatch):
    def lost():
        try:
            raise jax.errors.JaxRuntimeError('UNAVAILABLE: Socket closed')
        except jax.errors.JaxRuntimeError as error:
            raise TimeoutError('Timed out while waiting for async_commit_complete barrier.') from error

    with Checkpoints(str(tmp_path), 1) as saved, monkeypatch.context() as patch:
        patch.setattr(saved._writer, 'wait_until_finished', lost)
        with pytest.raises(jax.errors.JaxRuntimeError, match='Socket closed'):
            saved.wait()


def test_what_is_not_read_back_as_it_was_saved_never_gets_a_name(tmp_path, monkeypatch):
    save(tmp_path, 1)
    real = integrity.read_arrays

    def other(item, *args):
        for path, array in real(item, *args):
            yield path, array + 1 if path == 'encoder/bias' else array

    monkeypatch.setattr(integrity, 'read_arrays', other)
    with Checkpoints(str(tmp_path), 1) as saved:
        saved.latest()
        saved.save(make_state(2), {**META, 'step': 2})
        with pytest.raises(UserError, match=r'saving step 2 .*encoder/bias holds other values than were saved'):
            saved.wait()
    assert steps_of(tmp_path) == [1]
    assert not list((tmp_path / 'checkpoints').glob('*tmp*'))


def fill_the_disk(workdir):
    """Run in a process of its own, whose files cannot grow beyond a limit: writes fail half-way, wherever that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i, limit in enumerate((0, 50, 1_000, 10_000)):
        place = Path(workdir) / str(i)
        save(place, 1)
        try:
            with Checkpoints(str(place), 1) as saved:
                assert saved.latest() == 1
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                saved.save(make_state(2), {**META, 'step': 2})
        except UserError as error:
            print(limit, error, flush=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_stops_the_run_with_the_last_checkpoint_intact(tmp_path):
    command = [sys.executable, '-c', f'import test_saving; test_saving.fill_the_disk({str(tmp_path)!r})']
    done = subprocess.run(command, env=environment(1), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 4
    for i, line in enumerate(told):
        assert re.match(r'\d+ saving step 2 to .* failed .*earlier checkpoints are untouched', line)
        place = tmp_path / str(i)
        assert steps_of(place) == [1]
        assert not list(place.glob('checkpoints/*tmp*'))
        assert integrity.check_thoroughly(epath.Path(place) / 'checkpoints' / '1') is None
    save(place, 2, keep=1)  # there is room again
    assert steps_of(place) == [2]


def test_an_asynchronous_save_that_failed_is_told_at_the_next_step(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(integrity, 'write_record', full)
    with Checkpoints(str(tmp_path), 1) as saved:
        saved.save(make_state(1), {**META, 'step': 1})
        saved._writer._async_manager._thread.join()
        with pytest.raises(UserError, match=r'saving step 1 .*No space left on device'):
            saved.check()
        saved.check()  # told once
    assert steps_of(tmp_path) == []


@pytest.mark.skipif(jax.device_count() < 8, reason='needs 8 devices')
def test_a_checkpoint_of_8_devices_is_restored_on_4_and_on_1(tmp_path):
    expected = make_state(5)
    on8 = make_state(5, sharding.make_mesh(data=2, fsdp=4))
    assert len({str(s.index) for s in on8.params['encoder']['kernel'].addressable_shards}) == 4
    with Checkpoints(str(tmp_path), 1) as saved:
        saved.save(on8, {**META, 'step': 5})
    for sizes in ({'data': 2, 'fsdp': 2, 'devices': 4}, {'data': 1, 'devices': 1}, {'data': 1, 'fsdp': 8}):
        mesh = sharding.make_mesh(**sizes)
        with Checkpoints(str(tmp_path), 1) as saved:
            found = saved.restore(saved.latest(), jax.eval_shape(make_state, 5), mesh)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        kernel = found.ema['encoder']['kernel']
        assert len({str(s.index) for s in kernel.addressable_shards}) == mesh.shape['fsdp']
        assert found.opt_state[0].mu['encoder']['kernel'].sharding.mesh == mesh


def test_saves_by_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(saving.time, 'monotonic', lambda: now[0])
    timer, never = SaveTimer(2.0), SaveTimer(0.0)
    now[0] += 119
    assert not timer.due(ask=False)
    now[0] += 1
    assert timer.due(ask=False)
    assert not never.due(ask=True)
    timer.restart()
    assert not timer.due(ask=True)


def test_ckpt_list_and_verify(broken, capsys):
    assert cli.main(['ckpt', 'verify', str(broken)]) == 0
    assert capsys.readouterr().out.count('whole, ') == 2
    path = next((broken / 'checkpoints/2/params/d').iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    (broken / 'checkpoints/1').rename(broken / 'checkpoints/damaged-1')
    (broken / 'metrics.jsonl').write_text(json.dumps({'step': 2, 'kind': 'train', 'loss': 0.25, 'epoch': 1.0}) + '\n')
    assert cli.main(['ckpt', 'list', str(broken)]) == 0
    header, damaged, aside = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ['step', 'size']
    assert re.match(r'2 +\d+\.\d KiB +20.* loss 0\.25 +DAMAGED: params/d/', damaged)
    assert aside.endswith('set aside')
    assert cli.main(['ckpt', 'list', str(broken), '--json']) == 0
    assert [json.loads(line)['step'] for line in capsys.readouterr().out.splitlines()] == ['2', 'damaged-1']
    assert cli.main(['ckpt', 'verify', str(broken / 'checkpoints/2')]) == 1
    assert re.search(r'DAMAGED, params/d/\w+ has \d+ bytes instead of \d+\n1 of 1 damaged', capsys.readouterr().out)
    assert cli.main(['ckpt', 'verify', str(broken / 'tensorboard')]) == 1
    assert 'no checkpoint in' in capsys.readouterr().err


def test_ckpt_copy(two_steps, tmp_path, capsys, monkeypatch):
    (two_steps / 'metrics.jsonl').write_text('{}\n')
    assert cli.main(['ckpt', 'copy', str(two_steps), str(tmp_path / 'all')]) == 0
    assert cli.main(['ckpt', 'copy', str(two_steps / 'checkpoints/2'), str(tmp_path / 'one')]) == 0
    assert (tmp_path / 'all/metrics.jsonl').exists()
    assert not (tmp_path / 'one/metrics.jsonl').exists()
    assert steps_of(tmp_path / 'all') == [1, 2]
    assert cli.main(['ckpt', 'verify', str(tmp_path / 'one')]) == 0
    capsys.readouterr()
    assert cli.main(['ckpt', 'copy', str(two_steps / 'checkpoints/2'), str(tmp_path / 'one')]) == 0
    assert 'was there already' in capsys.readouterr().out
    with Checkpoints(str(tmp_path / 'one'), 1) as saved:  # a run goes on from the copy, and leaves it where it is
        assert saved.latest() == 2
        for step in (3, 4):
            saved.save(make_state(step), {**META, 'step': step})
    assert steps_of(tmp_path / 'one') == [2, 4]

    (tmp_path / 'one/checkpoints/4').rename(tmp_path / 'all/checkpoints/9')
    assert cli.main(['ckpt', 'copy', str(tmp_path / 'all/checkpoints/9'), str(tmp_path / 'new')]) == 0
    shutil.rmtree(tmp_path / 'new/checkpoints/9/params')
    assert cli.main(['ckpt', 'copy', str(tmp_path / 'all/checkpoints/9'), str(tmp_path / 'new')]) == 1
    assert 'another checkpoint, or half of one' in capsys.readouterr().err
    assert cli.main(['ckpt', 'copy', str(tmp_path / 'new/checkpoints/9'), str(tmp_path / 'newer')]) == 1
    assert 'is damaged (params/' in capsys.readouterr().err

    from mvdjax.ckpt import copying

    def cut(source, target, name):
        with target.open(name, 'wb') as file:
            file.write(b'half')
        raise OSError(28, 'No space left on device', name)

    monkeypatch.setattr(copying, '_transfer', cut)
    assert cli.main(['ckpt', 'copy', str(two_steps), str(tmp_path / 'full')]) == 1
    assert list((tmp_path / 'full/checkpoints').iterdir()) == []


def test_ckpt_copy_to_a_store_and_back(two_steps, tmp_path):
    import fsspec

    from mvdjax.ckpt import copying

    written = []
    store = fsspec.filesystem('memory')
    source = str(two_steps / 'checkpoints/2')
    real = copying._transfer
    try:
        copying._transfer = lambda a, b, name: written.append(name) or real(a, b, name)
        assert copying.copy_step(source, 'memory://bucket/run/checkpoints/2') == 'copied'
    finally:
        copying._transfer = real
    assert written[-2:] == ['meta/metadata', 'commit_success.txt']
    assert copying.copy_step('memory://bucket/run/checkpoints/2', str(tmp_path / 'back')) == 'copied'
    assert integrity.check_thoroughly(epath.Path(tmp_path / 'back')) is None
    store.rm('/bucket', recursive=True)
