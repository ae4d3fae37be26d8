"""Fine-tuning of MVD ViT-S on Kinetics-400 (arXiv 2212.04500, main results): 150 epochs, 5 clips x 3 crops.

    mvdjax train --config=configs/finetune/k400_vit_s.py --workdir=runs/k400_vit_s \
        --config.data.files=/data/k400/train.txt --config.init.checkpoint=runs/mvd_k400_vit_s_from_l_400
    mvdjax evaluate --config=configs/finetune/k400_vit_s.py --checkpoint=runs/k400_vit_s \
        --config.evals.test.data.files=/data/k400/test.txt

Published with 16 V100 (hours not stated). Expected: 80.6 top-1, 94.7 top-5 (student of B teachers), 81.0 / 94.8 (of L
teachers).
Source: scripts/mvd_vit_small_from_vit_*_teacher_epoch_400/finetune_on_k400.sh of the authors. CutMix is the corrected
one; the published runs cut time x height (--config.task.mix.cutmix_mode=published, see docs/decisions.md).
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune import finetune
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(
        arg,
        'k400',
        student='s_from_l_400',
        model={'variant': 'S', 'drop_path': 0.1},
        base_rate=5e-4,
        run={'global_batch': 384, 'epochs': 150, 'accumulate': 2},
        gpu_batch=12,
    )
