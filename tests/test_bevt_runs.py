"""BEVT through the commands: two streams on one process and two, resumed to the bit, a report, a scored classifier."""

import json
import shutil

import jax
import numpy as np
import pytest
from bevt_configs import ROOT
from golden_weights import quick_jit
from multiprocess import Group, together

from mvdjax import checkpoints, main, trees
from mvdjax import config as configs
from mvdjax.analysis.report import write_report
from mvdjax.evaluate import eval_set
from mvdjax.evaluation.multiview import TopK
from mvdjax.metric_writer import read_metrics
from mvdjax.predict import predict
from mvdjax.tasks.base import model_input
from mvdjax.tasks.classify import Task
from mvdjax.train import train

SMALL = ('task.model.depths=(1,1)', 'mesh.devices=1')
TWO_STREAMS = f"""from ml_collections import ConfigDict

from mvdjax import config as configs


def get_config():
    c = ConfigDict(configs.load('{ROOT}/configs/bevt/k400_swin_b.py:debug').to_dict())
    model = {{'channels': (8, 8), 'blocks': 1, 'vocabulary': 64, 'code_dim': 4}}
    c.task.tokenizer = {{'kind': 'vq', 'checkpoint': 'random', 'model': model}}
    c.task.model.update(depths=(1, 1), dtype='float32')
    c.data.options.token_size = c.streams.image.data.options.token_size = 32
    c.run.update(steps=4, save_every=2, accumulate=2)
    return c
"""


@pytest.fixture(scope='module')
def two_streams(demo_data, tmp_path_factory):
    """(config file, overrides) of four steps."""
    file = tmp_path_factory.mktemp('config') / 'two_streams.py'
    file.write_text(TWO_STREAMS)
    lists = f'data.files={demo_data}/pretrain.txt', f'streams.image.data.files={demo_data}/images.txt'
    return str(file), [f'--config.{value}' for value in (*lists, 'run.compile_cache=')]


@pytest.fixture(scope='module')
def pretrained(two_streams, tmp_path_factory):
    """A run on one device, and the config."""
    file, overrides = two_streams
    workdir, config = tmp_path_factory.mktemp('streams'), configs.load(file, [*overrides, '--config.mesh.devices=1'])
    train(config, str(workdir))
    return workdir, config


def test_two_processes_compute_what_one_does(pretrained, two_streams, tmp_path):
    """2 x 2 devices: a clip and two images on each in every micro-batch."""
    file, overrides = two_streams
    limits = ['--config.run.heartbeat_timeout=60', '--config.run.init_timeout=120']
    command = ['train', f'--config={file}', f'--workdir={tmp_path}/run', *overrides, *limits]
    with Group(tmp_path / 'logs', together(2, command), devices=2) as group:
        assert group.wait(600) == [0, 0], group.text()
        assert 'image batch 16 = 2 per device x 4 batch shards x 2 accumulation' in group.output(0)
    rows = [[r for r in read_metrics(str(w)) if r['kind'] == 'train'] for w in (tmp_path / 'run', pretrained[0])]
    assert [r['step'] for r in rows[0]] == [r['step'] for r in rows[1]] == [1, 2, 3, 4]
    names = ('loss', 'loss_video', 'loss_image', 'accuracy_video', 'accuracy_image', 'grad_norm', 'learning_rate')
    for found, wanted in zip(*rows, strict=True):
        np.testing.assert_allclose([found[n] for n in names], [wanted[n] for n in names], rtol=1e-4, atol=1e-6)
    found, wanted = (checkpoints.read_params(str(w)) for w in (tmp_path / 'run', pretrained[0]))
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        # Adam makes a step of 0.001 at most of what rounding makes of a gradient near 0.
        np.testing.assert_allclose(value, wanted[name], rtol=1e-3, atol=2e-4, err_msg=name)


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


@pytest.fixture(scope='module')
def classifier(pretrained, demo_data, tmp_path_factory):
    """(workdir, config file, overrides) of a step of fine-tuning from the two streams, with a larger window."""
    values = [*SMALL, 'task.model.window=(4,2,2)', 'run.steps=1', f'init.checkpoint={pretrained[0]}']
    values += [f'data.files={demo_data}/motion_train.txt', f'data.class_file={demo_data}/motion_classes.txt']
    for name in ('val', 'test'):
        values.append(f'evals.{name}.data.files={demo_data}/motion_{name}.txt')
        values.append(f'evals.{name}.data.class_file={demo_data}/motion_classes.txt')
    file, overrides = f'{ROOT}/configs/finetune/ssv2_swin_b.py:debug', [f'--config.{value}' for value in values]
    workdir = tmp_path_factory.mktemp('classifier')
    train(configs.load(file, overrides), str(workdir))
    return workdir, file, overrides


def test_a_classifier_takes_over_the_backbone_with_another_window(pretrained, classifier, demo_data):
    workdir = str(classifier[0])
    before, after = checkpoints.read_params(str(pretrained[0])), checkpoints.read_params(workdir)
    table = 'backbone/stage1/blocks/attn/relative_position_table'
    assert before[table].shape[1:4] == (3, 3, 3)
    assert after[table].shape[1:4] == (7, 3, 3)
    kernel = 'backbone/stage1/blocks/mlp/fc1/kernel'
    np.testing.assert_allclose(after[kernel], before[kernel], atol=3e-4)  # one step at a tenth of the rate
    averaged = checkpoints.read_params(workdir, use_ema=True)
    assert 0 < np.abs(averaged[kernel] - before[kernel]).max() < np.abs(after[kernel] - before[kernel]).max()
    assert checkpoints.read_meta(workdir)['backbone']['kind'] == 'swin'
    video = str(sorted((demo_data / 'videos' / 'train').iterdir())[0])
    ((name, probability), *others) = predict(workdir, [video])[video]
    assert 1 / 8 <= probability <= 1
    assert len(others) == 4
    assert name in (demo_data / 'motion_classes.txt').read_text().split()


DENSE = ('sampling=windows', 'stride=2', 'clips=4')  # as Kinetics is tested


@pytest.mark.parametrize(('views', 'options'), [(3, ()), (12, DENSE)], ids=['1x3', '4x3'])
def test_every_view_of_every_video_counts_alike(classifier, tmp_path, monkeypatch, views, options):
    """`mvdjax evaluate` against the model's own scores, view by view."""
    workdir, file, overrides = classifier
    more = [f'--config.evals.test.data.options.{option}' for option in options]
    overrides = [*overrides, *more, '--config.task.model.dtype=float32']
    counter = TopK((1, 5))
    monkeypatch.setattr(Task, 'evaluators', lambda self: {'accuracy': counter})
    command = ['evaluate', f'--config={file}', f'--checkpoint={workdir}', '--ema', f'--output={tmp_path}']
    assert main.main([*command, *overrides]) == 0
    config = configs.load(file, overrides)
    data, model = eval_set(config, 'test').make_data(), configs.make_task(config).classifier()
    params = trees.unflatten(checkpoints.read_params(str(workdir), use_ema=True))
    run = quick_jit(
        lambda video: jax.nn.softmax(model.apply({'params': params}, model_input(video, model.backbone))[0])
    )
    expected, spreads, ranks = [], [], []
    for record in data.read().records:
        video = data.make()(record, np.random.default_rng(0))['video']
        assert video.shape == (views, 4, 32, 32, 3)
        scores = np.asarray(run(video), np.float64)
        spreads.append(np.ptp(scores, axis=0).max())
        expected.append(scores.mean(axis=0))
        ranks.append(int(np.sum(expected[-1] > expected[-1][record.label])))
    assert np.median(spreads) > 1e-5  # leaving a view out would show; crops of a square video are all the same
    found = counter.probabilities()
    np.testing.assert_allclose([found[i] for i in sorted(found)], expected, rtol=1e-5, atol=1e-7)
    results = json.loads((tmp_path / 'results.json').read_text())
    assert (results['scored'], results['videos']) == (16, 16)
    assert results['top1'] == 100 * np.mean(np.less(ranks, 1))
    assert results['top5'] == 100 * np.mean(np.less(ranks, 5))
