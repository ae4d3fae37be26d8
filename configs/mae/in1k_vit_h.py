"""MAE (arXiv 2111.06377) ViT-H on ImageNet-1K, 800 epochs: the image teacher.

    mvdjax train --config=configs/mae/in1k_vit_h.py --workdir=runs/mae_in1k_vit_h \
        --config.data.files=/data/in1k/train.txt

Published with 64 GPUs (model and hours not stated). Expected: no number is stated for the pretrained model itself; it
is the image teacher of mvd/k400_vit_h_from_h_800.py, for which the authors of MVD took the released weights. Its
patches are of 14 pixels: 16 x 16 tokens.
Source: PRETRAIN.md of facebookresearch/mae.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _mae import pretrain
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return pretrain(arg, variant='H', patch=14)
