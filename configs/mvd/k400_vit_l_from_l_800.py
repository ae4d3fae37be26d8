"""MVD (arXiv 2212.04500, main results): ViT-L student from ViT-L teachers, Kinetics-400, 800 epochs.

    mvdjax train --config=configs/mvd/k400_vit_l_from_l_800.py --workdir=runs/mvd_k400_vit_l_from_l_800 \
        --config.data.files=/data/k400/train.txt \
        --config.task.teachers.image.checkpoint=runs/mae_in1k_vit_l \
        --config.task.teachers.video.checkpoint=runs/videomae_k400_vit_l

Published with 32 V100 (hours not stated). Expected after fine-tuning: K400 86.4 top-1, 97.0 top-5
(finetune/k400_vit_l.py); SSv2 76.7, 95.5 (finetune/ssv2_vit_l.py). The rate ends at a fifteenth of its peak: the
800-epoch runs leave the base end rate at its default 1e-5. The schedule spans 801 epochs and the checkpoint after 800
is the result.
Source: scripts/mvd_vit_large_from_vit_large_teacher_epoch_800/pretrain_mvd_large_on_k400.sh of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _distil import distil
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return distil(
        arg,
        student={'variant': 'L', 'drop_path': 0.1},
        teachers='L',
        decoder={'width': 512, 'depth': 4, 'heads': 8},
        base_end_rate=1e-5,
        run={'global_batch': 512, 'epochs': 800, 'schedule_epochs': 801, 'accumulate': 2},
    )
