"""Fine-tuning of MVD ViT-S on Something-Something v2 (arXiv 2212.04500, main results): 40 epochs, 2 clips x 3 crops.

    mvdjax train --config=configs/finetune/ssv2_vit_s.py --workdir=runs/ssv2_vit_s \
        --config.data.files=/data/ssv2/train.txt --config.init.checkpoint=runs/mvd_k400_vit_s_from_l_400
    mvdjax evaluate --config=configs/finetune/ssv2_vit_s.py --checkpoint=runs/ssv2_vit_s \
        --config.evals.test.data.files=/data/ssv2/test.txt

Published with 32 V100 (hours not stated). Expected: 70.7 top-1, 92.6 top-5 (student of B teachers), 70.9 / 92.8 (of L
teachers). Layer decay is 0.7 here and 0.75 in all other runs.
Source: scripts/mvd_vit_small_from_vit_*_teacher_epoch_400/finetune_on_ssv2.sh of the authors. CutMix is the corrected
one; the published runs cut time x height (--config.task.mix.cutmix_mode=published, see docs/decisions.md).
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune import finetune
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(
        arg,
        'ssv2',
        student='s_from_l_400',
        model={'variant': 'S', 'drop_path': 0.1},
        base_rate=1e-3,
        run={'global_batch': 384, 'epochs': 40, 'accumulate': 1},
        gpu_batch=12,
        layer_decay=0.7,
    )
