"""Evaluation: nothing replaced, nothing counted twice, the same numbers for any batch and device count."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import small_runs

from mvdjax import checkpoints
from mvdjax import config as configs
from mvdjax.errors import TRY_AGAIN, Stopped, UserError
from mvdjax.evaluate import SetEvaluator, evaluate
from mvdjax.evaluation.multiview import TopK
from mvdjax.metric_writer import read_metrics
from mvdjax.train import make_evaluators, train
from mvdjax.train_state import TrainState


@pytest.fixture(scope='module')
def classifier(demo_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('classifier')
    train(small_runs.load('finetune', demo_data, 'run.steps=3', 'run.ema_decay=0.5'), str(workdir))
    return workdir


def score(demo_data, classifier, output, *overrides, ema=False):
    config = small_runs.load('finetune', demo_data, *overrides)
    return evaluate(config, str(classifier), str(output), 'test', ema)


def test_batch_and_devices_change_nothing(demo_data, classifier, tmp_path):
    results = [
        score(demo_data, classifier, tmp_path / str(i), *overrides)
        for i, overrides in enumerate(
            [('evals.test.batch=16',), ('evals.test.batch=3', 'mesh.devices=1'), ('evals.test.batch=5',)]
        )
    ]
    numbers = [{k: r[k] for k in ('top1', 'top5', 'scored', 'videos')} for r in results]
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[0]['scored'] == numbers[0]['videos'] == 16
    assert json.loads((tmp_path / '0' / 'results.json').read_text())['top1'] == numbers[0]['top1']


def test_an_undecodable_video_is_left_out_and_named(demo_data, classifier, tmp_path):
    copy = tmp_path / 'data'
    shutil.copytree(demo_data, copy)
    lines = (copy / 'motion_test.txt').read_text().splitlines()
    broken = copy / lines[2].split()[0]
    broken.write_bytes(b'not a video')
    result = score(copy, classifier, tmp_path / 'out')
    assert (result['scored'], result['videos']) == (15, 16)
    assert [b['path'] for b in result['undecodable']] == [str(broken)]
    assert result['undecodable'][0]['line'] == 3


def test_the_average_is_another_set_of_weights(demo_data, classifier, tmp_path):
    assert score(demo_data, classifier, tmp_path, ema=True)['scored'] == 16


@pytest.mark.parametrize(('ema', 'expected'), [({'x': 2.0}, 2.0), (None, 1.0)])
def test_training_evaluates_the_average_where_there_is_one(ema, expected):
    assert TrainState(3, 0, {'x': 1.0}, {}, ema).tested == {'x': expected}


def test_unknown_set_and_missing_checkpoint(demo_data, classifier, tmp_path):
    config = small_runs.load('finetune', demo_data)
    with pytest.raises(UserError, match=r"no set 'tset'; it has test, val"):
        evaluate(config, str(classifier), str(tmp_path), 'tset', False)
    with pytest.raises(UserError, match='no checkpoint in'):
        evaluate(config, str(tmp_path / 'nothing'), str(tmp_path / 'nothing'), 'test', False)
    assert not (tmp_path / 'nothing').exists()


def test_classes_in_another_order_are_refused(demo_data, classifier, tmp_path):
    names = (demo_data / 'motion_classes.txt').read_text().split('\n')
    (tmp_path / 'classes.txt').write_text('\n'.join([names[1], names[0], *names[2:]]))
    with pytest.raises(UserError, match=r'class 0 is .* in .*classifier.* and .* in .*motion_test\.txt; give both'):
        score(demo_data, classifier, tmp_path, f'evals.test.data.class_file={tmp_path}/classes.txt')


def test_a_data_set_in_its_own_format_is_scored_and_what_is_odd_about_it_is_said(
    demo_data, classifier, tmp_path, capsys
):
    names = (demo_data / 'motion_classes.txt').read_text().split('\n')[:8]
    lines = [line.split() for line in (demo_data / 'motion_test.txt').read_text().splitlines()]
    entries = [{'vid_name': Path(path).stem, 'label': int(label)} for path, label in lines]
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set/Diving48_vocab.json').write_text(json.dumps([name.split() for name in names]))
    (tmp_path / 'set/Diving48_V2_test.json').write_text(json.dumps([*entries, {'vid_name': 'gone', 'label': 0}]))
    (tmp_path / 'set/videos').symlink_to(demo_data / 'videos/test')
    override = f'evals.test.data.files=diving48:test:{tmp_path}/set'
    result = score(demo_data, classifier, tmp_path / 'out', override, 'evals.test.data.class_file=')
    plain = score(demo_data, classifier, tmp_path / 'out')
    assert (result['top1'], result['scored']) == (plain['top1'], plain['scored'])
    printed = capsys.readouterr().out
    assert f'note: diving48:test: 1 of the 17 files that {tmp_path}/set/Diving48_V2_test.json lists are not' in printed
    assert 'note: diving48:test: 16 files, usual are 1970; scores on other files are other scores' in printed
    assert 'note: diving48:test: 8 classes, published are 48' in printed


def test_sets_that_are_never_evaluated_are_named(capsys):
    run = configs.Run(seed=0, global_batch=4, steps=1, eval_sets=('val', 'test'))
    assert make_evaluators(None, run, None, None, '') == {}
    assert 'run.eval_sets names val, test, but run.eval_every is 0: nothing is evaluated' in capsys.readouterr().out


def evaluated_run(demo_data):
    return small_runs.load('finetune', demo_data, 'run.steps=4', 'run.eval_every=2', "run.eval_sets=('val',)")


def val_lines(workdir):
    return [r for r in read_metrics(str(workdir)) if r['kind'] == 'val']


@pytest.fixture(scope='module')
def undisturbed(demo_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('undisturbed')
    train(evaluated_run(demo_data), str(workdir))
    return workdir


def test_evaluation_during_training_is_logged(undisturbed):
    assert [(r['step'], r['scored']) for r in val_lines(undisturbed)] == [(2, 8), (4, 8)]


def test_a_run_told_to_stop_while_it_evaluates_saves_and_makes_up_for_it(demo_data, undisturbed, tmp_path, monkeypatch):
    """At step 2, which is saved because of it, and at step 4, the last, which was saved before."""
    call = SetEvaluator.__call__
    config = evaluated_run(demo_data)

    def told(self, params, frozen, stop):
        return call(self, params, frozen, lambda: os.kill(os.getpid(), signal.SIGTERM) or stop())

    for step in (2, 4):
        with monkeypatch.context() as patch:
            # A resumed run first makes up for an evaluation, in peace, and is told in the next one.
            due = iter([told] if step == 2 else [call, told])
            patch.setattr(SetEvaluator, '__call__', lambda self, *a, due=due: next(due)(self, *a))
            with pytest.raises(Stopped, match=f'stopped after step {step}, which is saved') as stopped:
                train(config, str(tmp_path))
        assert stopped.value.code == TRY_AGAIN
        assert checkpoints.read_meta(str(tmp_path))['progress']['owes_evaluation']
        assert [r['step'] for r in val_lines(tmp_path)] == [2][: step // 2 - 1]
    train(config, str(tmp_path))
    assert small_runs.losses(tmp_path) == small_runs.losses(undisturbed)
    assert val_lines(tmp_path) == val_lines(undisturbed)
    assert train(config, str(tmp_path)) == {}  # nothing is owed any more
    assert val_lines(tmp_path) == val_lines(undisturbed)


def test_top_k_counts_ranks_and_skips_invalid_rows():
    probability = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]])
    counter = TopK((1, 2))
    counter.update(
        {'probability': probability},
        {'label': np.array([0, 1, 0, 1]), 'valid': np.array([True, True, False, True]), 'index': np.arange(4)},
    )
    result = counter.result()
    assert result['top1'] == pytest.approx(100 / 3)  # ties go to the lower class
    assert result['top2'] == pytest.approx(100)
    assert np.isnan(TopK().result()['top1'])
    assert sorted(counter.probabilities()) == [0, 1, 3]
