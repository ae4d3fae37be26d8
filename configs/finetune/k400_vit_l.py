"""Fine-tuning of MVD ViT-L on Kinetics-400 (arXiv 2212.04500, main results): 50 epochs, 5 clips x 3 crops.

    mvdjax train --config=configs/finetune/k400_vit_l.py --workdir=runs/k400_vit_l \
        --config.data.files=/data/k400/train.txt --config.init.checkpoint=runs/mvd_k400_vit_l_from_l_800
    mvdjax evaluate --config=configs/finetune/k400_vit_l.py --checkpoint=runs/k400_vit_l \
        --config.evals.test.data.files=/data/k400/test.txt

Published with 32 V100 (hours not stated). Expected: 86.0 top-1, 96.9 top-5 (400 epochs of distillation), 86.4 / 97.0
(800 epochs). The run from 400 epochs held 2 videos per GPU and accumulated 8 times, without recomputing activations:
the same batch and rates, but one draw of mixup per 2 videos (--config.task.mix.group=4).
Source: scripts/mvd_vit_large_from_vit_large_teacher_epoch_*/finetune_on_k400.sh of the authors. CutMix is the
corrected one; the published runs cut time x height (--config.task.mix.cutmix_mode=published, see docs/decisions.md).
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune import finetune
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(
        arg,
        'k400',
        student='l_from_l_800',
        model={'variant': 'L', 'drop_path': 0.3, 'remat': 'full'},
        base_rate=1e-3,
        run={'global_batch': 512, 'epochs': 50, 'accumulate': 1},
        gpu_batch=16,
        dropout=0.5,
    )
