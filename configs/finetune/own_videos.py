"""Fine-tuning on a folder of your own videos, one sub-folder per class. Not a published recipe.

    mvdjax data init my_videos
    mvdjax train --config=configs/finetune/own_videos.py:my_videos --workdir=runs/own \
        --config.init.checkpoint=runs/mvd_k400_vit_s_from_l_400
    mvdjax evaluate --config=configs/finetune/own_videos.py:my_videos --checkpoint=runs/own

The argument is the folder that `mvdjax data init` wrote its lists to; nothing else has to be changed. Without a test
list (`data init --test=0.1` holds one out) the set "test" is the validation list, and its score no test of a model that
was chosen by it. Without one it is
the motion labels of the demo data (mvdjax data demo --output=quickstart/data). The recipe of MVD ViT-S on Kinetics-400
with batches of 32 videos, 8 at a time on one GPU (the published run held 12 on each V100; run.accumulate splits it
until it fits), and without flip: left and right may be classes of yours. init.checkpoint comes from `mvdjax convert` or
a run of your own; an empty one trains from scratch, for which small data sets are too small. ":debug" is a tiny model
for two steps on the demo data.
"""

import os

from _finetune import finetune
from ml_collections import ConfigDict

from mvdjax.data.sources import read_class_names
from mvdjax.debug_form import DEMO


def get_config(arg: str = '') -> ConfigDict:
    c = finetune(
        'debug' if arg == 'debug' else '',
        'k400',
        student='s_from_l_400',
        model={'variant': 'S', 'drop_path': 0.1},
        base_rate=5e-4,
        run={'global_batch': 32, 'epochs': 50, 'accumulate': 4},
        gpu_batch=8,
    )
    if arg == 'debug':
        return c
    lists = {name: f'{arg}/{name}.csv' if arg else f'{DEMO}/motion_{name}.txt' for name in ('train', 'val', 'test')}
    if arg and not os.path.exists(lists['test']):
        lists['test'] = lists['val']  # `evaluate` and `predict` take the test views from the set of that name
    classes = f'{arg}/classes.txt' if arg else f'{DEMO}/motion_classes.txt'
    number = len(read_class_names(classes)) if arg else 8
    c.task.num_classes = c.data.num_classes = number
    c.data.options.flip = 0.0
    c.data.update(files=lists['train'], class_file=classes, workers=2)
    for name, node in c.evals.items():
        node.data.update(files=lists[name], class_file=classes)
    if lists['test'] == lists['val']:
        c.evals.test.note = (
            'there is no test list: this is the score on the validation list, and no test of a model that was chosen '
            'by it (mvdjax data init --test=0.1 holds a test list out)'
        )
    return c
