"""MVD (arXiv 2212.04500) on the demo videos: the quickstart's student of both teachers.

    mvdjax train --config=configs/mvd/demo_nano.py --workdir=quickstart/runs/student

Not a published recipe but a tiny one that trains in minutes on 2 CPU cores. It differs where so short a run needs it:
random masks as its video teacher, and targets normalised per token (the published option that no published run used),
since the features of hardly trained teachers are mostly one constant vector.
"""

from ml_collections import ConfigDict

from mvdjax.debug_form import is_debug, shorten


def get_config(arg: str = '') -> ConfigDict:
    debug = is_debug(arg)
    patch, mask = (2, 10, 10), {'kind': 'random_clip', 'ratio': 0.75}
    decoder = {'width': 96, 'depth': 1, 'heads': 3}
    c = ConfigDict()
    c.task_name = 'mvd'
    c.task = {
        'student': {'variant': 'nano', 'patch': patch},
        'teachers': {
            'image': {
                'model': {
                    'variant': 'nano',
                    'patch': (1, 10, 10),
                    'pos_embed': 'sincos2d',
                    'cls_token': True,
                    'qkv_bias': 'full',
                },
                'checkpoint': 'random' if debug else 'quickstart/runs/image_teacher',
                'decoder': decoder,
            },
            'video': {
                'model': {'variant': 'nano', 'patch': patch},
                'checkpoint': 'random' if debug else 'quickstart/runs/video_teacher',
                'decoder': decoder,
            },
        },
        'mask': mask,
        'norm_feature': True,
    }
    c.data = {
        'files': 'quickstart/data/pretrain.txt',
        'recipe': 'pretrain',
        'options': {'size': 40, 'length': 8, 'stride': 2, 'patch': patch, 'mask': mask, 'views': 4},
    }
    c.evals = {}
    c.optim = {'peak_rate': 2e-3, 'end_rate': 2e-5, 'warmup_epochs': 1.0, 'betas': (0.9, 0.95)}
    c.init = {}
    c.run = {'global_batch': 8, 'epochs': 8.0, 'log_every': 100}
    c.mesh = {}
    if debug:
        shorten(c)
    return c
