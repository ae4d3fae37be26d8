"""BEVT (arXiv 2112.01529): Swin-B on Kinetics-400 clips and ImageNet-1K images together, 150 epochs.

    mvdjax train --config=configs/bevt/k400_swin_b.py --workdir=runs/bevt_k400_swin_b \
        --config.data.files=/data/k400/train.txt --config.streams.image.data.files=/data/in1k/train.txt \
        --config.task.tokenizer.checkpoint=runs/dalle_encoder --config.init.checkpoint=runs/bevt_in1k_swin_b

Published with 32 GPUs (model and hours not stated). Expected after fine-tuning: K400 80.6 top-1
(finetune/k400_swin_b.py), SSv2 70.6 (finetune/ssv2_swin_b.py), Diving48 86.7 (finetune/diving48_swin_b.py); with the
tokens of PeCo, which are not DALL-E's, 81.1, 71.4 and 87.2. 8 images for each clip; epochs and rate go by the clips. In
the published run every GPU averages the loss over its own masked tokens; here it is averaged over all of the batch.
As published, the head over the vocabulary starts afresh; --config.init.fresh="()" keeps stage one's.
Source: configs/recognition/swin/swin_base_patch244_window877_bevt_in1k_k400.py of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _bevt import pretrain
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return pretrain(
        arg,
        streams=('video', 'image'),
        window=(8, 7, 7),
        drop_path=0.3,
        run={'global_batch': 256, 'epochs': 150, 'accumulate': 2},
        checkpoint='runs/bevt_in1k_swin_b',
        micro_batches=2,
    )
