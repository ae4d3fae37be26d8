"""MAE (arXiv 2111.06377) on the demo images: the quickstart's image teacher.

    mvdjax train --config=configs/mae/demo_nano.py --workdir=quickstart/runs/image_teacher

Not a published recipe: a tiny model on tiny images, so that it trains in minutes on 2 CPU cores.
"""

from ml_collections import ConfigDict

from mvdjax.debug_form import is_debug, shorten


def get_config(arg: str = '') -> ConfigDict:
    patch, mask = (1, 10, 10), {'kind': 'random', 'ratio': 0.6}
    c = ConfigDict()
    c.task_name = 'mae'
    c.task = {
        'encoder': {
            'variant': 'nano',
            'dtype': 'float32',
            'patch': patch,
            'pos_embed': 'sincos2d',
            'cls_token': True,
            'qkv_bias': 'full',
        },
        'decoder': {'width': 64, 'depth': 1, 'heads': 2, 'pos_embed': 'sincos2d', 'qkv_bias': 'full'},
        'mask': mask,
        'target': 'mae',
    }
    c.data = {
        'files': 'quickstart/data/images.txt',
        'recipe': 'images',
        'options': {'size': 40, 'patch': patch, 'mask': mask, 'scale': (0.4, 1.0)},
    }
    c.evals = {}
    c.optim = {'peak_rate': 2e-3, 'end_rate': 2e-5, 'warmup_epochs': 10.0, 'betas': (0.9, 0.95)}
    c.init = {}
    c.run = {'global_batch': 64, 'epochs': 100.0, 'log_every': 250}
    c.mesh = {}
    if is_debug(arg):
        shorten(c)
    return c
