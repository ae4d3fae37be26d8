"""MVD (arXiv 2212.04500, main results): ViT-H student from ViT-H teachers, Kinetics-400, 800 epochs.

    mvdjax train --config=configs/mvd/k400_vit_h_from_h_800.py --workdir=runs/mvd_k400_vit_h_from_h_800 \
        --config.data.files=/data/k400/train.txt \
        --config.task.teachers.image.checkpoint=runs/mae_in1k_vit_h \
        --config.task.teachers.video.checkpoint=runs/videomae_k400_vit_h

Published with 32 V100 (hours not stated). Expected after fine-tuning: K400 87.3 top-1 (87.2 on the results page),
97.4 top-5 (finetune/k400_vit_h.py); SSv2 77.3, 95.7 (finetune/ssv2_vit_h.py). The rate ends at a fifteenth of its
peak: the 800-epoch runs leave the base end rate at its default 1e-5. The image teacher has patches of 14, so it gets
the same crop at 196 pixels: 14 x 14 tokens like the student, where it was trained on 16 x 16. The schedule spans 801
epochs and the checkpoint after 800 is the result.
Source: scripts/mvd_vit_huge_from_vit_huge_teacher_epoch_800/pretrain_mvd_huge_on_k400.sh of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _distil import distil
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return distil(
        arg,
        student={'variant': 'H', 'drop_path': 0.2, 'remat': 'full'},
        teachers='H',
        decoder={'width': 640, 'depth': 8, 'heads': 8, 'remat': 'full'},
        base_end_rate=1e-5,
        run={'global_batch': 512, 'epochs': 800, 'schedule_epochs': 801, 'accumulate': 2},
        image_patch=14,
        teacher_size=196,
    )
