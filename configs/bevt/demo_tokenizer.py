"""A VQ tokenizer on the demo images: the first stage of the quickstart's BEVT chain.

    mvdjax train --config=configs/bevt/demo_tokenizer.py --workdir=quickstart/runs/tokenizer

Not a published recipe: a tiny codebook on tiny images, so that it trains in a minute on 2 CPU cores.
"""

from ml_collections import ConfigDict

from mvdjax.debug_form import is_debug, shorten


def get_config(arg: str = '') -> ConfigDict:
    c = ConfigDict()
    c.task_name = 'tokenizer_vq'
    c.task = {'model': {'channels': (16, 32, 64), 'blocks': 1, 'vocabulary': 256, 'code_dim': 8}}
    c.data = {
        'files': 'quickstart/data/images.txt',
        'recipe': 'images',
        'options': {'size': 32, 'scale': (0.4, 1.0)},
    }
    c.evals = {}
    c.optim = {'peak_rate': 2e-3, 'end_rate': 2e-5, 'warmup_epochs': 1.0, 'betas': (0.9, 0.99), 'weight_decay': 1e-4}
    c.init = {}
    c.run = {'global_batch': 32, 'epochs': 10.0, 'log_every': 100}
    c.mesh = {}
    if is_debug(arg):
        shorten(c)
    return c
