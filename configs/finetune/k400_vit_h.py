"""Fine-tuning of MVD ViT-H on Kinetics-400 (arXiv 2212.04500, main results): 50 epochs, 5 clips x 3 crops.

    mvdjax train --config=configs/finetune/k400_vit_h.py --workdir=runs/k400_vit_h \
        --config.data.files=/data/k400/train.txt --config.init.checkpoint=runs/mvd_k400_vit_h_from_h_800
    mvdjax evaluate --config=configs/finetune/k400_vit_h.py --checkpoint=runs/k400_vit_h \
        --config.evals.test.data.files=/data/k400/test.txt

Published with 32 V100 (hours not stated). Expected: 87.3 top-1 (87.2 on the results page), 97.4 top-5.
Source: scripts/mvd_vit_huge_from_vit_huge_teacher_epoch_800/finetune_on_k400.sh of the authors. CutMix is the
corrected one; the published runs cut time x height (--config.task.mix.cutmix_mode=published, see docs/decisions.md).
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune import finetune
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(
        arg,
        'k400',
        student='h_from_h_800',
        model={'variant': 'H', 'drop_path': 0.3, 'remat': 'full'},
        base_rate=1e-3,
        run={'global_batch': 256, 'epochs': 50, 'accumulate': 1},
        gpu_batch=8,
        dropout=0.5,
    )
