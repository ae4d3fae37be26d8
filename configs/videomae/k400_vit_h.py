"""VideoMAE (arXiv 2203.12602) ViT-H on Kinetics-400, 1600 epochs: the video teacher.

    mvdjax train --config=configs/videomae/k400_vit_h.py --workdir=runs/videomae_k400_vit_h \
        --config.data.files=/data/k400/train.txt

Published with 64 GPUs (model and hours not stated). Expected after fine-tuning with VideoMAE's own recipe, which is
not here: K400 86.6 top-1, 97.1 top-5. The schedule spans 1601 epochs and the checkpoint after 1600 is the result.
Source: scripts/kinetics/videomae_vit_huge_patch16_224_tubemasking_ratio_0.9_epoch_1600/pretrain.sh of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _videomae import pretrain
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return pretrain(
        arg,
        'k400',
        variant='H',
        decoder={'width': 640, 'depth': 12, 'heads': 8},
        run={'global_batch': 1024, 'epochs': 1600, 'schedule_epochs': 1601},
    )
