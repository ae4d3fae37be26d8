"""MVD (arXiv 2212.04500) on the demo videos: the quickstart's student of both teachers.

    mvdjax train --config=configs/mvd/demo_nano.py --workdir=quickstart/student

Not a published recipe: a tiny model on tiny clips, so that it trains in minutes on 2 CPU cores.
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    if arg not in ('', 'debug'):
        raise ValueError(f'unknown argument {arg!r}; there is only debug')
    debug = arg == 'debug'
    patch, mask = (2, 8, 8), {'kind': 'tube', 'ratio': 0.75}
    decoder = {'width': 96, 'depth': 1, 'heads': 3}
    c = ConfigDict()
    c.task_name = 'mvd'
    c.task = {
        'student': {'variant': 'nano', 'patch': patch},
        'teachers': {
            'image': {
                'model': {
                    'variant': 'nano',
                    'patch': (1, 8, 8),
                    'pos_embed': 'sincos2d',
                    'cls_token': True,
                    'qkv_bias': 'full',
                },
                'checkpoint': 'random' if debug else 'quickstart/image_teacher',
                'decoder': decoder,
            },
            'video': {
                'model': {'variant': 'nano', 'patch': patch, 'pos_embed': 'sincos1d'},
                'checkpoint': 'random' if debug else 'quickstart/video_teacher',
                'decoder': decoder,
            },
        },
        'mask': mask,
    }
    c.data = {
        'files': 'quickstart/data/pretrain.txt',
        'recipe': 'pretrain',
        'options': {'size': 48, 'length': 8, 'stride': 2, 'patch': patch, 'mask': mask},
    }
    c.evals = {}
    c.optim = {'peak_rate': 1e-3, 'end_rate': 1e-5, 'warmup_epochs': 2.0, 'betas': (0.9, 0.95)}
    c.init = {}
    c.run = {'global_batch': 32, 'epochs': 40}
    c.mesh = {}
    if debug:
        c.run = {'global_batch': 8, 'steps': 2, 'log_every': 1}
        c.optim.warmup_epochs = 0.0
    return c
