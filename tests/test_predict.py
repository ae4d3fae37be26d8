"""`mvdjax predict` on a really fine-tuned (if barely) classifier."""

import json
import re
from fractions import Fraction

import jax
import numpy as np
import pytest
from small_runs import arguments

from mvdjax import checkpoints, saving
from mvdjax import config as configs
from mvdjax import main as cli
from mvdjax.data.demo import encode_video
from mvdjax.errors import UserError
from mvdjax.predict import predict
from mvdjax.train import train
from mvdjax.train_state import TrainState

DEMO_CLASSES = 8


@pytest.fixture(scope='module')
def classifier(demo_data, tmp_path_factory):
    """Two steps of the fine-tuning's debug form."""
    workdir = tmp_path_factory.mktemp('classifier')
    spec, overrides = arguments('finetune', demo_data, 'run.steps=2', 'run.ema_decay=0.5', arg='debug')
    jax.config.update('jax_disable_most_optimizations', True)  # most of the time is XLA's
    train(configs.load(spec, overrides), str(workdir))
    jax.config.update('jax_disable_most_optimizations', False)
    return str(workdir)


@pytest.fixture(scope='module')
def names(demo_data):
    return (demo_data / 'motion_classes.txt').read_text().split('\n')[:DEMO_CLASSES]


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """One of each kind: containers, portrait, a single frame, a name with spaces."""
    folder = tmp_path_factory.mktemp('videos')
    shapes = {
        'plain.mp4': (40, 64, 96),
        'plain.webm': (20, 64, 96),
        'portrait.mp4': (40, 128, 50),
        'one frame only.mp4': (1, 64, 96),
    }
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        frames = np.linspace(0, 200, shape[0], dtype=np.uint8)[:, None, None, None] + rng.integers(0, 50, (*shape, 3))
        (folder / name).write_bytes(encode_video(frames.astype(np.uint8), Fraction(25), name.split('.')[1]))
    return {name: str(folder / name) for name in shapes}


def tables(text):
    """{path: [(percent, name)]} of the printed tables."""
    found, path = {}, ''
    for line in text.splitlines():
        row = re.fullmatch(r' +([0-9.]+)%  (.+)', line)
        if row:
            found[path].append((float(row[1]), row[2]))
        else:
            path = line
            found[path] = []
    return found


def test_top_5_with_names_for_every_kind_of_video(capsys, classifier, videos, names):
    assert cli.main(['predict', f'--checkpoint={classifier}', *videos.values()]) == 0
    out, err = capsys.readouterr()
    found = tables(out)
    assert list(found) == list(videos.values())
    for rows in found.values():
        assert len(rows) == 5
        assert len({name for _, name in rows}) == 5
        assert {name for _, name in rows} <= set(names)
        percents = [percent for percent, _ in rows]
        assert percents == sorted(percents, reverse=True)
        assert 100 / DEMO_CLASSES <= percents[0] <= 100
    assert 'error' not in err


def test_probabilities_are_those_of_the_evaluation_and_of_the_video(classifier, videos, names):
    found = predict(classifier, list(videos.values()), top=DEMO_CLASSES)
    for rows in found.values():
        assert sum(p for _, p in rows) == pytest.approx(1, abs=1e-5)
        assert {name for name, _ in rows} == set(names)
    assert dict(found[videos['plain.mp4']]) != dict(found[videos['portrait.mp4']])  # the video matters
    assert predict(classifier, [videos['plain.mp4']], top=2) == {videos['plain.mp4']: found[videos['plain.mp4']][:2]}


def test_a_step_folder_is_a_checkpoint_too(classifier, videos):
    by_step = predict(f'{classifier}/checkpoints/2', [videos['plain.mp4']])
    assert by_step == predict(classifier, [videos['plain.mp4']])


def test_the_average_is_another_classifier(capsys, classifier, videos):
    argv = ['predict', f'--checkpoint={classifier}', videos['plain.mp4'], '--ema']
    assert cli.main(argv) == 0
    assert tables(capsys.readouterr().out)
    assert predict(classifier, [videos['plain.mp4']], use_ema=True) != predict(classifier, [videos['plain.mp4']])


def test_broken_files_are_reported_and_the_others_printed(capsys, classifier, videos, tmp_path):
    text, missing = tmp_path / 'text.mp4', tmp_path / 'no such.mp4'
    text.write_text('no video\n' * 99)
    argv = [
        f'--checkpoint={classifier}',
        videos['plain.mp4'],
        str(text),
        videos['one frame only.mp4'],
        str(missing),
        str(tmp_path),
    ]
    assert cli.main(['predict', *argv]) == 1
    out, err = capsys.readouterr()
    assert list(tables(out)) == [videos['plain.mp4'], videos['one frame only.mp4']]
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f'error: {text} ')
    assert lines[1:] == [f'error: {missing} does not exist', f'error: {tmp_path} is a directory']


def test_a_file_given_twice_is_no_error(capsys, classifier, videos):
    assert cli.main(['predict', f'--checkpoint={classifier}', '--top=1', videos['plain.mp4'], videos['plain.mp4']]) == 0
    assert len(tables(capsys.readouterr().out)[videos['plain.mp4']]) == 1


def write_checkpoint(workdir, config, **meta):
    """A checkpoint with nothing in it but what it says of itself."""
    meta = {'schema_version': 1, 'config': json.loads(json.dumps(config.to_dict())), 'class_names': [], **meta}
    state = TrainState(np.int32(1), np.int32(0), {'x': np.zeros(1, np.float32)}, {}, None)
    with saving.Checkpoints(str(workdir), 1) as saved:
        saved.save(state, meta)
    return str(workdir)


def test_checkpoints_that_classify_nothing(demo_data, videos, tmp_path):
    spec, overrides = arguments('videomae', demo_data)
    path = write_checkpoint(tmp_path / 'mae', configs.load(spec, overrides))
    with pytest.raises(UserError, match='mae checkpoint; predict needs a fine-tuned classifier'):
        predict(path, [videos['plain.mp4']])
    spec, overrides = arguments('finetune', demo_data)
    config = configs.load(spec, overrides)
    path = write_checkpoint(tmp_path / 'odd', config)
    with pytest.raises(UserError, match=r'lacks .*for the model'):
        predict(path, [videos['plain.mp4']])
    with config.unlocked():
        del config.evals['test']
    path = write_checkpoint(tmp_path / 'untested', config)
    with pytest.raises(UserError, match='no evaluation set "test"'):
        predict(path, [videos['plain.mp4']])
    path = write_checkpoint(tmp_path / 'newer', config, schema_version=99)
    with pytest.raises(UserError, match='has schema version 99, this program reads up to 1: update'):
        predict(path, [videos['plain.mp4']])


@pytest.mark.parametrize('top', [0, -1])
def test_top_must_be_positive(classifier, videos, top):
    with pytest.raises(UserError, match='--top must be at least 1'):
        predict(classifier, [videos['plain.mp4']], top)


def test_prediction_uses_one_device_and_leaves_the_parameters_alone(classifier, videos):
    before = checkpoints.read_params(classifier)
    predict(classifier, [videos['one frame only.mp4']])
    after = checkpoints.read_params(classifier)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(len(x.devices()) == 1 for x in jax.live_arrays() if x.ndim > 1)
