"""`mvdjax selfcheck`: the stored answers are found again, and a difference of pixels or numbers is told apart."""

import json

import numpy as np
import pytest
from small_runs import arguments

from mvdjax import checkpoints, selfcheck
from mvdjax.main import main


@pytest.fixture(scope='module')
def workdir(demo_data, tmp_path_factory):
    """Two steps of fine-tuning by the command, which stores the answers."""
    folder = str(tmp_path_factory.mktemp('run'))
    spec, overrides = arguments('finetune', demo_data, 'run.steps=2')
    assert main(['train', f'--config={spec}', f'--workdir={folder}', *overrides]) == 0
    return folder


@pytest.fixture
def stored(workdir):
    """The stored answers, put back after the test."""
    file = checkpoints.find_step_folder(workdir) / selfcheck.FILE
    text = file.read_text()
    yield file, json.loads(text)
    file.write_text(text)


def test_the_answers_are_found_again(workdir, stored, capsys):
    _, content = stored
    assert set(content['clips']) == set(selfcheck.CLIPS)
    assert {'pixels', 'features', 'logits'} == set(content['clips']['vp9.webm'])
    assert main(['selfcheck', workdir]) == 0
    out = capsys.readouterr().out
    assert out.count('pixels the same') == 2
    assert out.count('top class the same') == 2
    assert 'this machine gives the stored answers' in out


def test_clips_are_what_the_model_sees():
    clips = [selfcheck.read_clip(name, (8, 40, 56, 3)) for name in selfcheck.CLIPS]
    assert [clip.shape for clip in clips] == [(8, 40, 56, 3)] * 2
    assert all(clip.std() > 5 for clip in clips)
    assert np.abs(clips[0][0].astype(int) - clips[0][-1]).mean() > 1  # it moves
    assert selfcheck.read_clip('h264.mp4', (1, 32, 32, 1)).shape == (1, 32, 32, 1)


def test_other_numbers_fail(workdir, stored, capsys):
    file, content = stored
    content['clips']['h264.mp4']['logits'][0] += 0.1
    file.write_text(json.dumps(content))
    assert main(['selfcheck', workdir]) == 1
    captured = capsys.readouterr()
    assert '(too far)' in captured.out
    assert 'this machine gives other answers' in captured.err


def test_other_pixels_alone_are_said_but_do_not_fail(workdir, stored, capsys):
    file, content = stored
    content['clips']['vp9.webm']['pixels'] = 'x'
    file.write_text(json.dumps(content))
    assert main(['selfcheck', workdir]) == 0
    assert 'vp9.webm  pixels differ' in capsys.readouterr().out


def test_not_a_number_fails(stored):
    _, content = stored
    found = json.loads(json.dumps(content['clips']))
    found['h264.mp4']['features'][0] = float('nan')
    assert selfcheck.compare(content['clips'], found)[1] is False


def test_without_stored_answers(workdir, stored, capsys):
    file, _ = stored
    file.unlink()
    assert main(['selfcheck', workdir]) == 1
    assert 'has no selfcheck.json: store the answers' in capsys.readouterr().err
    assert main(['selfcheck', workdir, '--store']) == 0
    assert main(['selfcheck', workdir]) == 0
