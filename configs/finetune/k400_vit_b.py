"""Fine-tuning of MVD ViT-B on Kinetics-400 (arXiv 2212.04500, main results): 75 epochs, 5 clips x 3 crops.

    mvdjax train --config=configs/finetune/k400_vit_b.py --workdir=runs/k400_vit_b \
        --config.data.files=/data/k400/train.txt --config.init.checkpoint=runs/mvd_k400_vit_b_from_l_400
    mvdjax evaluate --config=configs/finetune/k400_vit_b.py --checkpoint=runs/k400_vit_b \
        --config.evals.test.data.files=/data/k400/test.txt

Published with 32 V100 (hours not stated). Expected: 82.7 top-1, 95.4 top-5 (student of B teachers), 83.4 / 95.8 (of L
teachers).
Source: scripts/mvd_vit_base_from_vit_*_teacher_epoch_400/finetune_on_k400.sh of the authors. CutMix is the corrected
one; the published runs cut time x height (--config.task.mix.cutmix_mode=published, see docs/decisions.md).
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune import finetune
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(
        arg,
        'k400',
        student='b_from_l_400',
        model={'variant': 'B', 'drop_path': 0.1},
        base_rate=5e-4,
        run={'global_batch': 384, 'epochs': 75, 'accumulate': 2},
        gpu_batch=6,
    )
