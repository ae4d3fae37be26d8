"""MVD (arXiv 2212.04500, table of the main results): ViT-B student from ViT-B teachers, Kinetics-400, 400 epochs.

    mvdjax train --config=configs/mvd/k400_vit_b.py --workdir=runs/mvd_k400_vit_b \
        --config.data.files=/data/k400/train.txt \
        --config.task.teachers.image.checkpoint=runs/mae_in1k_vit_b \
        --config.task.teachers.video.checkpoint=runs/videomae_k400_vit_b

Published with 32 V100 (hours not stated). Expected after fine-tuning: K400 82.7 (finetune/k400_vit_b.py), SSv2 72.5
(finetune/ssv2_vit_b.py). Source: the authors' scripts, pretrain_mvd_base_patch16_224 with both base teachers.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    if arg not in ('', 'debug'):
        raise ValueError(f'unknown argument {arg!r}; there is only debug')
    debug = arg == 'debug'
    variant, size = ('debug', 32) if debug else ('B', 224)
    patch, mask = (2, 16, 16), {'kind': 'tube', 'ratio': 0.9}
    # As published for S and B: the decoders are as wide as the student.
    decoder = {'width': 32, 'depth': 1, 'heads': 2} if debug else {'width': 768, 'depth': 2, 'heads': 12}
    teacher = {'variant': variant, 'dtype': 'bfloat16'}
    c = ConfigDict()
    c.task_name = 'mvd'
    c.task = {
        'student': {'variant': variant, 'patch': patch, 'drop_path': 0.1, 'dtype': 'bfloat16'},
        'teachers': {
            'image': {
                'model': {
                    **teacher,
                    'patch': (1, 16, 16),
                    'pos_embed': 'sincos2d',
                    'cls_token': True,
                    'qkv_bias': 'full',
                },
                'checkpoint': 'random' if debug else 'runs/mae_in1k_vit_b',
                'decoder': decoder,
            },
            'video': {
                'model': {**teacher, 'patch': patch, 'pos_embed': 'sincos1d'},
                'checkpoint': 'random' if debug else 'runs/videomae_k400_vit_b',
                'decoder': decoder,
            },
        },
        'mask': mask,
    }
    c.data = {
        'files': 'quickstart/data/pretrain.txt' if debug else 'data/k400/train.txt',
        'recipe': 'pretrain',
        'options': {'size': size, 'length': 16, 'stride': 4, 'patch': patch, 'mask': mask},
        'workers': 0 if debug else 8,
        'threads': 2,
    }
    c.evals = {}
    c.optim = {
        'base_rate': 1.5e-4,
        'base_end_rate': 1e-4,  # the 400-epoch runs end at two thirds of the peak
        'warmup_epochs': 40.0,
        'weight_decay': 0.05,
        'betas': (0.9, 0.95),  # mask tokens decay too, as they did in the published runs
    }
    c.init = {}
    # The published schedule spans 401 epochs and the checkpoint after 400 is the result.
    c.run = {'global_batch': 1024, 'epochs': 400, 'schedule_epochs': 401}
    c.mesh = {}
    if debug:
        c.run = {'global_batch': 8, 'steps': 2, 'log_every': 1}
        c.optim.warmup_epochs = 0.0
    return c
