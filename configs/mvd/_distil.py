"""What the published distillation runs share (arXiv 2212.04500); the files beside this one state the rest.

All of them: Kinetics-400, 32 V100, AdamW, both teachers with weight 1 and smooth L1, targets not normalised.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mvdjax.debug_form import DEMO, is_debug, shorten


def distil(
    arg: str,
    *,
    student: Mapping[str, Any],
    teachers: str,
    decoder: Mapping[str, Any],
    base_end_rate: float,
    run: Mapping[str, Any],
    image_patch: int = 16,
    teacher_size: int = 0,
) -> ConfigDict:
    """The config of a run.

    Args:
      arg: of the file.
      student: size and regularisation of the student.
      teachers: variant of both teachers.
      decoder: size of each of the two decoders.
      base_end_rate: see `optimizers.make_optimizer`.
      run: the run section.
      image_patch: rows and columns of the image teacher's tokens.
      teacher_size: side of the image teacher's input where it is not the student's.
    """
    patch, mask = (2, 16, 16), {'kind': 'tube', 'ratio': 0.9}
    teacher = {'variant': teachers, 'dtype': 'bfloat16'}
    image = {'patch': (1, image_patch, image_patch), 'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full'}
    c = ConfigDict()
    c.task_name = 'mvd'
    c.task = {
        'student': {'remat': 'none', **student, 'patch': patch, 'dtype': 'bfloat16'},
        'teachers': {
            'image': {
                'model': {**teacher, **image},
                'checkpoint': f'runs/mae_in1k_vit_{teachers.lower()}',
                'decoder': {'remat': 'none', **decoder},
            },
            'video': {
                # VideoMAE's table, unlike the student's: one sinusoid over the flattened tokens.
                'model': {**teacher, 'patch': patch, 'pos_embed': 'sincos1d'},
                'checkpoint': f'runs/videomae_k400_vit_{teachers.lower()}',
                'decoder': {'remat': 'none', **decoder},
            },
        },
        'mask': mask,
    }
    c.data = {
        'files': 'data/k400/train.txt',
        'recipe': 'pretrain',
        'options': {
            'size': 224,
            'length': 16,
            'stride': 4,
            'patch': patch,
            'mask': mask,
            'teacher_size': teacher_size,
        },
        'workers': 8,
        'threads': 2,
    }
    c.evals = {}
    c.optim = {
        'base_rate': 1.5e-4,
        'base_end_rate': base_end_rate,
        'rate_counts': 'views',
        'warmup_epochs': 40.0,
        'weight_decay': 0.05,
        'betas': (0.9, 0.95),  # mask tokens decay too, as they did in the published runs
    }
    c.init = {}
    c.run = dict(run)
    c.mesh = {}
    return shrunk(c) if is_debug(arg) else c


def shrunk(c: ConfigDict) -> ConfigDict:
    """The debug form of a run: what is special about it stays, as the ViT-H teacher's patches of 14."""
    c.task.student.variant = 'debug'
    for teacher in c.task.teachers.values():
        teacher.model.variant = 'debug'
        teacher.checkpoint = 'random'
        teacher.decoder.update(width=32, depth=1, heads=2)
    c.data.update(files=f'{DEMO}/pretrain.txt', workers=0)
    c.data.options.size = 32
    if c.data.options.teacher_size:
        c.data.options.teacher_size = 2 * c.task.teachers.image.model.patch[1]
    shorten(c)
    return c
