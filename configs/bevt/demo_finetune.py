"""Fine-tuning the tiny Swin on the demo videos' motion or appearance labels: the rows of the quickstart's BEVT table.

    mvdjax train --config=configs/bevt/demo_finetune.py:motion --workdir=quickstart/runs/bevt_motion \
        --config.init.checkpoint=quickstart/runs/two_streams
    mvdjax evaluate --config=configs/bevt/demo_finetune.py:motion --checkpoint=quickstart/runs/bevt_motion

Not a published recipe. Every row of the table uses it unchanged; an empty init.checkpoint trains from scratch.
"""

from _demo import SIZE, swin
from ml_collections import ConfigDict

from mvdjax.debug_form import shorten


def get_config(arg: str = 'motion') -> ConfigDict:
    options = arg.split(',')
    if not set(options) <= {'motion', 'appearance', 'debug'}:
        raise ValueError(f'unknown argument {arg!r}; there are motion, appearance and debug, joined by a comma')
    labels = 'appearance' if 'appearance' in options else 'motion'
    clip = {'size': SIZE, 'length': 8, 'stride': 2}
    c = ConfigDict()
    c.task_name = 'classify'
    c.task = {'model': {'kind': 'swin', **swin('debug' in options)}, 'num_classes': 8, 'label_smoothing': 0.1}
    classes = f'quickstart/data/{labels}_classes.txt'
    c.data = {
        'files': f'quickstart/data/{labels}_train.txt',
        'class_file': classes,
        'recipe': 'finetune',
        'options': {**clip, 'scale': (0.5, 1.0), 'flip': 0.0, 'views': 2},
    }
    views = {'recipe': 'views', 'class_file': classes, 'options': {**clip, 'clips': 2, 'crops': 1}}
    c.evals = {
        name: {'data': {'files': f'quickstart/data/{labels}_{name}.txt', **views}, 'batch': 16}
        for name in ('val', 'test')
    }
    c.optim = {'peak_rate': 1e-3, 'end_rate': 1e-5, 'warmup_epochs': 1.0}
    c.init = {
        'checkpoint': '',
        'allow_fresh': ('^head/',),
        'allow_unused': ('^backbone/(mask_token$|patch_embed_2d/)', '^(fpn|fpn_s|fpn_t|lm_down|lm_down_st|lm_head)/'),
    }
    c.run = {'global_batch': 8, 'epochs': 16.0}
    c.mesh = {}
    if 'debug' in options:
        shorten(c)
    return c
