"""VideoMAE (arXiv 2203.12602) on the demo videos: the quickstart's video teacher.

    mvdjax train --config=configs/videomae/demo_nano.py --workdir=quickstart/video_teacher

Not a published recipe: a tiny model on tiny clips, so that it trains in minutes on 2 CPU cores.
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    if arg not in ('', 'debug'):
        raise ValueError(f'unknown argument {arg!r}; there is only debug')
    debug = arg == 'debug'
    patch, mask = (2, 8, 8), {'kind': 'tube', 'ratio': 0.75}
    c = ConfigDict()
    c.task_name = 'mae'
    c.task = {
        'encoder': {'variant': 'nano', 'dtype': 'float32', 'patch': patch, 'pos_embed': 'sincos1d'},
        'decoder': {'width': 64, 'depth': 1, 'heads': 2, 'embed_bias': False, 'pos_embed': 'sincos1d'},
        'mask': mask,
        'target': 'videomae',
    }
    c.data = {
        'files': 'quickstart/data/pretrain.txt',
        'recipe': 'pretrain',
        'options': {'size': 48, 'length': 8, 'stride': 2, 'patch': patch, 'mask': mask},
    }
    c.evals = {}
    c.optim = {
        'peak_rate': 1e-3,
        'end_rate': 1e-5,
        'warmup_epochs': 2.0,
        'betas': (0.9, 0.95),
        'decay': ('kernel$',),
        'no_decay': ('(bias|scale|mask_token)$',),
    }
    c.init = {}
    c.run = {'global_batch': 32, 'epochs': 40}
    c.mesh = {}
    if debug:
        c.run = {'global_batch': 8, 'steps': 2, 'log_every': 1}
        c.optim.warmup_epochs = 0.0
    return c
