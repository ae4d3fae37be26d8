"""BEVT's configs against what was published: `published_bevt_runs.csv`, and parameter groups and counts at full depth.

Empty cells are what a run does not have, or what nobody published. docs/recipes.md is held against the table.
"""

import ast
import csv
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from bevt_configs import ROOT
from golden_weights import golden

from mvdjax import config as configs
from mvdjax import optimizers, trees
from mvdjax.convert import models, rules, swin, swin_families
from mvdjax.settings import Run
from mvdjax.tasks.base import describe
from mvdjax.train import make_optimizer

with (Path(__file__).parent / 'published_bevt_runs.csv').open() as file:
    RUNS = {f'configs/{row["config"]}.py': row for row in csv.DictReader(file)}
STAGES = [file for file in RUNS if '/bevt/' in file]
CLASSIFIERS = [file for file in RUNS if '/finetune/' in file]
RECORDS = 240_000
NUMBER = r'\b\d\d\.\d\b'  # an accuracy
every_run = pytest.mark.parametrize('file', RUNS)


def loaded(file):
    """(config, its run section, its task)."""
    config = configs.load(str(ROOT / file))
    return config, configs.build(Run, configs.section(config, 'run'), 'run'), configs.make_task(config)


def docstring(file):
    return ast.get_docstring(ast.parse((ROOT / file).read_text()))


def text_of(file):
    """The docstring on one line."""
    return ' '.join(docstring(file).split())


def init(task, video=(1, 2, 32, 32, 3)):
    """Abstract parameters."""
    return jax.eval_shape(task.init, jax.random.key(0), {'video': jax.ShapeDtypeStruct(video, np.uint8)})


def test_the_table_covers_every_config():
    files = [*(ROOT / 'configs' / 'bevt').glob('[!_]*.py'), *(ROOT / 'configs' / 'finetune').glob('*_swin_*.py')]
    ours = re.compile('demo|tokenizer')  # published by nobody
    assert set(RUNS) == {path.relative_to(ROOT).as_posix() for path in files if not ours.search(path.stem)}


@every_run
def test_batch_length_and_rates(file):
    row, (config, run, task) = RUNS[file], loaded(file)
    assert (run.global_batch, run.epochs) == (int(row['batch']), float(row['epochs']))
    if row['gpus']:
        assert run.accumulate == config.optim.micro_batches == int(row['accumulate'])
        assert run.global_batch == int(row['gpus']) * int(row['gpu_batch']) * run.accumulate
    images = [stream.batch for stream in configs.side_streams(config).values()]
    assert images == ([int(row['images'])] if row['images'] else [])
    assert (config.optim.schedule, config.optim.warmup_epochs) == (row['schedule'], float(row['warmup']))
    schedule = make_optimizer(config, run, task, init(task), RECORDS).schedule
    steps, warmup = run.total_steps(RECORDS), float(row['warmup']) * run.steps_per_epoch(RECORDS)
    rates = np.array([float(schedule(step)) for step in (0, warmup / 2, warmup * 1.01 + 1, steps)])
    peak = float(row['peak'])
    assert 0.1 <= rates[0] / peak < 0.101  # a tenth, and a micro-batch or so more
    assert 0.54 < rates[1] / peak < 0.56
    assert 0.97 < rates[2] / peak < 1.0  # the cosine runs from the start
    assert rates[3] == pytest.approx(float(row['end']), abs=1e-10)


@every_run
def test_model_and_regularisation(file):
    row, (config, run, task) = RUNS[file], loaded(file)
    backbone = task.backbone()
    assert (backbone.width, backbone.depths, backbone.heads) == (128, (2, 2, 18, 2), (4, 8, 16, 32))
    assert backbone.window == tuple(int(n) for n in row['window'].split())
    assert (backbone.patch, backbone.mlp_ratio, backbone.corrected) == ((2, 4, 4), 4.0, False)
    assert backbone.drop_path == float(row['drop_path'])
    assert config.optim.weight_decay == float(row['weight_decay'])
    assert config.optim.clip_norm == (float(row['clip']) if row['clip'] else None)
    assert config.optim.betas == (0.9, 0.999)
    assert config.optim.layer_decay == 1.0
    assert config.task.get('dropout', 0.0) == float(row['dropout'] or 0)
    assert config.task.get('label_smoothing', 0.0) == float(row['smoothing'] or 0)
    assert run.ema_decay == float(row['ema'] or 0)
    assert run.ema_updates == (config.optim.micro_batches if row['ema'] else 1)


@pytest.mark.parametrize('file', STAGES)
def test_pretraining_details(file):
    config, run, task = loaded(file)
    parts = {run.stream: config.data, **{name: node.data for name, node in config.streams.items()}}
    assert set(parts) == set(task.weights) == ({'image'} if 'in1k' in file else {'video', 'image'})
    assert set(task.weights.values()) == {1.0}
    assert task.make_tokenizer().vocabulary == 8192
    for name, data in parts.items():
        options = data.options
        assert (options.size, options.token_size, options.masked, options.smallest_block) == (224, 112, 98, 16)
        assert (options.short_sides, options.flip) == ((256, 320), 0.5)
        assert task.predicted_grid(name, (1, 16, 224, 224, 3))[1:] == (14, 14)
    assert parts['image'].options.color_jitter == (0.4, 0.4, 0.4, 0.0)
    if 'video' in parts:
        options = parts['video'].options
        assert (options.length, options.stride, options.tube) == (16, 8, (0.5, 1.0))
        assert task.predicted_grid('video', (1, 16, 224, 224, 3)) == (16, 14, 14)


@pytest.mark.parametrize('file', CLASSIFIERS)
def test_finetuning_details(file):
    config, _, task = loaded(file)
    train, test = config.data.options, config.evals.test.data.options
    kinetics = 'k400' in file
    assert (train.length, train.size, train.views, train.scale) == (32, 224, 1, (0.08, 1.0))
    assert train.flip == (0.0 if 'ssv2' in file else 0.5)
    assert (train.sampling, test.sampling) == (('windows',) if kinetics else ('segments',)) * 2
    assert (test.clips, test.crops, test.crop_rule, test.length) == (4 if kinetics else 1, 3, 'bevt', 32)
    strong = (train.rand_augment, train.erasing)
    assert strong == (('', 0.0) if kinetics else ('rand-m7-n4-mstd0.5-inc1', 0.25))
    classes = {'k400': 400, 'ssv2': 174, 'diving48': 48}[Path(file).stem.split('_')[0]]
    assert config.task.num_classes == config.data.num_classes == classes
    assert config.task.mix is None
    million = trees.count(init(task)) / 1e6
    assert 87.5 < million < 89.5, 'published: 88M and 89M'


@every_run
def test_the_docstring_and_the_table_expect_the_same(file):
    row, text = RUNS[file], text_of(file)
    assert set(re.findall(NUMBER, text)) == set(re.findall(NUMBER, row['expected']))
    assert 'Published with ' in text
    assert 'Expected' in text
    if row['gpus']:
        assert f'Published with {row["hardware"]}.' in text
    else:
        assert 'ours' in text
    assert 'Source: ' in text
    assert re.search(r'\(arXiv 2112\.01529', text)


def test_every_stage_starts_where_another_ends():
    workdirs = {re.search(r'--workdir=(\S+)', text_of(file))[1]: file for file in RUNS}
    for file in RUNS:
        config, _, task = loaded(file)
        start = config.init.get('checkpoint', '')
        assert bool(start) == ('in1k' not in file)
        if start:
            assert f'--config.init.checkpoint={start}' in text_of(file)
            before = loaded(workdirs[start])[2].backbone()
            assert describe(before) == describe(task.backbone())
            assert (before.width, before.depths, before.heads) == (128, (2, 2, 18, 2), (4, 8, 16, 32))


@pytest.mark.parametrize(
    ('file', 'case', 'family'),
    [
        ('configs/bevt/k400_swin_b.py', 'pretrain', 'bevt'),
        ('configs/finetune/ssv2_swin_b.py', 'ssv2', 'video_swin'),
        ('configs/finetune/k400_swin_b.py', 'k400', 'video_swin'),
    ],
)
def test_rate_and_decay_of_every_parameter_are_the_published_ones(file, case, family):
    """At the real depths; the model is thin, since only names count."""
    thin = ['width=8', 'heads=(1, 1, 1, 1)', 'window=(1, 1, 1)']
    section = configs.load(str(ROOT / file)).task.model.to_dict()
    section |= {'depths': (2, 2, 18, 2), **{k: ast.literal_eval(v) for k, v in (text.split('=') for text in thin)}}
    config, _, task = loaded(file)
    task = type(task)(**{**configs.section(config, 'task'), 'model': section})
    params = init(task)
    factors = optimizers.group_factors(params, config.optim.groups.to_dict())
    shapes = {path: leaf.shape for path, leaf in trees.flatten(params).items()}
    meta = {'backbone': describe(task.backbone()), 'input_shape': (2, 32, 32, 3)}
    torch_family = swin_families.SWIN_FAMILIES[family]
    found = []
    for tree in factors:
        leaves = {p: np.broadcast_to(f, shapes[p]).astype(np.float32) for p, f in trees.flatten(tree).items()}
        names = rules.to_theirs(models.make_rules(torch_family, swin.of_leaves(shapes, meta)), {}, leaves, shapes)
        found.append({torch_family.written(name): np.unique(array) for name, array in names.items()})
    wanted = {n: pair for n, pair in golden(f'bevt/param_groups_{case}')['groups'].items() if 'vae_encoder' not in n}
    assert found[0].keys() == wanted.keys()
    for name, (rate, decay) in wanted.items():
        np.testing.assert_allclose(found[0][name], [rate], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(found[1][name], [decay], err_msg=name)


def line(file):
    """The row of docs/recipes.md."""
    row, (_, run, _) = RUNS[file], loaded(file)
    title = re.sub(r' \(arXiv [^)]*\)', '', docstring(file).splitlines()[0].rstrip('.'))
    batch = f'{run.global_batch} + {row["images"]} images' if row['images'] else str(run.global_batch)
    rates = f'{row["peak"]} to {row["end"]}'
    cells = [title, f'`{file}`', row['hardware'], batch, rates, f'{run.epochs:g}', row['expected']]
    return f'| {" | ".join(cell or "not stated" for cell in cells)} |'


def test_the_page_of_recipes_holds_every_run():
    table = '\n'.join(line(file) for file in RUNS)
    assert table in (ROOT / 'docs' / 'recipes.md').read_text(), f'the table of docs/recipes.md must be:\n{table}'
