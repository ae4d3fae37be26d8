import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from multiprocess import Group, free_port

from mvdjax import processes, startup_checks, topology
from mvdjax.data.bad_files import BadFiles, merge_bad_files, read_bad_files, remove_bad_files
from mvdjax.data.decode import DecodeError
from mvdjax.data.schema import Record
from mvdjax.errors import TRY_AGAIN, UserError

STEPPING = str(Path(__file__).parent / 'stepping.py')


def stepping(tmp_path, start=(0, 1), workdirs=('w', 'w'), more=((), ()), variables=({}, {})):
    """Two processes of tests/stepping.py, or one of them."""
    port = free_port()
    commands = [
        [
            sys.executable,
            STEPPING,
            f'--workdir={tmp_path / workdirs[i]}',
            f'--coordinator=127.0.0.1:{port}',
            '--processes=2',
            f'--process={i}',
            *more[i],
        ]
        for i in start
    ]
    return Group(tmp_path / 'logs', commands, devices=1, variables=[variables[i] for i in start])


@pytest.mark.parametrize('killed', [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_a_sentence(tmp_path, killed):
    with stepping(tmp_path) as group:
        group.wait_for(lambda: 'step 3 7\n' in group.output(0), 120)  # 0 + 3 and 1 + 3
        for process in (0, 1):
            assert "broadcast [0, 'x'], numbers [0, 1]" in group.output(process)
        assert os.listdir(tmp_path / 'w') == []
        start = time.monotonic()
        group.kill(killed)
        codes = group.wait(30)
        assert time.monotonic() - start < 12  # run.heartbeat_timeout is 10 s
        assert codes[1 - killed] == TRY_AGAIN
        assert f'error: process {killed} on ' in group.output(1 - killed)
        assert 'was lost: its connection closed' in group.output(1 - killed)
        assert 'Traceback' not in group.output(1 - killed)


def test_an_exception_of_one_ends_all(tmp_path):
    with stepping(tmp_path, more=((), ('--raises',))) as group:
        assert group.wait(120) == [1, 1]
        assert 'ValueError: a fault of the program' in group.output(1)
        assert 'Traceback' in group.output(1)
        assert 'has ended: ValueError: a fault of the program' in group.output(0)
        assert 'Traceback' not in group.output(0)


def test_a_hang_of_one_shows_the_stacks_of_all(tmp_path):
    # Process 0 notices, which waits for process 1 in its step.
    with stepping(tmp_path, more=(('--hang-minutes=0.2',), ('--hangs',))) as group:
        assert group.wait(120) == [TRY_AGAIN, TRY_AGAIN]
        for process in (0, 1):
            assert 'process 0 on ' in group.output(process)
            assert 'has ended no step for 0.2 minutes (run.hang_minutes)' in group.output(process)
            assert f'process {process} on ' in group.output(process)
            assert ', every thread:\n' in group.output(process)
            assert 'in take_steps' in group.output(process)
        assert 'in stuck' in group.output(1)


def test_a_process_that_never_starts_is_named(tmp_path):
    short = ('--init-timeout=6',)
    one, two = tmp_path / 'a', tmp_path / 'b'
    with stepping(one, start=(0,), more=(short, ())) as first, stepping(two, start=(1,), more=((), short)) as second:
        assert first.wait(60) == second.wait(60) == [1]
        assert 'waiting for 1 of 2 processes: 1\n' in first.output(0)
        assert '1 of 2 processes have not started within run.init_timeout, 6 s: 1; here are 0 on' in first.output(0)
        assert '[process 1] waiting for process 0' in second.output(0)
        assert '[process 1] error: process 0 has not answered at 127.0.0.1:' in second.output(0)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (
            {'more': ((), ('--seed=1',))},
            'has 1 for config.run.seed, process 0 on .* has 0: start all .* the same config',
        ),
        (
            {'variables': ({}, {'XLA_FLAGS': '--x'})},
            "has '--x' for the variable XLA_FLAGS, process 0 on .* has nothing",
        ),
        (
            {'workdirs': ('w', 'v'), 'more': (('--visible=0.5',),) * 2},
            'w of process 0 on .* is not the folder .*v that process 1 on .* writes to: choose a folder on storage',
        ),
    ],
)
def test_processes_that_differ_are_refused_by_all(tmp_path, options, said):
    with stepping(tmp_path, **options) as group:
        assert group.wait(60) == [1, 1]
        for process in (0, 1):
            assert re.search(said, group.output(process)), group.text()


def test_alone_nothing_is_exchanged():
    assert (processes.index(), processes.count(), processes.is_main()) == (0, 1, True)
    assert processes.broadcast({'a': 1}) == {'a': 1}
    assert processes.exchange('x', 2) == [2]
    processes.barrier('x')
    processes.check_same('x', {'a': 1}, 'nothing')
    processes.abandon('nobody is told', 1)
    processes.finish()


def cards(*gpus, hosts=None):
    return [
        {'host': host, 'machine': host, 'gpus': list(seen)}
        for seen, host in zip(gpus, hosts or ['a'] * len(gpus), strict=True)
    ]


@pytest.mark.parametrize(
    ('gpus', 'hosts', 'shares'),
    [
        (['', ''], None, [None, None]),
        (['abcd'], None, [None]),
        (['abcd', 'efgh'], 'xy', [None, None]),
        (['abcd', 'abcd'], None, [[0, 1], [2, 3]]),
        (['abcd'] * 4, None, [[0], [1], [2], [3]]),
        (['a', 'b'], None, [None, None]),  # --gpus-per-task, or cgroups
        (['ab', 'cd', 'ab', 'cd'], 'xxyy', [None] * 4),
        (['ab', 'ab', 'cd', 'cd'], 'xyxy', [None] * 4),
        (['ab', 'ab', 'cd', 'cd'], None, [[0], [1], [0], [1]]),
    ],
)
def test_the_processes_of_a_host_share_its_gpus(gpus, hosts, shares):
    assert startup_checks.share_gpus(cards(*gpus, hosts=hosts)) == shares


@pytest.mark.parametrize(
    ('gpus', 'said'),
    [
        (['abc', 'abc'], '2 processes on a see the same 3 GPUs, which do not divide'),
        (['a', 'a'], '2 processes on a see the same 1 GPU, .*--gres'),
        (['ab', ''], 'process 1 on a sees no GPU'),
        (['ab', 'bc'], 'overlap'),
    ],
)
def test_gpus_that_cannot_be_shared_are_refused(gpus, said):
    with pytest.raises(UserError, match=said):
        startup_checks.share_gpus(cards(*gpus))


def test_visible_gpus(tmp_path, monkeypatch):
    fake = tmp_path / 'nvidia-smi'
    fake.write_text('#!/bin/sh\nprintf "GPU-a\\nGPU-b\\nGPU-c\\n"\n')
    fake.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    assert startup_checks.visible_gpus({}) == ['GPU-a', 'GPU-b', 'GPU-c']
    assert startup_checks.visible_gpus({'CUDA_VISIBLE_DEVICES': '2,0'}) == ['GPU-c', 'GPU-a']
    assert startup_checks.visible_gpus({'CUDA_VISIBLE_DEVICES': 'GPU-b'}) == ['GPU-b']
    assert startup_checks.visible_gpus({'CUDA_VISIBLE_DEVICES': ''}) == []
    assert startup_checks.visible_gpus({'JAX_PLATFORMS': 'cpu'}) == []
    fake.write_text('#!/bin/sh\nexit 9\n')
    assert startup_checks.visible_gpus({}) == []


def test_what_must_be_the_same_on_all_hosts():
    config = {'run.seed': 1, 'run.steps': 2, 'data.files': 'a'}
    env = {'XLA_FLAGS': '--a', 'JAX_ENABLE_X64': '1', 'HOME': '/root'}
    own = {'JAX_COORDINATOR_ADDRESS': 'x', 'JAX_LOCAL_DEVICE_IDS': '1', 'JAX_COMPILATION_CACHE_DIR': '/x'}
    first = startup_checks.make_card(config, env) | {'host': 'a'}
    same = startup_checks.make_card(config, env | own | {'HOME': '/home'}) | {'host': 'b'}
    assert startup_checks.first_difference([first, same]) is None
    changes = [
        ({'config': config | {'run.steps': 3}}, 'process 2 on c has 3 for config.run.steps, process 0 on a has 2'),
        ({'env': env | {'JAX_ENABLE_X64': '0'}}, "has '0' for the variable JAX_ENABLE_X64, process 0 on a has '1'"),
        ({'env': {'XLA_FLAGS': '--a'}}, 'has nothing for the variable JAX_ENABLE_X64'),
    ]
    for change, said in changes:
        other = startup_checks.make_card(change.get('config', config), change.get('env', env)) | {'host': 'c'}
        assert said in startup_checks.first_difference([first, same, other])
    for name in ('mvdjax', "mvdjax's files", 'jax', 'Python'):  # before any difference in the config that it explains
        older = {**same, 'same': {**same['same'], name: 'older', 'config.run.seed': 7}}
        assert f"has 'older' for {name}, process 0 on a has" in startup_checks.first_difference([first, older])


class FakeDevice(SimpleNamespace):
    __hash__ = object.__hash__


def devices(processes, each, slices=1, order=None):
    """Fake devices in order of their ids, or of `order`."""
    found = [
        FakeDevice(
            id=i,
            process_index=i // each,
            slice_index=i // each * slices // processes,
            platform='cpu',
            device_kind='cpu',
        )
        for i in range(processes * each)
    ]
    return [found[i] for i in order] if order else found


class FakeMesh(SimpleNamespace):
    """What `batch_parts` asks of a mesh."""


def fake_mesh(placed):
    return FakeMesh(devices=placed, shape=dict(zip(topology.AXES, placed.shape, strict=True)))


@pytest.mark.parametrize(
    ('sizes', 'parts'),
    [
        ((8, 1, 1), [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ((2, 4, 1), [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ((4, 1, 2), [(0,), (1,), (2,), (3,)]),
        ((2, 1, 4), [(0,), (0,), (1,), (1,)]),  # two processes hold the same rows, and both read them
    ],
)
def test_each_process_reads_the_rows_that_its_devices_hold(sizes, parts):
    mesh = fake_mesh(topology.place_devices(devices(4, 2), sizes))
    assert [topology.batch_parts(mesh, p) for p in range(4)] == [(part, sizes[0] * sizes[1]) for part in parts]


def test_rows_follow_devices_whose_processes_are_not_neighbours():
    mesh = fake_mesh(topology.place_devices(devices(2, 2, order=(0, 2, 1, 3)), (4, 1, 1)))
    assert [topology.batch_parts(mesh, p)[0] for p in (0, 1)] == [(0, 2), (1, 3)]


def test_slices_lie_along_data():
    mixed = devices(4, 2, slices=2, order=(4, 0, 5, 1, 6, 2, 7, 3))
    placed = topology.place_devices(mixed, (4, 2, 1))
    assert [[d.slice_index for d in row] for row in placed[:, :, 0]] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(UserError, match='data=1 does not divide by 2 slices'):
        topology.place_devices(mixed, (1, 8, 1))
    with pytest.raises(UserError, match='slices is 4, and the 8 devices are in 2 slices'):
        topology.place_devices(mixed, (4, 2, 1), 4)
    with pytest.raises(UserError, match='slices have 4, 2 devices'):
        topology.place_devices([d for d in mixed if d.id < 6], (6, 1, 1))


@pytest.mark.parametrize('sizes', [(8, 1, 2), (2, 8, 1), (4, 2, 2)])
def test_an_axis_of_a_torus_is_split_where_the_mesh_asks_for_it(sizes):
    """The 4 x 4 chips of a TPU v6e, on which no axis of the mesh but 4 and 16 is whole axes of the torus."""
    chips = [
        FakeDevice(
            id=i,
            process_index=i // 4,
            slice_index=0,
            platform='tpu',
            device_kind='TPU v6 lite',
            coords=[i % 4, i // 4, 0],
            core_on_chip=0,
        )
        for i in range(16)
    ]
    placed = topology.place_devices(chips, sizes)
    assert placed.shape == sizes
    assert {chip.id for chip in placed.ravel()} == set(range(16))
    pairs = placed[..., 0].ravel(), placed[..., -1].ravel()  # partners of 'tensor' are wired to each other
    away = [sum(abs(x - y) for x, y in zip(a.coords, b.coords, strict=True)) for a, b in zip(*pairs, strict=True)]
    assert set(away) == {sizes[2] - 1}


def test_slices_that_devices_do_not_name_are_runs_of_processes():
    placed = topology.place_devices(devices(4, 2, order=(7, 6, 5, 4, 3, 2, 1, 0)), (2, 4, 1), 2)
    assert [[d.process_index for d in row] for row in placed[:, :, 0]] == [[0, 0, 1, 1], [2, 2, 3, 3]]
    with pytest.raises(UserError, match='slices is 3'):
        topology.place_devices(devices(4, 2), (8, 1, 1), 3)


def test_each_process_has_its_own_record_of_bad_files(tmp_path):
    path = str(tmp_path / 'bad_videos.jsonl')
    records = [Record(f'{name}.mp4', line, 0) for line, name in enumerate('abc')]
    for process, seen in ((0, (0, 1)), (1, (1,)), (12, (2,))):
        for i in seen:
            BadFiles(path, process).add(records[i], DecodeError(records[i].path, 'is cut short'))
    BadFiles(path, 1).skip(records[1], 'took too long')
    assert sorted(os.listdir(tmp_path)) == ['bad_videos.1.jsonl', 'bad_videos.12.jsonl', 'bad_videos.jsonl']
    merged = read_bad_files(path)
    assert sorted((e['path'], e.get('skip', False)) for e in merged) == [
        ('a.mp4', False),
        ('b.mp4', True),
        ('c.mp4', False),
    ]
    for process in (0, 1, 7):  # what one has learnt to leave alone, all do
        with pytest.raises(DecodeError, match='too long'):
            BadFiles(path, process).check(records[1])
    merge_bad_files(path)
    assert os.listdir(tmp_path) == ['bad_videos.jsonl']
    assert read_bad_files(path) == merged
    assert [json.loads(line) for line in Path(path).read_text().splitlines()] == merged
    remove_bad_files(path)
    assert os.listdir(tmp_path) == []


def test_a_batch_goes_to_the_devices_whose_parts_were_read(monkeypatch):
    import jax

    from mvdjax import sharding

    if jax.device_count() < 4:
        pytest.skip('needs 4 devices')
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(4, 1, 1), topology.AXES, axis_types=(AxisType.Auto,) * 3)
    monkeypatch.setattr(topology, 'batch_parts', lambda mesh, process: ((2, 0, 3, 1), 4))
    placed = sharding.place_batch({'x': np.arange(8), 's': {'y': np.arange(16).reshape(8, 2)}}, mesh)
    np.testing.assert_array_equal(placed['x'], [2, 3, 6, 7, 0, 1, 4, 5])
    assert placed['s']['y'].shape == (8, 2)
