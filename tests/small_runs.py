"""The demo configs at the smallest size that is still the real thing: what the loop tests train."""

from pathlib import Path

from ml_collections import ConfigDict

from mvdjax import config as configs

CONFIGS = Path(__file__).parent.parent / 'configs'
DEBUG = {'mae': ('task.encoder',), 'videomae': ('task.encoder',), 'mvd': ('task.student',), 'finetune': ('task.model',)}
LISTS = {'mae': 'images', 'videomae': 'pretrain', 'mvd': 'pretrain', 'finetune': 'motion_train'}


def arguments(stage: str, data: Path, *overrides: str, arg: str = '') -> tuple[str, list[str]]:
    """(config spec, overrides) of a demo config on the small data set: 8 steps of batch 8, tiny models."""
    fixed = [f'{path}.variant=debug' for path in DEBUG[stage]]
    fixed += [f'data.files={data}/{LISTS[stage]}.txt', 'run.global_batch=8', 'run.epochs=None', 'run.steps=8']
    fixed += ['run.log_every=1', 'run.save_every=4', 'optim.warmup_epochs=0.5', 'optim.peak_rate=0.003']
    if stage == 'mvd':
        for teacher in ('image', 'video'):
            fixed += [f'task.teachers.{teacher}.model.variant=debug', f'task.teachers.{teacher}.checkpoint=random']
    if stage == 'finetune':
        fixed.append(f'data.class_file={data}/motion_classes.txt')
        for name in ('val', 'test'):
            fixed.append(f'evals.{name}.data.files={data}/motion_{name}.txt')
            fixed.append(f'evals.{name}.data.class_file={data}/motion_classes.txt')
    spec = f'{CONFIGS}/{stage}/demo_nano.py' + (f':{arg}' if arg else '')
    return spec, [f'--config.{text}' for text in (*fixed, *overrides)]


def load(stage: str, data: Path, *overrides: str, arg: str = '') -> ConfigDict:
    """`arguments`, loaded."""
    return configs.load(*arguments(stage, data, *overrides, arg=arg))


def losses(workdir: Path) -> dict[int, float]:
    """Step -> training loss, from the metrics of a run that logged every step."""
    from mvdjax.metric_writer import read_metrics

    return {r['step']: r['loss'] for r in read_metrics(str(workdir)) if r['kind'] == 'train'}
