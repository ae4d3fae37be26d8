"""The configs of published runs against what was published: `published_runs.csv`, copied from the authors' scripts.

BEVT's, which follow other rules, are in `test_published_bevt.py`.

Its rates are the absolute ones that the scripts arrive at; its `section` is that of the reference notes; an empty cell
is what a run does not have. docs/recipes.md is held against both.
"""

import ast
import csv
import re
from pathlib import Path

import numpy as np
import pytest

from mvdjax import config as configs
from mvdjax.settings import Run
from mvdjax.tasks.base import build_decoder, build_vit, describe
from mvdjax.train import make_optimizer

ROOT = Path(__file__).parent.parent
with (Path(__file__).parent / 'published_runs.csv').open() as file:
    RUNS = {f'configs/{row["config"]}.py': row for row in csv.DictReader(file)}
UNPUBLISHED = ('demo_nano', 'own_videos')
FILES = {
    p.relative_to(ROOT).as_posix()
    for p in (ROOT / 'configs').glob('**/[!_]*.py')
    if p.stem not in UNPUBLISHED and p.parent.name != 'bevt' and '_swin_' not in p.stem
}
RECORDS = 240_000
PARAMS = {'head': {'kernel': np.zeros((2, 2), np.float32)}}
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


def decoders_of(config):
    if 'decoder' in config.task:
        return [config.task.decoder]
    return [teacher.decoder for teacher in config.task.get('teachers', {}).values()]


def test_the_table_covers_every_config():
    assert set(RUNS) == FILES


@every_run
def test_batch_length_and_rates(file):
    row, (config, run, task) = RUNS[file], loaded(file)
    assert run.global_batch == int(row['batch'])
    assert run.accumulate == int(row['accumulate'])
    assert run.global_batch == int(row['gpus']) * int(row['gpu_batch']) * run.accumulate
    per_epoch = run.steps_per_epoch(RECORDS)
    assert run.total_steps(RECORDS) == int(row['epochs']) * per_epoch
    assert run.schedule_steps(RECORDS) == int(row['schedule']) * per_epoch
    schedule = make_optimizer(config, run, task, PARAMS, RECORDS).schedule
    warmup = int(row['warmup']) * per_epoch
    assert float(schedule(0)) == 0.0
    assert float(schedule(warmup)) == pytest.approx(float(row['peak']), rel=1e-6)
    assert float(schedule(warmup - 2)) < float(schedule(warmup)) > float(schedule(warmup + per_epoch))
    assert float(schedule(run.schedule_steps(RECORDS))) == pytest.approx(float(row['end']), rel=1e-6, abs=1e-12)


@every_run
def test_model_and_regularisation(file):
    row, (config, _, task) = RUNS[file], loaded(file)
    vit, decoders = task.backbone(), decoders_of(config)
    assert vit.drop_path == float(row['drop_path'])
    assert (vit.remat != 'none') == (row['remat'] == 'yes')
    assert config.optim.weight_decay == 0.05
    assert config.optim.weight_decay_end is None
    assert config.optim.clip_norm is None
    assert config.optim.betas == ((0.9, 0.999) if config.task_name == 'classify' else (0.9, 0.95))
    assert config.optim.layer_decay == float(row['layer_decay'] or 1)
    assert config.task.get('dropout', 0.0) == float(row['dropout'] or 0)
    assert bool(decoders) == bool(row['decoder'])
    for section in decoders:
        decoder = build_decoder(section.to_dict(), out_dim=1)
        assert [decoder.depth, decoder.width, decoder.heads] == [int(n) for n in row['decoder'].split()]
        assert decoder.remat == vit.remat
    for section in (config.task, config.data.options):
        assert section.get('mask', {}).get('ratio') == (float(row['mask']) if row['mask'] else None)


@every_run
def test_the_docstring_and_the_table_expect_the_same(file):
    row, text = RUNS[file], text_of(file)
    assert set(re.findall(NUMBER, text)) == set(re.findall(NUMBER, row['expected']))
    assert f'Published with {row["hardware"]}.' in text
    assert 'hours' in row['hardware']
    assert 'Source: ' in text
    assert re.search(r'\(arXiv \d{4}\.\d{5}', text)


def workdirs():
    """Workdir -> the config whose docstring trains it there."""
    return {re.search(r'--workdir=(\S+)', text_of(file))[1]: file for file in RUNS}


@every_run
def test_where_a_run_starts_from_is_what_another_makes(file):
    config, _, task = loaded(file)
    needed = [(t.checkpoint, build_vit(t.model.to_dict())) for t in config.task.get('teachers', {}).values()]
    if 'checkpoint' in config.init and config.init.checkpoint:
        needed.append((config.init.checkpoint, task.backbone()))
        assert f'--config.init.checkpoint={config.init.checkpoint} ' in text_of(file)
    for checkpoint, vit in needed:
        made = loaded(workdirs()[checkpoint])[2].backbone()
        assert describe(made) == describe(vit)
        assert (made.width, made.depth, made.heads) == (vit.width, vit.depth, vit.heads)


@pytest.mark.parametrize('file', [f for f in RUNS if '/mvd/' in f])
def test_distillation_details(file):
    config, _, _ = loaded(file)
    huge = 'vit_h' in file
    image, video = (config.task.teachers[name] for name in ('image', 'video'))
    assert (image.model.patch, config.data.options.teacher_size) == (((1, 14, 14), 196) if huge else ((1, 16, 16), 0))
    assert (image.model.pos_embed, video.model.pos_embed) == ('sincos2d', 'sincos1d')
    assert 'pos_embed' not in config.task.student  # the default, 'sincos3d'
    assert {t.get('loss', 'smooth_l1') for t in (image, video)} == {'smooth_l1'}
    assert {t.get('weight', 1.0) for t in (image, video)} == {1.0}
    assert config.task.norm_feature is False
    options = config.data.options
    assert (options.length, options.stride, options.size, options.views) == (16, 4, 224, 1)
    assert options.mask.kind == 'tube'


@pytest.mark.parametrize('file', [f for f in RUNS if '/finetune/' in f])
def test_finetuning_details(file):
    config, _, _ = loaded(file)
    k400, train, test = 'k400' in file, config.data.options, config.evals.test.data.options
    assert (train.views, train.flip) == (2, 0.5 if k400 else 0.0)
    assert (train.sampling, train.scale, train.erasing) == ('dense' if k400 else 'segments', (0.08, 1.0), 0.25)
    assert (test.clips, test.crops) == (5 if k400 else 2, 3)
    assert config.task.num_classes == config.data.num_classes == (400 if k400 else 174)
    assert config.task.mix.group == 2 * int(RUNS[file]['gpu_batch'])
    assert config.optim.rate_counts == 'videos'


@pytest.mark.parametrize('file', [f for f in RUNS if 'mae/' in f])
def test_pixel_details(file):
    config, _, _ = loaded(file)
    options = config.data.options
    if '/videomae/' in file:
        assert (options.length, options.stride, options.mask.kind) == (16, 2 if 'ssv2' in file else 4, 'tube')
        assert (config.task.target, config.optim.rate_counts) == ('videomae', 'views')
        assert config.task.encoder.pos_embed == config.task.decoder.pos_embed == 'sincos1d'
    else:
        assert (options.scale, options.flip, options.mask.kind) == ((0.2, 1.0), 0.5, 'random')
        assert (config.task.target, options.patch) == ('mae', (1, 14, 14) if 'vit_h' in file else (1, 16, 16))


def line(file):
    """The row of docs/recipes.md."""
    row, (_, run, _) = RUNS[file], loaded(file)
    title = re.sub(r' \(arXiv [^)]*\)', '', docstring(file).splitlines()[0].rstrip('.'))
    rates = f'{row["peak"]} to {row["end"]}'
    cells = [title, f'`{file}`', row['hardware'], str(run.global_batch), rates, f'{run.epochs:g}', row['expected']]
    return f'| {" | ".join(cell or "not stated" for cell in cells)} |'


def test_the_page_of_recipes_holds_every_run():
    table = '\n'.join(line(file) for file in RUNS)
    assert table in (ROOT / 'docs' / 'recipes.md').read_text(), f'the table of docs/recipes.md must be:\n{table}'
