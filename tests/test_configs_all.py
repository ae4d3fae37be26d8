"""Every config file there is: documented, loads, its full-size step is consistent, its :debug form really trains."""

import ast
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from mvdjax import checkpoints, train_state
from mvdjax import config as configs
from mvdjax.data.decode import DecodeError
from mvdjax.data.schema import Record
from mvdjax.evaluate import eval_set
from mvdjax.settings import Run
from mvdjax.train import make_optimizer, train
from mvdjax.train_step import make_train_step

ROOT = Path(__file__).parent.parent
FILES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / 'configs').glob('**/[!_]*.py'))  # _*.py: what they share
LISTS = {'images': 'images.txt', 'pretrain': 'pretrain.txt'}  # recipe -> list of the demo data; others need labels
RECORDS = 200_000  # length of a pretended training list


def test_there_are_configs():
    assert 'configs/mvd/demo_nano.py' in FILES


@pytest.mark.parametrize('file', FILES)
def test_the_docstring_says_how_to_run_it(file):
    text = ast.get_docstring(ast.parse((ROOT / file).read_text()))
    assert text
    assert f'mvdjax train --config={file}' in text
    assert '--workdir=' in text


@pytest.mark.parametrize('arg', ['', ':debug'])
@pytest.mark.parametrize('file', FILES)
def test_it_loads(file, arg):
    config = configs.load(str(ROOT / file) + arg)
    configs.make_task(config)
    run = configs.build(Run, configs.section(config, 'run'), 'run')
    for _, data in data_of(config, run):
        data.make()
    for name in config.evals:
        eval_set(config, name).make_data().make()
    assert set(run.eval_sets) <= set(config.evals)
    json.dumps(config.to_dict())  # as a checkpoint carries it
    if arg:
        assert run.total_steps(RECORDS) <= 10


def data_of(config, run):
    """(name, data) of the streams of a config, that of its epochs first."""
    sections = {run.stream: configs.section(config, 'data')}
    sections |= {name: stream.data for name, stream in configs.side_streams(config).items()}
    return [(name, configs.build(configs.Data, section, 'data')) for name, section in sections.items()]


def sample_of(data, demo_data):
    """A real sample of the recipe at full size, from whichever kind of demo file it reads."""
    for path in ('videos/train', 'images'):
        record = Record(str(sorted((demo_data / path).iterdir())[0]), 0, 1)
        try:
            return data.make()(record, np.random.default_rng(0))
        except DecodeError:
            pass
    raise AssertionError(f'recipe {data.recipe} reads neither video nor image')


def stacked(data, sample, records):
    """A NumPy batch of `records` times that sample, or its first view; takes no memory."""
    views = data.make().views
    first = sample if views == 1 else {n: x[0] for n, x in sample.items()}
    return {n: np.broadcast_to(x, (records * views, *np.shape(x))) for n, x in first.items()}


def abstract(batch):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def of_streams(parts):
    """What the loop makes of a dict by stream: with one stream there is none."""
    return parts if len(parts) > 1 else next(iter(parts.values()))


@pytest.mark.parametrize('file', FILES)
def test_the_whole_step_fits_together_at_full_size(file, demo_data):
    section = configs.load(str(ROOT / file)).task
    frozen = [f'teachers.{name}' for name in section.get('teachers', {})] + [
        n for n in ('tokenizer', 'perceptual') if section.get(n)
    ]
    config = configs.load(str(ROOT / file), [f'--config.task.{name}.checkpoint=random' for name in frozen])
    task = configs.make_task(config)
    run = configs.build(Run, configs.section(config, 'run'), 'run')
    parts = data_of(config, run)
    data = parts[0][1]
    mix = config.task.get('mix')
    group = max(2, mix.group if mix is not None else 1)
    assert run.global_batch % run.accumulate == 0
    assert run.global_batch // run.accumulate * data.make().views % group == 0
    records = group * run.accumulate
    batch = of_streams({name: stacked(part, sample_of(part, demo_data), records) for name, part in parts})
    task.check(batch)
    batch = abstract(batch)

    params = train_state.abstract_params(task, batch)
    optimizer = make_optimizer(config, run, task, params, RECORDS)
    make = train_state.make_state_function(task, optimizer, run.ema_decay > 0)
    state = jax.eval_shape(make, jax.random.key(0), batch)
    frozen = jax.eval_shape(task.frozen)
    views = of_streams({name: part.make().views for name, part in parts})
    step = make_train_step(
        task, optimizer, seed=run.seed, accumulate=run.accumulate, ema_decay=run.ema_decay, views=views
    )
    after, values = jax.eval_shape(step, state, frozen, batch)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (after, state)]
    assert shapes[0] == shapes[1]  # or every step would compile anew
    assert {'loss', 'grad_norm', 'learning_rate'} <= set(values)

    for name in config.evals:
        views = eval_set(config, name).make_data()
        videos = abstract(stacked(views, sample_of(views, demo_data), 2))
        outputs = jax.eval_shape(task.predict, params, frozen, videos)
        assert all(x.shape[0] == 2 for x in jax.tree.leaves(outputs))


@pytest.fixture
def quick_compilation():
    """Most of these tests' time is XLA's."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


# Trained elsewhere: test_bevt_runs.py takes these two through resume, hand-over and evaluation.
ELSEWHERE = {'configs/bevt/k400_swin_b.py', 'configs/finetune/ssv2_swin_b.py'}


def distinct_debug_forms():
    """A file for each `:debug` form: the published recipes of a folder shrink to the same run."""
    forms = {file: configs.load(f'{ROOT / file}:debug').to_dict() for file in FILES}
    return sorted({*{json.dumps(form, sort_keys=True): file for file, form in forms.items()}.values()} - ELSEWHERE)


@pytest.mark.usefixtures('quick_compilation')
@pytest.mark.parametrize('file', distinct_debug_forms())
def test_the_debug_form_trains_a_step(file, demo_data, tmp_path):
    spec = str(ROOT / file) + ':debug'
    config = configs.load(spec)
    # One device compiles faster; test_train.py compares it with all of them.
    overrides = ['--config.run.steps=1', '--config.run.epochs=None', '--config.mesh.devices=1']
    overrides += redirected('data', config.data, demo_data)
    for name, options in config.get('streams', {}).items():
        overrides += redirected(f'streams.{name}.data', options.data, demo_data)
    for name, options in config.evals.items():
        overrides += redirected(f'evals.{name}.data', options.data, demo_data)
    numbers = train(configs.load(spec, overrides), str(tmp_path))
    assert np.isfinite(numbers['loss'])
    assert numbers['grad_norm'] > 0
    assert numbers['skipped'] == 0
    assert checkpoints.read_meta(str(tmp_path))['step'] == 1


def redirected(name, section, demo_data):
    """Overrides that make a data section read the demo data."""
    own = demo_data / os.path.basename(section.files)
    path = own if own.exists() else demo_data / LISTS.get(section.recipe, 'motion_train.txt')
    return [f'--config.{name}.files={path}', f'--config.{name}.class_file=', f'--config.{name}.root=']
