"""VideoMAE (arXiv 2203.12602) ViT-S on Kinetics-400, 1600 epochs.

    mvdjax train --config=configs/videomae/k400_vit_s.py --workdir=runs/videomae_k400_vit_s \
        --config.data.files=/data/k400/train.txt

Published with 32 GPUs (model and hours not stated). Expected after fine-tuning with VideoMAE's own recipe, which is
not here: K400 79.0 top-1, 93.8 top-5. The schedule spans 1601 epochs and the checkpoint after 1600 is the result.
Source: scripts/kinetics/videomae_vit_small_patch16_224_tubemasking_ratio_0.9_epoch_1600/pretrain.sh of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _videomae import pretrain
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return pretrain(
        arg,
        'k400',
        variant='S',
        decoder={'width': 192, 'depth': 4, 'heads': 3},
        run={'global_batch': 1024, 'epochs': 1600, 'schedule_epochs': 1601},
    )
