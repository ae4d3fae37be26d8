"""`mvdjax features`: the encoders' own numbers, and which arguments are refused."""

import importlib
import json
import pkgutil
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from feature_runs import OF_IMAGES, STAGES, extract
from golden_weights import quick_jit

from mvdjax import config as configs
from mvdjax import features, tasks
from mvdjax import main as cli
from mvdjax.data.pipeline import make_recipe
from mvdjax.data.schema import Record
from mvdjax.errors import UserError
from mvdjax.feature_batches import FeatureBatches
from mvdjax.models.video_swin import VideoSwin
from mvdjax.models.vq import VQ
from mvdjax.tasks.base import model_input


def clips_of(path, about):
    """uint8 (views, t, h, w, 3) of a video, as the file says they were cut."""
    return make_recipe('views', about['views'])(Record(path, 0, 0), np.random.default_rng(0))['video']


def own_maps(name, task, params, clips):
    """(views, t, h, w, width): what the module says itself, called as the models' documentation has it."""
    model = task.backbone()
    x = model_input(clips.reshape(-1, 1, *clips.shape[2:]) if name in OF_IMAGES else clips, model)
    if isinstance(model, VQ):
        _, info = quick_jit(model.apply)({'params': params}, x[:, 0])
        found = info['vectors']
    elif isinstance(model, VideoSwin):
        image = name == 'bevt_images'
        apply = quick_jit(model.apply, static_argnames=('image',))
        output, info = apply({'params': params['backbone']}, x, image=image)
        found = output if name == 'swin' else info['stage2']
    else:
        found, _ = quick_jit(model.apply)({'params': params['backbone']}, x)
        found = found[:, int(model.cls_token) :]
    rows, columns = (side // 10 for side in clips.shape[2:4]) if found.ndim == 3 else found.shape[-3:-1]
    return np.asarray(found, np.float32).reshape(len(clips), -1, rows, columns, found.shape[-1])


@pytest.mark.parametrize('name', [name for name in STAGES if name != 'videomae'])  # which is below
def test_features_are_what_the_model_says_itself(checkpoint, demo_data, tmp_path, name):
    path, config, params = checkpoint(name)
    video = str(sorted((demo_data / 'videos' / 'train').iterdir())[1])
    frames = {'frames': 3} if name in OF_IMAGES else {}
    clip, about, _ = extract(path, video, tmp_path / 'clip', **frames)
    task, clips = configs.make_task(config), clips_of(video, about)
    if about['checkpoint']['task'] == 'classify':
        apply = quick_jit(task.classifier().apply)
        _, info = apply({'params': params}, model_input(clips, task.backbone()))
        expected = np.mean(info['pooled'], axis=0)
    else:
        maps = own_maps(name, task, params, clips)
        expected = maps.mean(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(clip[0], expected, rtol=1e-4, atol=1e-4)
    assert np.std(expected) > 0.01
    if name == 'mae':
        dense, about, _ = extract(path, video, tmp_path / 'dense', kind='dense', **frames)
        np.testing.assert_allclose(dense[0], maps, rtol=1e-4, atol=1e-4)
        assert maps.shape[1] == 3
        assert about['array']['axes'] == ['video', 'view', 'time', 'row', 'column', 'channel']


@pytest.mark.parametrize('name', ['videomae', 'bevt'])
def test_a_layer_is_its_output_before_any_norm(checkpoint, demo_data, tmp_path, name):
    """Of the ViT: what the last block gives where those after the first change nothing."""
    path, config, params = checkpoint(name)
    video = str(sorted((demo_data / 'videos' / 'train').iterdir())[0])
    found, about, _ = extract(path, video, tmp_path / 'x', kind='dense', layer=1)
    model = configs.make_task(config).backbone()
    weights = params['backbone']
    if name == 'videomae':
        blocks = weights['encoder']['blocks']
        silent = {'attn': 'proj', 'mlp': 'fc2'}
        blocks = {
            part: {**leaf, silent[part]: jax.tree.map(lambda x: np.r_[x[:1], 0 * x[1:]], leaf[silent[part]])}
            if part in silent
            else leaf
            for part, leaf in blocks.items()
        }
        weights = {**weights, 'encoder': {'blocks': blocks}}
    _, info = quick_jit(model.apply)({'params': weights}, model_input(clips_of(video, about), model))
    expected = np.asarray(info['last_block' if name == 'videomae' else 'stage1'])
    np.testing.assert_allclose(found[0], expected.reshape(found[0].shape), rtol=1e-4, atol=1e-4)


def test_every_task_hands_out_an_encoder():
    modules = [importlib.import_module(f'{tasks.__name__}.{m.name}') for m in pkgutil.iter_modules(tasks.__path__)]
    found = [module.Task for module in modules if hasattr(module, 'Task')]
    assert len(found) >= 5
    assert all(callable(getattr(task, 'feature_encoder', None)) for task in found)


def test_order_and_batch_change_no_number(checkpoint, videos, whole, tmp_path):
    _, array, _, _ = whole
    text = Path(videos).read_text().splitlines()
    (tmp_path / 'list.txt').write_text('\n'.join(text[::-1]))
    found, _, _ = extract(checkpoint('vit')[0], tmp_path / 'list.txt', tmp_path / 'x', batch=16)
    np.testing.assert_allclose(found[::-1], array, rtol=1e-5, atol=1e-5)


def test_views_average_and_the_moving_average(checkpoint, videos, whole, tmp_path):
    path, video = checkpoint('vit')[0], Path(videos).read_text().split()[0]
    views, about, _ = extract(path, video, tmp_path / 'views', each_view=True, dtype='float16')
    assert (views.shape, views.dtype, about['views']['clips']) == ((1, 2, 32), np.float16, 2)
    assert np.abs(views[0, 0] - views[0, 1]).max() > 1e-3
    np.testing.assert_allclose(views[0].astype(float).mean(axis=0), whole[1][0], rtol=2e-3, atol=2e-3)
    late = tmp_path / 'late.mp4'  # there when the same command is started again
    with pytest.raises(UserError, match=r'none of the 1 files of .*late\.mp4 can be read: see'):
        extract(path, late, tmp_path / 'other', views='3x2', use_ema=True)
    shutil.copy(video, late)
    other, about, _ = extract(path, late, tmp_path / 'other', views='3x2', use_ema=True)
    assert not (tmp_path / 'other' / 'bad_videos.jsonl').exists()
    assert (about['views']['clips'], about['views']['crops'], about['checkpoint']['ema']) == (3, 2, True)
    assert np.abs(other[0] - whole[1][0]).max() > 0.1


def test_features_that_are_not_finite_are_none(checkpoint, videos, tmp_path, monkeypatch, capsys):
    real = FeatureBatches._compute
    monkeypatch.setattr(FeatureBatches, '_compute', lambda batches, host: real(batches, host).at[1].set(np.nan))
    job = features.make_job(checkpoint('vit')[0], videos, features.FeatureSpec())
    found = features.write_features(job, str(tmp_path / 'x'), 16)
    lines = [json.loads(line) for line in (tmp_path / 'x' / 'videos.jsonl').read_text().splitlines()]
    assert 'its features are not finite' in lines[1]['error']
    assert found['unreadable'] == sum('error' in line for line in lines)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--kind=dens'], "--kind is one of clip, dense, not 'dens'"),
        (['--dtype=float64'], "--dtype is one of float32, float16, not 'float64'"),
        (['--layer=3'], 'there is no layer 3: the encoder has 2 blocks'),
        (['--views=5'], "--views is CLIPSxCROPS, such as 5x3, not '5'"),
        (['--batch=0'], '--batch must be at least 1, not 0'),
        (['--workers=-1'], '--workers must be at least 0, not -1'),
        (['--threads=0'], '--threads must be at least 1, not 0'),
        (['--frames=7'], r'a video of \(frames, height, width\) \(7, 40, 40\) does not divide'),
        (['--kind=dense', '--each_view'], '--each_view is of --kind=clip'),
        (['--videos=no_such_list.txt'], 'no_such_list.txt does not exist'),
        (['--videos=no_such.mp4'], 'none of the 1 files of no_such.mp4 can be read'),
        (['--checkpoint=nowhere'], 'no checkpoint in nowhere'),
    ],
)
def test_bad_arguments_get_a_sentence(checkpoint, videos, tmp_path, capsys, arguments, message):
    given = [f'--checkpoint={checkpoint("vit")[0]}', f'--videos={videos}', f'--output={tmp_path}/x', *arguments]
    assert cli.main(['features', *given]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f'^error: .*{message}', last), last


def test_images_are_noted_as_still_clips_to_a_model_of_clips(checkpoint, demo_data, capsys):
    features.make_job(checkpoint('vit')[0], f'{demo_data}/images.txt', features.FeatureSpec())
    assert (
        'holds images, and the model takes clips: each becomes a clip in which nothing moves' in capsys.readouterr().out
    )


def test_images_are_clips_of_one_frame_to_a_model_of_images(checkpoint, demo_data, tmp_path):
    images = (demo_data / 'images.txt').read_text().split()[:2]
    (tmp_path / 'list.txt').write_text('\n'.join(f'{demo_data}/{image}' for image in images if '.' in image))
    found, about, _ = extract(checkpoint('mae')[0], tmp_path / 'list.txt', tmp_path / 'x', kind='dense')
    assert found.shape[1:] == (1, 1, 4, 4, 32)
    assert about['views']['length'] == 1
    assert np.isfinite(found).all()


@pytest.mark.parametrize('command', [['features', '--videos=x.mp4', '--output=x'], ['predict', 'x.mp4']])
def test_weights_without_a_config_get_a_remedy(checkpoint, tmp_path, capsys, command):
    shutil.copytree(checkpoint('vit')[0], tmp_path / 'bare')
    meta = tmp_path / 'bare' / 'checkpoints' / '1' / 'meta' / 'metadata'
    content = json.loads(meta.read_text())
    content['config'] = {name: content['config'][name] for name in ('task_name', 'task')}  # as `convert` leaves it
    meta.write_text(json.dumps(content))
    assert cli.main([*command, f'--checkpoint={tmp_path}/bare']) == 1
    assert 'holds weights without a config: convert them again, with --config=FILE' in capsys.readouterr().err
