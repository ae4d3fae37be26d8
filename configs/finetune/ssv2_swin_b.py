"""Fine-tuning of BEVT Swin-B on Something-Something v2 (arXiv 2112.01529): 60 epochs, 1 clip x 3 crops.

    mvdjax train --config=configs/finetune/ssv2_swin_b.py --workdir=runs/ssv2_swin_b \
        --config.data.files=/data/ssv2/train.txt --config.init.checkpoint=runs/bevt_k400_swin_b
    mvdjax evaluate --config=configs/finetune/ssv2_swin_b.py --checkpoint=runs/ssv2_swin_b --ema \
        --config.evals.test.data.files=/data/ssv2/test.txt

Published with 8 GPUs (model and hours not stated). Expected: 70.6 top-1 (DALL-E tokens), 71.4 (PeCo tokens). 89M
parameters, 321 GFLOPs per view. Windows span all 16 latent frames: the position biases of pretraining are stretched
over time. The backbone trains at a tenth of the rate and its norms decay, its position biases at the full rate, as the
published keys have it. The published run averages the weights after each of 8 micro-batches and tests the average.
Source: configs/recognition/swin/bevt_finetune_ssv2.py of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune_bevt import MOTION, finetune
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(arg, dataset='ssv2', classes=174, flip=0.0, **MOTION)
