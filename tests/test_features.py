"""`mvdjax features`: the encoders' own numbers, rows that survive kills, and what is refused."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import small_runs
from golden_weights import quick_jit

from mvdjax import config as configs
from mvdjax import features, saving
from mvdjax import main as cli
from mvdjax.data.pipeline import make_recipe
from mvdjax.data.schema import FileList, Record
from mvdjax.errors import UserError
from mvdjax.models.video_swin import VideoSwin
from mvdjax.models.vq import VQ
from mvdjax.resume import meta_data
from mvdjax.tasks import encoders
from mvdjax.tasks.base import model_input
from mvdjax.train_state import TrainState

SWIN = ('task.model.dtype=float32',)
STAGES = {  # name -> config, overrides
    'mae': ('mae', ()),
    'videomae': ('videomae', ()),
    'mvd': ('mvd', ()),
    'vit': ('finetune', ()),
    'bevt': ('bevt/k400_swin_b', SWIN),
    'bevt_images': ('bevt/in1k_swin_b', SWIN),
    'swin': ('finetune/ssv2_swin_b', SWIN),
    'codebook': ('bevt/in1k_tokenizer', SWIN),
}


def load_config(name, data):
    file, overrides = STAGES[name]
    if file in small_runs.DEBUG:
        return small_runs.load(file, data, *overrides, arg='debug')
    spec = f'{small_runs.CONFIGS}/{file}.py:debug'
    return configs.load(spec, [f'--config.{text}' for text in overrides])


def drawn(tree, seed):
    """Parameters of no special kind: far enough from zero that every one of them shows."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.2 * random.standard_normal(x.shape)).astype(np.float32), tree)


def store(workdir, config, seed=0, step=1):
    """A checkpoint of a config's task, as a run writes it."""
    task = configs.make_task(config)
    data = configs.section(config, 'data')
    sample = make_recipe(data['recipe'], data['options']).blank()
    views = make_recipe(data['recipe'], data['options']).views
    batch = sample if views > 1 else {key: np.asarray(value)[None] for key, value in sample.items()}
    params = drawn(jax.eval_shape(task.init, jax.random.key(0), batch), seed)
    meta = meta_data(config, task, FileList('list', (Record('x', 0, 1),), ()), batch['video'], None)
    with saving.Checkpoints(str(workdir), 1) as saved:
        saved.save(TrainState(np.int32(step), np.int32(0), params, {}, drawn(params, seed + 7)), meta)
    return params


@pytest.fixture(scope='module')
def checkpoint(demo_data, tmp_path_factory):
    """name -> (path, config, parameters), each written once."""
    made = {}

    def get(name):
        if name not in made:
            config, workdir = load_config(name, demo_data), tmp_path_factory.mktemp(name)
            made[name] = str(workdir), config, store(workdir, config)
        return made[name]

    return get


@pytest.fixture(scope='module')
def videos(demo_data, tmp_path_factory):
    """A list of eleven videos with labels, the fourth of which is none."""
    root = tmp_path_factory.mktemp('videos')
    lines = [f'{demo_data}/{line}' for line in (demo_data / 'motion_train.txt').read_text().splitlines()[:11]]
    (root / 'broken.mp4').write_bytes(b'no video' * 99)
    lines[3] = f'{root}/broken.mp4 5'
    (root / 'list.txt').write_text('\n'.join(lines))
    return str(root / 'list.txt')


def extract(path, videos, output, batch=8, **spec):
    """The array and the two texts of a finished output."""
    features.write_features(features.make_job(path, str(videos), features.FeatureSpec(**spec)), str(output), batch)
    return read(output)


def read(output):
    about = json.loads((Path(output) / 'features.json').read_text())
    lines = [json.loads(line) for line in (Path(output) / 'videos.jsonl').read_text().splitlines()]
    array = np.load(Path(output) / 'features.npy', mmap_mode='r')
    assert about['finished']
    assert list(array.shape) == about['array']['shape']
    assert len(about['array']['axes']) == array.ndim
    assert len(lines) == len(array)
    return array, about, lines


def clips_of(path, about):
    """uint8 (views, t, h, w, 3) of a video, as the file says they were cut."""
    return make_recipe('views', about['views'])(Record(path, 0, 0), np.random.default_rng(0))['video']


def own_maps(name, task, params, clips):
    """(views, t, h, w, width): what the module says itself, called as the models' documentation has it."""
    model = task.backbone()
    if name in ('mae', 'bevt_images', 'codebook'):
        frames = clips.reshape(-1, 1, *clips.shape[2:])
    else:
        frames = clips
    x = model_input(frames, model)
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


@pytest.mark.parametrize('name', STAGES)
def test_features_are_what_the_model_says_itself(checkpoint, demo_data, tmp_path, name):
    path, config, params = checkpoint(name)
    video = str(sorted((demo_data / 'videos' / 'train').iterdir())[1])
    frames = {'frames': 3} if name in ('mae', 'bevt_images', 'codebook') else {}
    dense, about, _ = extract(path, video, tmp_path / 'dense', kind='dense', **frames)
    task = configs.make_task(config)
    maps = own_maps(name, task, params, clips_of(video, about))
    np.testing.assert_allclose(dense[0], maps, rtol=1e-4, atol=1e-4)
    assert maps.shape[1] == (3 if frames else about['views']['length'] // 2)
    assert np.std(maps) > 0.05
    clip, about, _ = extract(path, video, tmp_path / 'clip', **frames)
    if about['checkpoint']['task'] == 'classify':
        x = model_input(clips_of(video, about), task.backbone())
        _, info = quick_jit(task.classifier().apply)({'params': params}, x)
        expected = np.mean(info['pooled'], axis=0)
    else:
        expected = maps.mean(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(clip[0], expected, rtol=1e-4, atol=1e-4)


def test_every_task_hands_out_an_encoder():
    """Tasks are found as `--config` finds them."""
    stages = {configs.load(f'{small_runs.CONFIGS}/{f}.py').task_name for f in ('mae/demo_nano', 'mvd/demo_nano')}
    found = {p.stem for p in Path(encoders.__file__).parent.glob('*.py') if 'class Task:' in p.read_text()}
    assert stages <= found
    for name in found:
        text = (Path(encoders.__file__).parent / f'{name}.py').read_text()
        assert 'def feature_encoder(self)' in text, name
