"""BEVT's second stage (arXiv 2112.01529) on the demo videos and images: the quickstart's two streams.

    mvdjax train --config=configs/bevt/demo_two_streams.py --workdir=quickstart/runs/two_streams

Not a published recipe but a tiny one that trains in minutes on 2 CPU cores. It differs where so short a run needs it:
places are hidden in one to three of the four time slots (published: in half of them at least), so that motion tells
what is hidden; each video gives 4 clips per decode.
"""

from _demo import clips, images, swin, tokenizer
from ml_collections import ConfigDict

from mvdjax.debug_form import is_debug, shorten


def get_config(arg: str = '') -> ConfigDict:
    debug = is_debug(arg)
    c = ConfigDict()
    c.task_name = 'bevt'
    c.task = {'model': swin(debug), 'tokenizer': tokenizer(debug), 'weights': {'video': 1.0, 'image': 1.0}}
    c.data = clips()
    c.streams = {'image': {'data': images(), 'batch': 4}}
    c.evals = {}
    c.optim = {'peak_rate': 1e-3, 'end_rate': 1e-5, 'warmup_epochs': 0.5, 'betas': (0.9, 0.98), 'clip_norm': 3.0}
    c.init = {
        'checkpoint': '' if debug else 'quickstart/runs/image_stream',
        'allow_fresh': ('^lm_down_st/', '^fpn_[st]/'),
    }
    c.run = {'global_batch': 4, 'epochs': 4.0, 'log_every': 200, 'save_every': 400}
    c.mesh = {}
    if debug:
        shorten(c)
        c.streams.image.batch = 8
    return c
