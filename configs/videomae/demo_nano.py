"""VideoMAE (arXiv 2203.12602) on the demo videos: the quickstart's video teacher.

    mvdjax train --config=configs/videomae/demo_nano.py --workdir=quickstart/runs/video_teacher

Not a published recipe but a tiny one that trains in minutes on 2 CPU cores. It differs where so short a run needs it:
masks are random in space and time (published: tubes), so that motion is learnt first; targets are plain pixels; each
video gives 4 clips per decode; the position table is MVD's, so that the student's recipe can fine-tune it too.
"""

from ml_collections import ConfigDict

from mvdjax.debug_form import is_debug, shorten


def get_config(arg: str = '') -> ConfigDict:
    patch, mask = (2, 10, 10), {'kind': 'random_clip', 'ratio': 0.75}
    c = ConfigDict()
    c.task_name = 'mae'
    c.task = {
        'encoder': {'variant': 'nano', 'dtype': 'float32', 'patch': patch, 'pos_embed': 'sincos3d'},
        'decoder': {'width': 64, 'depth': 1, 'heads': 2, 'embed_bias': False},
        'mask': mask,
        'target': 'mae_raw',
    }
    c.data = {
        'files': 'quickstart/data/pretrain.txt',
        'recipe': 'pretrain',
        'options': {'size': 40, 'length': 8, 'stride': 2, 'patch': patch, 'mask': mask, 'views': 4},
    }
    c.evals = {}
    c.optim = {
        'peak_rate': 2e-3,
        'end_rate': 2e-5,
        'warmup_epochs': 1.0,
        'betas': (0.9, 0.95),
        'decay': ('kernel$',),
        'no_decay': ('(bias|scale|mask_token)$',),
    }
    c.init = {}
    c.run = {'global_batch': 8, 'epochs': 7.5, 'log_every': 100}
    c.mesh = {}
    if is_debug(arg):
        shorten(c)
    return c
