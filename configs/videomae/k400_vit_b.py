"""VideoMAE (arXiv 2203.12602) ViT-B on Kinetics-400, 1600 epochs: the video teacher.

    mvdjax train --config=configs/videomae/k400_vit_b.py --workdir=runs/videomae_k400_vit_b \
        --config.data.files=/data/k400/train.txt

Published with 64 V100 (27 hours for the run of 800 epochs). Expected after fine-tuning with VideoMAE's own recipe,
which is not here: K400 81.5 top-1, 95.1 top-5; after 800 epochs (--config.run.epochs=800
--config.run.schedule_epochs=801) 81.0 / 94.8. The schedule spans 1601 epochs and the checkpoint after 1600 is the
result.
Source: scripts/kinetics/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_1600/pretrain.sh of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _videomae import pretrain
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return pretrain(
        arg,
        'k400',
        variant='B',
        decoder={'width': 384, 'depth': 4, 'heads': 6},
        run={'global_batch': 2048, 'epochs': 1600, 'schedule_epochs': 1601},
    )
