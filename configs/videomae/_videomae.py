"""What the published VideoMAE runs share (arXiv 2203.12602); the files beside this one state the rest.

Tube masks of 0.9, pixels normalised per cube and channel, AdamW without clipping or drop path.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mvdjax.debug_form import DEMO, is_debug, shorten


def pretrain(
    arg: str, dataset: str, *, variant: str, decoder: Mapping[str, Any], run: Mapping[str, Any], stride: int = 4
) -> ConfigDict:
    """The config of a run.

    Args:
      arg: of the file.
      dataset: folder of its lists.
      variant: size of the encoder.
      decoder: size of the decoder.
      run: the run section.
      stride: frames between two frames of a clip.
    """
    debug = is_debug(arg)
    patch, mask = (2, 16, 16), {'kind': 'tube', 'ratio': 0.9}
    size = {'width': 32, 'depth': 1, 'heads': 2} if debug else decoder
    c = ConfigDict()
    c.task_name = 'mae'
    c.task = {
        'encoder': {
            'variant': 'debug' if debug else variant,
            'dtype': 'bfloat16',
            'patch': patch,
            'pos_embed': 'sincos1d',
            'remat': 'none',
        },
        'decoder': {**size, 'pos_embed': 'sincos1d', 'embed_bias': False, 'remat': 'none'},
        'mask': mask,
        'target': 'videomae',
    }
    c.data = {
        'files': f'{DEMO}/pretrain.txt' if debug else f'data/{dataset}/train.txt',
        'recipe': 'pretrain',
        'options': {
            'size': 32 if debug else 224,
            'length': 16,
            'stride': 4 if debug else stride,
            'patch': patch,
            'mask': mask,
        },
        'workers': 0 if debug else 8,
    }
    c.evals = {}
    c.optim = {
        'base_rate': 1.5e-4,
        'base_end_rate': 1e-5,
        'rate_counts': 'views',
        'warmup_epochs': 40.0,
        'weight_decay': 0.05,
        'betas': (0.9, 0.95),
        'decay': ('kernel$',),
        'no_decay': ('(bias|scale|mask_token)$',),
    }
    c.init = {}
    c.run = dict(run)
    c.mesh = {}
    if debug:
        shorten(c)
    return c
