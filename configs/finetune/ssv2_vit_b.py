"""Fine-tuning of MVD ViT-B on Something-Something v2 (arXiv 2212.04500, main results): 30 epochs, 2 clips x 3 crops.

    mvdjax train --config=configs/finetune/ssv2_vit_b.py --workdir=runs/ssv2_vit_b \
        --config.data.files=/data/ssv2/train.txt --config.init.checkpoint=runs/mvd_k400_vit_b_from_l_400
    mvdjax evaluate --config=configs/finetune/ssv2_vit_b.py --checkpoint=runs/ssv2_vit_b \
        --config.evals.test.data.files=/data/ssv2/test.txt

Published with 16 V100 (hours not stated). Expected: 72.5 top-1, 93.6 top-5 (student of B teachers), 73.7 / 94.0 (of L
teachers).
Source: scripts/mvd_vit_base_from_vit_*_teacher_epoch_400/finetune_on_ssv2.sh of the authors. CutMix is the corrected
one; the published runs cut time x height (--config.task.mix.cutmix_mode=published, see docs/decisions.md).
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune import finetune
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(
        arg,
        'ssv2',
        student='b_from_l_400',
        model={'variant': 'B', 'drop_path': 0.1, 'remat': 'full'},
        base_rate=5e-4,
        run={'global_batch': 384, 'epochs': 30, 'accumulate': 1},
        gpu_batch=24,
    )
