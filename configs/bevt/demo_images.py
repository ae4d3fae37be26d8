"""BEVT's first stage (arXiv 2112.01529) on the demo images: the quickstart's image stream.

    mvdjax train --config=configs/bevt/demo_images.py --workdir=quickstart/runs/image_stream

Not a published recipe: a tiny model on tiny images, so that it trains in minutes on 2 CPU cores.
"""

from _demo import images, swin, tokenizer
from ml_collections import ConfigDict

from mvdjax.debug_form import is_debug, shorten


def get_config(arg: str = '') -> ConfigDict:
    debug = is_debug(arg)
    c = ConfigDict()
    c.task_name = 'bevt'
    c.task = {'model': swin(debug), 'tokenizer': tokenizer(debug), 'weights': {'image': 1.0}}
    c.data = images()
    c.evals = {}
    c.optim = {'peak_rate': 2e-3, 'end_rate': 2e-5, 'warmup_epochs': 2.0, 'betas': (0.9, 0.98), 'clip_norm': 3.0}
    c.init = {}
    c.run = {'global_batch': 64, 'epochs': 20.0, 'log_every': 100, 'stream': 'image'}
    c.mesh = {}
    if debug:
        shorten(c)
    return c
