"""Checkpoints of every stage with an encoder, and what `mvdjax features` makes of videos with them."""

import json
from pathlib import Path

import jax
import numpy as np
import small_runs

from mvdjax import config as configs
from mvdjax import features, saving
from mvdjax.data.pipeline import make_recipe
from mvdjax.data.schema import FileList, Record
from mvdjax.resume import meta_data
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
OF_IMAGES = ('mae', 'bevt_images', 'codebook')


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
