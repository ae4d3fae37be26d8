"""One run at a time in a workdir: a second start is refused, a dead one's place is taken at once."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import small_runs

from mvdjax import workdir_lock
from mvdjax.errors import UserError
from mvdjax.train import train
from mvdjax.workdir_lock import FILE, Holder, WorkdirLock

HOLD = """
import sys, time
from mvdjax.workdir_lock import WorkdirLock
with WorkdirLock(sys.argv[1]):
    print('held', flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(workdir_lock, 'BEAT', 0.2)


def write(tmp_path, holder, age=0.0):
    path = tmp_path / FILE
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return path


def test_a_second_start_is_refused_until_the_first_is_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workdir_lock, 'LIMIT', 1.0)  # of the 5 s between the holder's beats
    holder = subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == 'held\n'
        with (
            pytest.raises(UserError, match=rf'is in use by another run \(process {holder.pid} on .* stop that one'),
            WorkdirLock(str(tmp_path)),
        ):
            pass
        assert (tmp_path / FILE).exists()
    finally:
        holder.send_signal(signal.SIGKILL)
    monkeypatch.setattr(workdir_lock, 'LIMIT', 1e9)
    # It is not waited for before: a process that has ended but whose parent has not noticed holds nothing.
    with WorkdirLock(str(tmp_path)):
        assert json.loads((tmp_path / FILE).read_text())['pid'] == os.getpid()
    holder.communicate()
    assert f'(process {holder.pid} on ' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_given_a_dead_ones_number_is_told_from_it(tmp_path):
    write(tmp_path, dataclasses.replace(Holder.here(), born='1'))
    with WorkdirLock(str(tmp_path)):
        pass


def test_a_holder_elsewhere_is_given_up_without_signs_of_life(tmp_path, capsys):
    elsewhere = Holder('far', 7, 'another kernel', '1', '2026-01-01 00:00:00')
    write(tmp_path, elsewhere, age=workdir_lock.LIMIT - 0.5)
    with WorkdirLock(str(tmp_path)):
        pass
    said = capsys.readouterr().out
    assert 'waiting up to 120 s' in said
    assert '(process 7 on far, since 2026-01-01 00:00:00 UTC) did not come to an orderly end' in said


def test_a_holder_elsewhere_that_gives_signs_of_life_is_believed(tmp_path):
    path = write(tmp_path, Holder('far', 7, 'another kernel', '1', '2026-01-01 00:00:00'), age=60)
    beat = threading.Timer(0.3, os.utime, [path])
    beat.start()
    with pytest.raises(UserError, match='process 7 on far'), WorkdirLock(str(tmp_path)):
        pass
    beat.join()
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_a_lock_that_is_released_while_a_start_waits_is_taken(tmp_path):
    path = write(tmp_path, Holder('far', 7, 'another kernel'))
    end = threading.Timer(0.3, os.remove, [path])
    end.start()
    with WorkdirLock(str(tmp_path)):
        assert json.loads(path.read_text())['pid'] == os.getpid()
    end.join()


def test_a_holder_beats(tmp_path):
    with WorkdirLock(str(tmp_path)):
        path = tmp_path / FILE
        os.utime(path, (0, 0))
        for _ in range(100):
            if path.stat().st_mtime:
                break
            threading.Event().wait(0.05)
        assert path.stat().st_mtime > 0


def test_training_leaves_the_files_of_a_running_run_alone(demo_data, tmp_path):
    half = tmp_path / 'checkpoints' / '3.orbax-checkpoint-tmp'
    half.mkdir(parents=True)
    files = {'saves.jsonl': '{"step": 3}\n', 'metrics.jsonl': '{"step": 3, "kind": "train", "loss": 1.0}\n'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with WorkdirLock(str(tmp_path)):
        with pytest.raises(UserError, match='is in use by another run'):
            train(small_runs.load('videomae', demo_data), str(tmp_path))
        assert half.exists()
        assert {name: (tmp_path / name).read_text() for name in files} == files
        assert (tmp_path / FILE).exists()
