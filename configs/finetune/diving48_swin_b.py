"""Fine-tuning of BEVT Swin-B on Diving48 (arXiv 2112.01529): a recipe of ours, 60 epochs, 1 clip x 3 crops.

    mvdjax train --config=configs/finetune/diving48_swin_b.py --workdir=runs/diving48_swin_b \
        --config.data.files=diving48:train:/data/diving48 --config.init.checkpoint=runs/bevt_k400_swin_b
    mvdjax evaluate --config=configs/finetune/diving48_swin_b.py --checkpoint=runs/diving48_swin_b --ema \
        --config.evals.test.data.files=diving48:test:/data/diving48

Published with hardware and hours not stated, and without a recipe: this one is ours. It is that of
ssv2_swin_b.py, whose classes are as much a matter of motion, with flips, since a dive in a mirror is the same dive.
Expected of the authors' own recipe: 86.7 top-1 (DALL-E tokens), 87.2 (PeCo tokens); which of the two versions of the
labels they took is not stated, here it is the second.
Source: none but the two numbers, of the abstract's first and last version.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune_bevt import MOTION, finetune
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(arg, dataset='diving48', classes=48, flip=0.5, **MOTION)
