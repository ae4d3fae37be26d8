"""BEVT through the commands: two streams resumed to the bit, a report, and the hand-over to a scored classifier."""

import shutil

import numpy as np
import pytest
from bevt_configs import ROOT

from mvdjax import checkpoints
from mvdjax import config as configs
from mvdjax.analysis.report import write_report
from mvdjax.evaluate import evaluate
from mvdjax.metric_writer import read_metrics
from mvdjax.predict import predict
from mvdjax.train import train

SMALL = ('task.model.depths=(1,1)', 'mesh.devices=1')
VQ = {'channels': (8, 8), 'blocks': 1, 'vocabulary': 64, 'code_dim': 4}


def two_streams(demo_data):
    values = (*SMALL, 'run.steps=4', 'run.save_every=2', 'task.tokenizer.kind=vq', 'run.accumulate=2')
    values += (f'data.files={demo_data}/pretrain.txt', f'streams.image.data.files={demo_data}/images.txt')
    config = configs.load(f'{ROOT}/configs/bevt/k400_swin_b.py:debug', [f'--config.{value}' for value in values])
    config.unlock()
    config.task.tokenizer.model = VQ
    config.data.options.token_size = config.streams.image.data.options.token_size = 32
    return config.lock()


@pytest.fixture(scope='module')
def pretrained(demo_data, tmp_path_factory):
    """A run of four steps, and the config."""
    workdir, config = tmp_path_factory.mktemp('streams'), two_streams(demo_data)
    train(config, str(workdir))
    return workdir, config


def test_two_streams_resume_to_the_bit(pretrained, tmp_path):
    whole, config = pretrained
    shutil.copytree(whole, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
    train(config, str(tmp_path / 'run'))
    once, again = (checkpoints.read_params(str(folder)) for folder in (whole, tmp_path / 'run'))
    assert once.keys() == again.keys()
    for name, value in once.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert any('patch_embed_2d' in name for name in once)
    last = [row for row in read_metrics(str(whole)) if row['kind'] == 'train'][-1]
    assert {'loss', 'loss_video', 'loss_image', 'accuracy_video', 'accuracy_image'} <= set(last)


def test_the_report_of_two_streams_shows_a_masked_clip(pretrained, tmp_path):
    workdir, _ = pretrained
    written = write_report([str(workdir)], str(tmp_path))
    assert any(path.endswith('_clip.png') for path in written)
    assert 'No picture' not in (tmp_path / 'report.html').read_text()


def test_a_classifier_takes_over_the_backbone_with_another_window_and_is_scored(pretrained, demo_data, tmp_path):
    values = [*SMALL, 'task.model.window=(4,2,2)', 'run.steps=1', f'init.checkpoint={pretrained[0]}']
    values.append(f'data.files={demo_data}/motion_train.txt')
    values.append(f'data.class_file={demo_data}/motion_classes.txt')
    for name in ('val', 'test'):
        values.append(f'evals.{name}.data.files={demo_data}/motion_{name}.txt')
        values.append(f'evals.{name}.data.class_file={demo_data}/motion_classes.txt')
    overrides = [f'--config.{value}' for value in values]
    config = configs.load(f'{ROOT}/configs/finetune/ssv2_swin_b.py:debug', overrides)
    workdir = str(tmp_path / 'classifier')
    train(config, workdir)
    before, after = checkpoints.read_params(str(pretrained[0])), checkpoints.read_params(workdir)
    table = 'backbone/stage1/blocks/attn/relative_position_table'
    assert before[table].shape[1:4] == (3, 3, 3)
    assert after[table].shape[1:4] == (7, 3, 3)
    kernel = 'backbone/stage1/blocks/mlp/fc1/kernel'
    np.testing.assert_allclose(after[kernel], before[kernel], atol=3e-4)  # one step at a tenth of the rate
    averaged = checkpoints.read_params(workdir, use_ema=True)
    assert 0 < np.abs(averaged[kernel] - before[kernel]).max() < np.abs(after[kernel] - before[kernel]).max()
    assert checkpoints.read_meta(workdir)['backbone']['kind'] == 'swin'
    scores = evaluate(config, workdir, str(tmp_path), 'test', True)
    assert (scores['scored'], scores['videos']) == (16, 16)
    video = str(sorted((demo_data / 'videos' / 'train').iterdir())[0])
    ((name, probability), *others) = predict(workdir, [video])[video]
    assert 1 / 8 <= probability <= 1
    assert len(others) == 4
    assert name in (demo_data / 'motion_classes.txt').read_text().split()
