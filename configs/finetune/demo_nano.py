"""Fine-tuning on the demo videos' motion or appearance labels: the rows of the quickstart's table.

    mvdjax train --config=configs/finetune/demo_nano.py:motion --workdir=quickstart/runs/mvd_motion \
        --config.init.checkpoint=quickstart/runs/student
    mvdjax evaluate --config=configs/finetune/demo_nano.py:motion --checkpoint=quickstart/runs/mvd_motion

Not a published recipe: a tiny model on tiny clips, so that it trains in minutes on 2 CPU cores. Every row of the
table uses it unchanged; an empty init.checkpoint trains from scratch.
"""

from ml_collections import ConfigDict

from mvdjax.debug_form import shorten


def get_config(arg: str = 'motion') -> ConfigDict:
    options = arg.split(',')
    if not set(options) <= {'motion', 'appearance', 'debug'}:
        raise ValueError(f'unknown argument {arg!r}; there are motion, appearance and debug, joined by a comma')
    labels = 'appearance' if 'appearance' in options else 'motion'
    clip = {'size': 40, 'length': 8, 'stride': 2}
    c = ConfigDict()
    c.task_name = 'classify'
    c.task = {
        'model': {'variant': 'nano', 'patch': (2, 10, 10), 'pos_embed': 'sincos3d'},
        'num_classes': 8,
        'label_smoothing': 0.1,
    }
    classes = f'quickstart/data/{labels}_classes.txt'
    c.data = {
        'files': f'quickstart/data/{labels}_train.txt',
        'class_file': classes,
        'recipe': 'finetune',
        'options': {**clip, 'scale': (0.5, 1.0), 'flip': 0.0, 'views': 2},  # decoded once, cropped twice
    }
    views = {'recipe': 'views', 'class_file': classes, 'options': {**clip, 'clips': 2, 'crops': 1}}
    c.evals = {
        name: {'data': {'files': f'quickstart/data/{labels}_{name}.txt', **views}, 'batch': 16}
        for name in ('val', 'test')
    }
    # 640 steps: with 0.999 the second moment would remember the start, and some runs never leave the plateau there.
    c.optim = {'peak_rate': 1e-3, 'end_rate': 1e-5, 'warmup_epochs': 1.0, 'betas': (0.9, 0.98)}
    c.init = {
        'checkpoint': '',
        'allow_fresh': ('^fc_norm/', '^head/'),
        'allow_unused': ('^backbone/norm/', '^decoders_'),
    }
    c.run = {'global_batch': 8, 'epochs': 16.0}
    c.mesh = {}
    if 'debug' in options:
        shorten(c)
    return c
