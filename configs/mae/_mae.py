"""What the published MAE runs on ImageNet share (arXiv 2111.06377); the files beside this one state the rest.

Per-patch normalised pixels, 75 % masked, batch 4096 on 64 GPUs, AdamW without clipping or drop path; 800 epochs is the
example of the authors' PRETRAIN.md. Their warm-up ends a step later than ours, which is MVD's.
"""

from ml_collections import ConfigDict

from mvdjax.debug_form import DEMO, is_debug, shorten


def pretrain(arg: str, *, variant: str, patch: int = 16) -> ConfigDict:
    """The config of a run.

    Args:
      arg: of the file.
      variant: size of the encoder.
      patch: rows and columns of a token.
    """
    debug = is_debug(arg)
    size, patch = (32, 16) if debug else (224, patch)
    mask = {'kind': 'random', 'ratio': 0.75}
    decoder = {'width': 32, 'depth': 1, 'heads': 2} if debug else {'width': 512, 'depth': 8, 'heads': 16}
    c = ConfigDict()
    c.task_name = 'mae'
    c.task = {
        'encoder': {
            'variant': 'debug' if debug else variant,
            'dtype': 'bfloat16',
            'patch': (1, patch, patch),
            'pos_embed': 'sincos2d',
            'cls_token': True,
            'qkv_bias': 'full',
            'remat': 'none',
        },
        'decoder': {**decoder, 'pos_embed': 'sincos2d', 'qkv_bias': 'full', 'remat': 'none'},
        'mask': mask,
        'target': 'mae',
    }
    c.data = {
        'files': f'{DEMO}/images.txt' if debug else 'data/in1k/train.txt',
        'recipe': 'images',
        'options': {'size': size, 'patch': (1, patch, patch), 'mask': mask, 'scale': (0.2, 1.0), 'flip': 0.5},
        'workers': 0 if debug else 8,
    }
    c.evals = {}
    c.optim = {
        'base_rate': 1.5e-4,
        'base_end_rate': 0.0,
        'warmup_epochs': 40.0,
        'weight_decay': 0.05,
        'betas': (0.9, 0.95),
    }
    c.init = {}
    c.run = {'global_batch': 4096, 'epochs': 800}
    c.mesh = {}
    if debug:
        shorten(c)
    return c
