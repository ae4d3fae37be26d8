"""Decoders that hang or crash never stop, hang or change a run; whatever else goes wrong says where and on what."""

import json
import multiprocessing
import os
import re
import signal
import threading
import types

import fakes
import numpy as np
import pytest
from fakes import echo, same

from mvdjax.data import guard, slots, workers
from mvdjax.data.guard import Board, Work, WorkerWatch
from mvdjax.data.pipeline import BadFiles, empty_sample, eval_batches, read_bad_files, train_batches
from mvdjax.data.schema import Record
from mvdjax.errors import UserError


def run(faults, bad=None, steps=6, **options):
    data, files = echo(24, fakes.Recipe(slots.LEAST_BYTES, faults=tuple(faults.items())), **options)
    return list(
        train_batches(data, files, seed=0, global_batch=8, start_step=0, steps=steps, bad=BadFiles(bad and str(bad)))
    )


BROKEN = {3: 'broken', 17: 'broken'}


def test_a_run_with_a_hanging_and_a_crashing_file_is_the_run_where_they_are_broken(tmp_path):
    expected = run(BROKEN)  # two epochs
    bad = tmp_path / 'bad.jsonl'
    same(run({3: 'hang', 17: 'crash'}, bad, workers=1, threads=2, timeout=1.5), expected)
    assert {e['path']: (e['line'], e['skip'], e['reason']) for e in read_bad_files(str(bad))} == {
        '3.mp4': (3, True, 'took longer than data.timeout, 1.5 s, to read'),
        '17.mp4': (17, True, 'makes the decoder crash (SIGSEGV)'),
    }
    assert workers.worker_processes() == []
    # Never again: here a crash would end the tests, and the hang hold them up for good.
    same(run({3: 'hang', 17: 'crash'}, bad), expected)
    assert len(bad.read_text().splitlines()) == 2


def test_without_workers_a_decoder_that_hangs_is_left_behind(tmp_path):
    bad = tmp_path / 'bad.jsonl'
    same(run({3: 'sleep', 17: 'broken'}, bad, timeout=0.3), run(BROKEN))
    assert {e['path']: e.get('skip', False) for e in read_bad_files(str(bad))} == {'3.mp4': True, '17.mp4': False}
    data, files = echo(24, fakes.Recipe(faults=((3, 'sleep'), (17, 'broken'))), timeout=0.3)
    empty = empty_sample(data, files)
    (batch,) = eval_batches(data, files, batch=24, empty=empty, bad=BadFiles(str(bad)))
    assert np.flatnonzero(~batch['valid']).tolist() == [3, 17]
    assert len(bad.read_text().splitlines()) == 2


def test_suspects_are_tried_one_after_the_other(monkeypatch):
    running, most = set(), []

    class Process:
        exitcode = 0

        def __init__(self, target, args, daemon):
            self.ready = args[2]

        def start(self):
            running.add(self)
            most.append(len(running))
            self.ready.set()

        def is_alive(self):
            return self in running

        def join(self, timeout=None):
            running.discard(self)

    context = types.SimpleNamespace(Event=threading.Event, Process=Process)
    monkeypatch.setattr(multiprocessing, 'get_context', lambda method: context)
    data, files = echo(24)
    assert workers._try_alone(data.samples(files, 0, BadFiles(None)), [Work(i, 0, i) for i in range(3)]) == {}
    assert most == [1, 1, 1]


def test_slow_storage_is_not_blamed_on_a_file(monkeypatch):
    arrived = threading.Event()
    monkeypatch.setattr(guard, 'warm', lambda path: arrived.set())

    def slow():
        arrived.wait()
        return 'frames'

    assert guard.read(slow, 'a.mp4', Work(0, 0, 0), 0.1) == 'frames'


def test_a_merely_broken_file_is_tried_again_and_a_skipped_one_is_not(tmp_path):
    path = str(tmp_path / 'bad.jsonl')
    bad, record = BadFiles(path), Record('a.mp4', 0, 7)
    bad.add(record, fakes.DecodeError('a.mp4', 'is broken'))
    BadFiles(path).check(record)
    bad.skip(record, 'hung')
    bad.skip(record, 'hung')
    for known in (bad, BadFiles(path)):
        with pytest.raises(fakes.DecodeError, match=r'a\.mp4 hung'):
            known.check(record)
    assert [json.loads(line) for line in (tmp_path / 'bad.jsonl').read_text().splitlines()] == [
        {'path': 'a.mp4', 'line': 7, 'reason': 'is broken'},
        {'path': 'a.mp4', 'line': 7, 'reason': 'hung', 'skip': True},
    ]


def test_a_worker_that_does_not_die_of_a_file_blames_none_and_giving_up_names_what_was_at_work():
    board = Board.create(2, 2)
    try:
        board.sign_on(0)  # this process lives, worker 1 has ended
        board.post(0, 0, 1, Work(5, 0, 5))
        board.post(1, 1, 1, Work(9, 0, 9))
        data, files = echo(24)
        samples = data.samples(files, 0, BadFiles(None))
        watch = WorkerWatch(board, 1.0)
        assert not workers._blame(-9, samples, board, watch)
        names = workers._names(samples, board)
        assert '9.mp4 (line 9)' in names
        assert re.search(r'exit code -9\), most likely for want of memory.*9\.mp4.*lower', workers._hopeless(-9, names))
        assert re.search(r'/dev/shm is full.*--shm-size', workers._hopeless(-7, names))
    finally:
        board.remove()


def test_a_worker_that_is_killed_is_started_again_and_the_stream_goes_on():
    data, files = echo(24, fakes.Recipe(slots.LEAST_BYTES), workers=1, threads=1, prefetch=1)
    stream = train_batches(data, files, seed=0, global_batch=8, start_step=0, steps=6, bad=BadFiles(None))
    found = [next(stream)]
    for process in workers.worker_processes():
        os.kill(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches it too
        os.kill(process.pid, signal.SIGKILL)
    same([*found, *stream], run({}))
    assert workers.worker_processes() == []


def test_an_error_in_a_recipe_says_where_and_on_what():
    with pytest.raises(RuntimeError, match=r'OddError in main process on .*, record 3: 3\.mp4\n(.*\n)*.*odd on 3'):
        run({3: 'odd'})


def test_shared_memory_that_cannot_do_is_refused_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, 'SHARED', str(tmp_path))
    monkeypatch.setattr(os, 'statvfs', lambda path: os.statvfs_result((4096, 4096, 2**14, 0, 0, 0, 0, 0, 0, 0)))
    workers.check_shared_memory(2**26)
    with pytest.raises(
        UserError, match=r'up to 65 MiB of shared memory, .* has 64: .*--shm-size=1g.*data\.workers to 0'
    ):
        workers.check_shared_memory(65 * 2**20)
    assert workers.shared_rows(0, 16, 8) == 0
    assert workers.shared_rows(2, 8, 8) == 2 * 18 + 8


def test_memory_is_that_of_this_process():
    found = workers.memory()
    assert found.keys() == {'memory_mib'}
    assert 20 < found['memory_mib'] < 2**20
    assert multiprocessing.active_children() == []
