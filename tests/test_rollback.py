"""Steps that are not finite in a row: the run goes back, passes over the data, and tells; and it stops on notice.

Alone, and on two processes together.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import small_runs
from etils import epath
from multiprocess import Group, executables, executables_folder, together
from poisoned import poison

from mvdjax import checkpoints, train
from mvdjax.data.pipeline import records_of_step
from mvdjax.errors import INTERRUPTED, TRY_AGAIN, Stopped, UserError
from mvdjax.feed import read_streams
from mvdjax.metric_writer import read_metrics
from mvdjax.place import Place
from mvdjax.rollback import FILE, Health
from mvdjax.settings import Run

STEPS = (
    *('run.steps=14', 'run.save_every=3', 'run.max_skipped=3', 'run.log_every=1'),
    *('run.keep=9', 'run.ema_decay=0.9'),
)
ALONE = (*STEPS, 'mesh.devices=1')


@pytest.fixture(scope='module')
def rolled_back(demo_data, tmp_path_factory):
    """A run that had to go back once, not disturbed otherwise."""
    workdir = tmp_path_factory.mktemp('rolled_back')
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(monkeypatch)
        train.train(small_runs.load('videomae', demo_data, *ALONE), str(workdir))
    return workdir


def test_a_run_goes_back_and_on_with_other_data(demo_data, rolled_back):
    meta = checkpoints.read_meta(str(rolled_back))
    # Steps 6, 7 and 8 were bad: back to 3, and on with the data after step 8.
    assert meta['progress'] == {'offset': 5, 'rollbacks': 1, 'streak': 0, 'owes_evaluation': False}
    assert meta['data_position']['next_sample'] == (14 + 5) * 8
    assert sorted(small_runs.losses(rolled_back)) == list(range(1, 15))
    assert all(np.isfinite(list(small_runs.losses(rolled_back).values())))
    epochs = [r['epoch'] for r in read_metrics(str(rolled_back))]
    assert epochs[-1] == 14 / 4  # what was trained on, not what was passed over
    names = {p.name for p in (rolled_back / 'checkpoints').iterdir()}
    assert names == {'3', 'abandoned-6', '6', '9', '12', '14'}


def skipped_lines(workdir):
    return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]


def test_what_was_passed_over_is_written_down(demo_data, rolled_back):
    lines = skipped_lines(rolled_back)
    assert [(e['step'], e['data_step'], e['rollback']) for e in lines] == [(s, s - 1, 1) for s in range(4, 9)]
    assert [e['not_finite'] for e in lines] == [[], []] + [['loss', 'gradient', 'update']] * 3
    assert lines[0]['loss'] > 0
    assert lines[0]['grad_norm'] > 0
    assert lines[2]['loss'] is None
    config = small_runs.load('videomae', demo_data, *ALONE)
    streams = read_streams(config, Run(**config.run.to_dict()))
    records = records_of_step(streams, seed=0, step=5)['video']
    assert len(records) == 8
    assert lines[2]['lines']['video'] == [r.line for r in records]
    assert lines[2]['files']['video'] == [r.path for r in records]
    assert 'files' not in lines[0]


def test_a_run_that_was_stopped_among_bad_steps_ends_as_one_left_alone(
    demo_data, rolled_back, tmp_path, monkeypatch, capsys
):
    config = small_runs.load('videomae', demo_data, *ALONE)
    with monkeypatch.context() as patch:
        poison(patch, stop_at=(7,))
        with pytest.raises(Stopped, match='stopped after step 7, which is saved') as stopped:
            train.train(config, str(tmp_path))
    assert stopped.value.code == TRY_AGAIN
    assert checkpoints.read_meta(str(tmp_path))['progress']['streak'] == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with monkeypatch.context() as patch:
        poison(patch)
        train.train(config, str(tmp_path))
    assert 'back to step 3' in capsys.readouterr().out
    assert small_runs.losses(tmp_path) == small_runs.losses(rolled_back)
    for ema in (False, True):
        ours, theirs = (checkpoints.read_params(str(w), use_ema=ema) for w in (tmp_path, rolled_back))
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.fixture(scope='module')
def stopped_together(demo_data, tmp_path_factory):
    """(workdir, printed by each, exit codes) of two processes that went back, one of which was told to stop at step 10.

    Process 1 alone gets the SIGTERM.
    """
    root = tmp_path_factory.mktemp('together')
    limits = ('run.heartbeat_timeout=60', 'run.init_timeout=120', 'run.compile_cache=')
    spec, overrides = small_runs.arguments('videomae', demo_data, *STEPS, *limits)
    script = [sys.executable, str(Path(__file__).parent / 'poisoned.py')]
    lines = together(2, ['train', f'--config={spec}', f'--workdir={root / "run"}', *overrides])
    commands = [[*script, *line[3:], f'--stop-at={stop}'] for line, stop in zip(lines, (0, 10), strict=True)]
    kept = executables(executables_folder(demo_data))  # the step of tests/test_train.py's chaos
    with Group(root / 'logs', commands, devices=1, variables=[kept, kept]) as group:
        codes = group.wait(600)
        return root / 'run', [group.output(0), group.output(1)], codes


def test_two_processes_go_back_together(stopped_together, rolled_back):
    workdir, (first, second), _ = stopped_together
    assert 'back to step 3, and on with other data (rollback 1 of at most' in first
    assert 'back to step 3' not in second  # process 0 speaks for all
    ours, theirs = ([{**e, 'loss': 0, 'grad_norm': 0} for e in skipped_lines(w)] for w in (workdir, rolled_back))
    assert ours == theirs
    ours, theirs = small_runs.losses(workdir), small_runs.losses(rolled_back)
    np.testing.assert_allclose(list(ours.values()), [theirs[step] for step in ours], rtol=2e-5)
    assert list(ours) == list(range(1, len(ours) + 1))


def test_a_signal_to_one_process_saves_and_ends_both(stopped_together):
    workdir, printed, codes = stopped_together
    assert codes == [TRY_AGAIN, TRY_AGAIN], printed
    step = max(checkpoints.step_numbers(epath.Path(workdir / 'checkpoints')))
    assert 10 <= step < 14
    for text in printed:
        assert f'stopped after step {step}, which is saved' in text
        assert 'Traceback' not in text
    assert max(small_runs.losses(workdir)) == step
    place = checkpoints.read_meta(str(workdir))['progress']
    assert place == {'offset': 5, 'rollbacks': 1, 'streak': 0, 'owes_evaluation': False}


def bad_steps(count, causes=2):
    return [{'loss': (0.0, 0.0), 'grad_norm': (0.0, 0.0), 'not_finite': (float(causes), 1.0)}] * count


GOOD = {'loss': (2.0, 4.0), 'grad_norm': (3.0, 1.0), 'not_finite': (0.0, 1.0)}


class FakeRun:
    """Checkpoints, feed and writer in one, that note what is asked of them."""

    def __init__(self, steps):
        self.there, self.asked = steps, []

    def steps(self):
        return list(self.there)

    def set_aside(self, after):
        self.there = [s for s in self.there if s <= after]

    def totals(self):
        return {}

    def seek(self, place, steps):
        self.asked.append((place.step, place.offset, steps + place.offset))

    def rewind(self, step):
        self.asked.append(step)


def make_health(tmp_path, place=None, **options):
    return Health(str(tmp_path), Run(global_batch=4, steps=100, max_skipped=3, **options), {}, place or Place())


def test_a_streak_spans_windows_and_is_broken_by_a_good_step(tmp_path):
    health = make_health(tmp_path)
    assert not health.diverged(3, [*bad_steps(2), GOOD])
    assert not health.diverged(5, bad_steps(2))
    assert health.streak == 2
    assert health.diverged(7, [*bad_steps(1), GOOD])
    assert health.streak == 0
    resumed = make_health(tmp_path, Place(step=5, streak=2))
    assert resumed.diverged(6, bad_steps(1))


def test_a_second_time_the_run_goes_further_back_and_at_last_it_stops(tmp_path):
    health = make_health(tmp_path, max_rollbacks=3)
    run = FakeRun([3, 6, 9])
    assert health.diverged(9, [GOOD] * 6 + bad_steps(3))
    assert health.go_back(run, run, run, 100).step == 6
    assert health.place == Place(6, 3, 1, 0, {})
    assert run.there == [3, 6]
    assert health.diverged(9, bad_steps(3))
    assert health.go_back(run, run, run, 100) == Place(3, 9, 2, 0, {})  # not to 6 again
    assert health.diverged(8, [GOOD, GOOD, *bad_steps(3)])
    assert health.go_back(run, run, run, 100) == Place(0, 17, 3, 0, {})  # there is none before 3
    assert run.asked == [(6, 3, 103), 6, (3, 9, 109), 3, (0, 17, 117), 0]
    assert health.diverged(4, [GOOD, *bad_steps(3, causes=5)])
    with pytest.raises(
        UserError,
        match=r'3 steps in a row, 2 to 4, were not finite \(loss, update\), after 3 rollbacks .*before: 3; ',
    ):
        health.go_back(run, run, run, 100)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [(e['rollback'], e['step']) for e in lines] == (
        [(1, s) for s in (7, 8, 9)]
        + [(2, s) for s in range(4, 10)]
        + [(3, s) for s in range(1, 9)]
        + [(4, s) for s in range(1, 5)]
    )
    assert lines[3]['data_step'] == 3  # of the first time, before any offset
    assert lines[6]['data_step'] == 9


def test_ctrl_c_once_saves_and_twice_ends_at_once(monkeypatch, capfd):
    from mvdjax import preemption

    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    before = signal.getsignal(signal.SIGINT)
    with preemption.Notice() as notice:
        assert not notice.reached()
        os.kill(os.getpid(), signal.SIGINT)
        assert notice.reached()
        assert ended == []
        assert notice.stopped('after step 3').code == INTERRUPTED
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [INTERRUPTED]
    assert signal.getsignal(signal.SIGINT) is before
    assert 'press Ctrl-C again' in capfd.readouterr().err
