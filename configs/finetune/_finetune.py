"""What the published fine-tuning runs of MVD share (arXiv 2212.04500); the files beside this one state the rest.

CutMix is the corrected one; the published runs cut time x height (--config.task.mix.cutmix_mode=published).
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mvdjax.debug_form import DEMO, is_debug, shorten

VIEWS = 2  # augmentations of each video in a batch
DATASETS: dict[str, dict[str, Any]] = {
    'k400': {'classes': 400, 'flip': 0.5, 'clip': {'sampling': 'dense', 'length': 16, 'stride': 4}, 'clips': 5},
    # No flip: left and right are classes here.
    'ssv2': {'classes': 174, 'flip': 0.0, 'clip': {'sampling': 'segments', 'length': 16}, 'clips': 2},
}


def finetune(
    arg: str,
    dataset: str,
    *,
    student: str,
    model: Mapping[str, Any],
    base_rate: float,
    run: Mapping[str, Any],
    gpu_batch: int,
    dropout: float = 0.0,
    base_end_rate: float = 1e-6,
    layer_decay: float = 0.75,
) -> ConfigDict:
    """The config of a run.

    Args:
      arg: of the file.
      dataset: a key of `DATASETS`.
      student: the distillation it starts from, as 's_from_l_400'.
      model: size and regularisation of the backbone.
      base_rate: see `optimizers.make_optimizer`; it counts videos, not their views.
      run: the run section.
      gpu_batch: videos that a GPU held at a time in the published run: they shared one draw of mixup or CutMix.
      dropout: before the head.
      base_end_rate: see `optimizers.make_optimizer`.
      layer_decay: see `optimizers.make_optimizer`.
    """
    published = DATASETS[dataset]
    clip = {'size': 224, **published['clip']}
    c = ConfigDict()
    c.task_name = 'classify'
    c.task = {
        'model': {'remat': 'none', **model, 'patch': (2, 16, 16), 'dtype': 'bfloat16'},
        'num_classes': published['classes'],
        'dropout': dropout,
        'label_smoothing': 0.1,
        'mix': {'mixup': 0.8, 'cutmix': 1.0, 'probability': 1.0, 'switch': 0.5, 'group': VIEWS * gpu_batch},
    }
    c.data = {
        'files': f'data/{dataset}/train.txt',
        'class_file': '',
        'num_classes': published['classes'],
        'recipe': 'finetune',
        'options': {
            **clip,
            'flip': published['flip'],
            'rand_augment': 'rand-m7-n4-mstd0.5-inc1',
            'erasing': 0.25,
            'views': VIEWS,
        },
        'workers': 8,
    }
    test = {'recipe': 'views', 'class_file': '', 'options': {**clip, 'clips': published['clips'], 'crops': 3}}
    c.evals = {name: {'data': {'files': f'data/{dataset}/{name}.txt', **test}, 'batch': 8} for name in ('val', 'test')}
    c.optim = {
        'base_rate': base_rate,
        'base_end_rate': base_end_rate,
        'rate_counts': 'videos',
        'warmup_epochs': 5.0,
        'weight_decay': 0.05,
        'betas': (0.9, 0.999),
        'layer_decay': layer_decay,
    }
    c.init = {
        'checkpoint': f'runs/mvd_k400_vit_{student}',
        'allow_fresh': ('^fc_norm/', '^head/'),
        'allow_unused': ('^backbone/norm/', '^decoders_'),
    }
    c.run = dict(run)
    c.mesh = {}
    return shrunk(c) if is_debug(arg) else c


def shrunk(c: ConfigDict) -> ConfigDict:
    """The debug form, the same for all sizes."""
    c.task.update(num_classes=8, dropout=0.5)
    c.task.model = {'variant': 'debug', 'patch': (2, 16, 16), 'drop_path': 0.1, 'dtype': 'bfloat16'}
    c.task.mix.group = 4
    c.data.num_classes = 8
    for name, data in {'train': c.data, **{name: node.data for name, node in c.evals.items()}}.items():
        data.update(files=f'{DEMO}/motion_{name}.txt', class_file=f'{DEMO}/motion_classes.txt', workers=0)
        data.options.size = 32
    c.init.checkpoint = ''
    c.optim.layer_decay = 0.75
    shorten(c)
    return c
