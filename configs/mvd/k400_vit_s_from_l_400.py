"""MVD (arXiv 2212.04500, main results): ViT-S student from ViT-L teachers, Kinetics-400, 400 epochs.

    mvdjax train --config=configs/mvd/k400_vit_s_from_l_400.py --workdir=runs/mvd_k400_vit_s_from_l_400 \
        --config.data.files=/data/k400/train.txt \
        --config.task.teachers.image.checkpoint=runs/mae_in1k_vit_l \
        --config.task.teachers.video.checkpoint=runs/videomae_k400_vit_l

Published with 32 V100 (hours not stated). Expected after fine-tuning: K400 81.0 top-1, 94.8 top-5
(finetune/k400_vit_s.py); SSv2 70.9, 92.8 (finetune/ssv2_vit_s.py). The rate ends at two thirds of its peak: the
400-epoch runs ask for a base end rate of 1e-4. The decoders are as wide as the student. The schedule spans 401 epochs
and the checkpoint after 400 is the result.
Source: scripts/mvd_vit_small_from_vit_large_teacher_epoch_400/pretrain_mvd_small_on_k400.sh of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _distil import distil
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return distil(
        arg,
        student={'variant': 'S', 'drop_path': 0.1},
        teachers='L',
        decoder={'width': 384, 'depth': 2, 'heads': 6},
        base_end_rate=1e-4,
        run={'global_batch': 1024, 'epochs': 400, 'schedule_epochs': 401, 'accumulate': 2},
    )
