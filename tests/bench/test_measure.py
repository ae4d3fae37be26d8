"""Candidates take turns in processes of their own, and what goes wrong there is a sentence here."""

import os
from pathlib import Path

import pytest

from mvdjax.bench.measure import Candidate, interleaved
from mvdjax.errors import UserError


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # spawned processes get a copy of sys.path


def fake(title, function, **arguments):
    return Candidate(title, f'fake_ways:{function}', arguments)


def test_rounds_are_interleaved_and_the_warm_up_is_not_counted(tmp_path):
    path = str(tmp_path / 'order')
    candidates = [fake('a', 'noting', path=path, name='a'), fake('b', 'noting', path=path, name='b'), fake('t', 'told')]
    results = interleaved(candidates, repeats=3)
    assert Path(path).read_text().split() == ['a0', 'b0', 'a1', 'b1', 'a2', 'b2', 'a3', 'b3']
    Path(path).unlink()
    interleaved(candidates, repeats=2, settle=True)  # each turn opens with a batch that nobody measures
    assert Path(path).read_text().split() == ['a0', 'b0', 'a1', 'a1', 'b1', 'b1', 'a2', 'a2', 'b2', 'b2']
    told = results['t']
    assert told.clips == 4
    assert told.cpu_ms == (125.0, 250.0, 375.0)  # 0.5 s a batch of 4 more each round
    assert told.cpu == 250.0
    assert told.wall == 1000.0
    assert told.memory['worker_own_mib'] == 10.0
    assert 1 < told.memory['peak_rss_mib'] < 10_000


def test_the_clock_counts_the_cpu_time_of_the_candidate():
    result = interleaved([fake('burn', 'burn', seconds=0.05)], repeats=2)['burn']
    assert all(25 <= cpu < 100 for cpu in result.cpu_ms)  # 50 ms for 2 clips
    assert all(wall >= 0.99 * cpu for wall, cpu in zip(result.wall_ms, result.cpu_ms, strict=True))


def test_libraries_start_with_one_thread_and_the_caller_keeps_its_setting(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    interleaved([fake('threads', 'threads')], repeats=1)
    assert os.environ['OMP_NUM_THREADS'] == '7'


@pytest.mark.parametrize(
    ('function', 'said'), [('broken', 'wrong failed: .*KeyError'), ('dying', 'measures wrong died')]
)
def test_a_candidate_that_fails_is_named(function, said):
    with pytest.raises(UserError, match=f'(?s){said}'):
        interleaved([fake('wrong', function)], repeats=1)
