"""VideoMAE (arXiv 2203.12602) ViT-B on Something-Something v2, 2400 epochs.

    mvdjax train --config=configs/videomae/ssv2_vit_b.py --workdir=runs/videomae_ssv2_vit_b \
        --config.data.files=/data/ssv2/train.txt

Published with 64 GPUs (model and hours not stated). Expected after fine-tuning with VideoMAE's own recipe, which is
not here: SSv2 70.8 top-1, 92.4 top-5; after 800 epochs, and without repeated augmentation, 69.6 / 92.0. The schedule
spans 2401 epochs and the checkpoint after 2400 is the result.
Source: scripts/ssv2/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_2400/pretrain.sh of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _videomae import pretrain
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return pretrain(
        arg,
        'ssv2',
        variant='B',
        decoder={'width': 384, 'depth': 4, 'heads': 6},
        run={'global_batch': 2048, 'epochs': 2400, 'schedule_epochs': 2401},
        stride=2,
    )
