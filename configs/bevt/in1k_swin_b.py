"""BEVT's image stream (arXiv 2112.01529, stage one): Swin-B on ImageNet-1K, a recipe of ours, 800 epochs.

    mvdjax train --config=configs/bevt/in1k_swin_b.py --workdir=runs/bevt_in1k_swin_b \
        --config.data.files=/data/in1k/train.txt --config.task.tokenizer.checkpoint=runs/dalle_encoder

Published with hardware, hours and recipe not stated. Expected: no number is stated for the pretrained model
itself; it is where k400_swin_b.py starts. The authors published the model, but neither code nor recipe: known are
Swin-B, ImageNet-1K, 800 epochs and DALL-E's tokens. All else is ours, taken from stage two: masks, augmentation, 2048
images a step, and its optimizer. The window is one frame deep, so that stage two can repeat its position biases over
time.
Source: README of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _bevt import pretrain
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return pretrain(
        arg,
        streams=('image',),
        window=(1, 7, 7),
        drop_path=0.1,
        run={'global_batch': 2048, 'epochs': 800},
        checkpoint='',
    )
