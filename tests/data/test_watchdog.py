"""A decode that hangs ends its process and is not tried again; one that crashes is found out; one that crawls stops."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from video_files import X264, encode

from mvdjax.data import containers, watchdog
from mvdjax.data.decode import DecodeError, read_frames, read_image


@pytest.fixture(scope='module')
def mp4(tmp_path_factory):
    return encode(tmp_path_factory.mktemp('watch') / 'plain.mp4', 'libx264', frames=30, **X264)


@pytest.fixture
def no_guard(monkeypatch):
    """Lets a test start a watchdog in this process that ends with the test."""
    monkeypatch.setattr(watchdog, '_guard', None)


WORKER = """
    import sys, threading, time
    import numpy as np
    from mvdjax.data import packets, watchdog
    from mvdjax.data.decode import read_frames
    record, journal, path, limit = sys.argv[1:]
    watchdog.start(record, journal, seconds=float(limit))

    def hang(frame, start, last):
        {body}

    packets._check = hang
    for number in range(2):
        read_frames(path, np.arange)
    print('survived')
"""


def work(tmp_path, path, body, limit=0.4):
    """Exit code, output of a worker in which every decoded frame runs `body`."""
    journal = tmp_path / 'journal'
    journal.mkdir(exist_ok=True)
    code = textwrap.dedent(WORKER).replace('{body}', body)
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path / 'record.jsonl'), str(journal), str(path), str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    return done.returncode, done.stdout + done.stderr


def test_a_hanging_decode_ends_the_worker_and_is_never_tried_again(mp4, tmp_path):
    code, output = work(tmp_path, mp4, 'time.sleep(30)')
    assert code == watchdog.HUNG, output
    assert f'{mp4} stopped the decoder for 0.4 s without a sign of life' in output
    record, journal = str(tmp_path / 'record.jsonl'), str(tmp_path / 'journal')
    (entry,) = watchdog.read_record(record)
    assert entry['path'] == str(mp4)
    assert watchdog.condemn(record, journal, code) == [entry]
    assert os.listdir(journal) == []
    code, output = work(tmp_path, mp4, 'time.sleep(30)')  # the restarted worker
    assert code == 1
    assert 'DecodeError' in output
    assert 'stopped the decoder for 0.4 s without a sign of life (an earlier time; it is on record in' in output
    assert len(watchdog.read_record(record)) == 1


def test_a_crash_is_blamed_on_what_was_being_read(mp4, tmp_path):
    record, journal = str(tmp_path / 'record.jsonl'), str(tmp_path / 'journal')
    code, output = work(tmp_path, mp4, 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)')
    assert code == -signal.SIGSEGV, output
    (entry,) = watchdog.condemn(record, journal, code)
    assert entry == {'path': str(mp4), 'reason': 'was being read when a data worker crashed (SIGSEGV)'}
    assert watchdog.read_record(record) == [entry]
    assert watchdog.condemn(record, journal, code) == []


def test_a_worker_killed_for_want_of_memory_blames_nobody(mp4, tmp_path):
    code, output = work(tmp_path, mp4, 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)')
    assert code == -signal.SIGKILL, output
    assert watchdog.condemn(str(tmp_path / 'record.jsonl'), str(tmp_path / 'journal'), code) == []
    assert not (tmp_path / 'record.jsonl').exists()


def test_slow_work_is_no_hang(mp4, tmp_path):
    code, output = work(tmp_path, mp4, 'time.sleep(0.05)', limit=1)  # twice 30 frames: 3 s in all
    assert (code, output.strip()) == (0, 'survived')


def test_waiting_for_storage_is_no_hang(mp4, tmp_path, no_guard, monkeypatch):
    killed = []
    monkeypatch.setattr(watchdog._Guard, '_kill', lambda self, watch: killed.append(watch.name))
    watchdog.start(None, str(tmp_path), seconds=0.5)
    slow = tmp_path / 'slow.mp4'
    slow.write_bytes(mp4.read_bytes())

    class Storage(io.FileIO):
        def read(self, count=-1):
            time.sleep(1.2)
            return super().read(count)

    with watchdog.watch('storage') as watch, Storage(slow) as file:
        containers._Reader(file, watch).read(10)
    with watchdog.watch('busy') as watch:
        for _ in range(40):
            watch.check()
            time.sleep(0.03)
    assert killed == []
    with watchdog.watch('stuck'):
        deadline = time.monotonic() + 30
        while not killed and time.monotonic() < deadline:
            time.sleep(0.03)
    assert set(killed) == {'stuck'}


def test_files_on_record_are_refused_whatever_they_are(mp4, tmp_path, no_guard):
    record = tmp_path / 'record.jsonl'
    watchdog.add(str(record), str(mp4), 'was bad')
    with record.open('a') as file:
        file.write('{"path": "cut sh')  # by a kill
    watchdog.add(str(record), 'pack://x#1', 'was worse "than bad"')
    assert [entry['path'] for entry in watchdog.read_record(str(record))] == [str(mp4), 'pack://x#1']
    assert json.loads(record.read_text().splitlines()[-1])['reason'] == 'was worse "than bad"'
    assert read_frames(mp4, np.arange).shape[0] == 30  # a process without a watchdog keeps no list
    assert not watchdog.started()
    watchdog.start(str(record), str(tmp_path))
    assert watchdog.started()
    for call in (lambda: read_frames(mp4, np.arange), lambda: read_image(mp4)):
        with pytest.raises(DecodeError, match=r'plain\.mp4 was bad \(an earlier time; it is on record in .*jsonl'):
            call()


def test_the_journal_names_what_is_being_read(tmp_path, no_guard):
    watchdog.start(None, str(tmp_path))
    journal = tmp_path / f'{os.getpid()}.reading'
    with watchdog.watch('a b.mp4'), watchdog.watch('ü.mp4'):
        data = journal.read_bytes()
        assert b'a b.mp4\0' in data
        assert 'ü.mp4'.encode() in data
        for _ in range(3):  # leaves no traces of shorter names
            with watchdog.watch('x'):
                pass
    names = [slot.split(b'\0')[0] for slot in (journal.read_bytes()[i : i + 4096] for i in range(0, 64 * 4096, 4096))]
    assert not any(names)
    many = [watchdog.watch(f'{i}.mp4') for i in range(70)]  # more than it has room for
    for each in many:
        each.__enter__()
    for each in many:
        each.__exit__(None, None, None)
    assert watchdog.condemn(None, str(tmp_path), -signal.SIGSEGV) == []  # this process lives


def test_a_file_that_costs_too_much_is_given_up(mp4, monkeypatch):
    monkeypatch.setattr(watchdog, 'MAX_SECONDS', 0.0)
    with pytest.raises(DecodeError, match='takes more than 0 s of processor time to read'):
        read_frames(mp4, np.arange)
