"""Fine-tuning of MVD ViT-L on Something-Something v2 (arXiv 2212.04500, main results): 30 epochs, 2 clips x 3 crops.

    mvdjax train --config=configs/finetune/ssv2_vit_l.py --workdir=runs/ssv2_vit_l \
        --config.data.files=/data/ssv2/train.txt --config.init.checkpoint=runs/mvd_k400_vit_l_from_l_800
    mvdjax evaluate --config=configs/finetune/ssv2_vit_l.py --checkpoint=runs/ssv2_vit_l \
        --config.evals.test.data.files=/data/ssv2/test.txt

Published with 16 V100 (hours not stated). Expected: 76.1 top-1, 95.4 top-5 (400 epochs of distillation), 76.7 / 95.5
(800 epochs).
Source: scripts/mvd_vit_large_from_vit_large_teacher_epoch_*/finetune_on_ssv2.sh of the authors. CutMix is the
corrected one; the published runs cut time x height (--config.task.mix.cutmix_mode=published, see docs/decisions.md).
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune import finetune
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(
        arg,
        'ssv2',
        student='l_from_l_800',
        model={'variant': 'L', 'drop_path': 0.3, 'remat': 'full'},
        base_rate=5e-4,
        run={'global_batch': 256, 'epochs': 30, 'accumulate': 1},
        gpu_batch=16,
        dropout=0.5,
    )
