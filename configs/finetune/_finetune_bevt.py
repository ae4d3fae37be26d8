"""What the published fine-tuning runs of BEVT share (arXiv 2112.01529); the files beside this one state the rest.

All of them: Swin-B with an I3D head on 32 frames, 8 GPUs, 64 clips a step, 60 epochs, AdamW, a cosine that changes by
epochs under a linear warm-up of 2.5 epochs, dropout 0.5 before the head.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mvdjax.debug_form import DEMO, is_debug, shorten

DEPTHS = (2, 2, 18, 2)
# The name of a table with the module it is in is longer than any key below: of the keys in a parameter's name the
# longest one counts. So tables train at the full rate and do not decay in all published runs.
TABLE = {'attn/relative_position_table': (1.0, 0.0)}
DENSE = {'sampling': 'windows', 'length': 32, 'stride': 2}
WHOLE = {'sampling': 'segments', 'length': 32}  # from the whole video
STRONG = {'rand_augment': 'rand-m7-n4-mstd0.5-inc1', 'erasing': 0.25}
MOTION: dict[str, Any] = {  # the published run on Something-Something, but for its data set and flips
    'window': (16, 7, 7),
    'drop_path': 0.4,
    'clip': WHOLE,
    'augment': STRONG,
    'clips': 1,
    'label_smoothing': 0.1,
    'optim': {
        'peak_rate': 5e-4,
        'weight_decay': 0.05,
        'micro_batches': 8,
        'groups': {**TABLE, 'backbone': (0.1, 1.0)},
    },
    'run': {'accumulate': 8, 'ema_decay': 0.9998, 'ema_updates': 8},
}


def per_block(decay: float) -> dict[str, tuple[float, float]]:
    """`optim.groups` of the Kinetics run: the rate falls block by block, and merging by merging, from the top.

    Only the last norm is free of decay: in the published run, too, the keys of the blocks are longer than 'norm'.
    """
    names = []  # from the top
    for stage in range(len(DEPTHS), 0, -1):
        names += [f'backbone/stage{stage}/block_{block}/' for block in reversed(range(DEPTHS[stage - 1]))]
        names.append(f'backbone/merge{stage - 1}/' if stage > 1 else 'backbone/patch_embed/')
    rates = {name: (decay**power, 1.0) for power, name in enumerate(names, start=1)}
    return {**TABLE, 'backbone/norm/': (decay, 0.0), **rates}


def finetune(
    arg: str,
    *,
    dataset: str,
    classes: int,
    window: tuple[int, int, int],
    drop_path: float,
    clip: Mapping[str, Any],
    flip: float,
    augment: Mapping[str, Any],
    clips: int,
    label_smoothing: float,
    optim: Mapping[str, Any],
    run: Mapping[str, Any],
) -> ConfigDict:
    """The config of a run.

    Args:
      arg: of the file.
      dataset: folder of its lists in data/.
      classes: of it.
      window: of the attention; a table of another window is resized when the checkpoint is read.
      drop_path: rate of the last block.
      clip: how frames are taken.
      flip: probability of a horizontal flip.
      augment: further options of the training recipe.
      clips: test windows, each with 3 crops.
      label_smoothing: see `classify.Task`.
      optim: rate, decay and groups.
      run: the run section, less batch and epochs.
    """
    clip = {'size': 224, **clip}
    c = ConfigDict()
    c.task_name = 'classify'
    c.task = {
        'model': {
            'kind': 'swin',
            'variant': 'B',
            'window': window,
            'drop_path': drop_path,
            'dtype': 'bfloat16',
            'remat': 'none',
        },
        'num_classes': classes,
        'dropout': 0.5,
        'label_smoothing': label_smoothing,
    }
    c.data = {
        'files': f'data/{dataset}/train.txt',
        'class_file': '',
        'num_classes': classes,
        'recipe': 'finetune',
        'options': {**clip, 'flip': flip, **augment},
        'workers': 8,
    }
    test = {
        'recipe': 'views',
        'class_file': '',
        'options': {**clip, 'clips': clips, 'crops': 3, 'crop_rule': 'bevt'},
    }
    c.evals = {name: {'data': {'files': f'data/{dataset}/{name}.txt', **test}, 'batch': 8} for name in ('val', 'test')}
    c.optim = {'end_rate': 0.0, 'schedule': 'epoch_cosine', 'warmup_epochs': 2.5, 'betas': (0.9, 0.999), **optim}
    c.init = {
        'checkpoint': 'runs/bevt_k400_swin_b',
        'allow_fresh': ('^head/',),
        'allow_unused': ('^backbone/(mask_token|patch_embed_2d/)', '^(lm_|fpn)'),
    }
    c.run = {'global_batch': 64, 'epochs': 60, **run}
    c.mesh = {}
    return shrunk(c) if is_debug(arg) else c


def shrunk(c: ConfigDict) -> ConfigDict:
    """The debug form, the same for all data sets."""
    tiny = {'width': 16, 'depths': (1, 2), 'heads': (1, 2), 'window': (2, 2, 2)}
    c.task.update(num_classes=8, label_smoothing=0.1)
    c.task.model = {'kind': 'swin', **tiny, 'drop_path': 0.1, 'dtype': 'bfloat16'}
    c.data.num_classes = 8
    c.data.options = {**WHOLE, **STRONG, 'size': 32, 'length': 4, 'flip': 0.5}
    for name, data in {'train': c.data, **{name: node.data for name, node in c.evals.items()}}.items():
        data.update(files=f'{DEMO}/motion_{name}.txt', class_file=f'{DEMO}/motion_classes.txt', workers=0)
    for node in c.evals.values():
        node.data.options = {**WHOLE, 'size': 32, 'length': 4, 'clips': 1, 'crops': 3, 'crop_rule': 'bevt'}
    c.optim.update(weight_decay=0.05, micro_batches=8, clip_norm=40.0)
    c.optim.groups = {**TABLE, 'backbone': (0.1, 1.0)}  # Kinetics' keys name blocks that are not there
    c.init.checkpoint = ''
    shorten(c)
    c.run.update(ema_decay=0.9998, ema_updates=8)
    return c
