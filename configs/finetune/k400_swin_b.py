"""Fine-tuning of BEVT Swin-B on Kinetics-400 (arXiv 2112.01529): 60 epochs, 4 clips x 3 crops.

    mvdjax train --config=configs/finetune/k400_swin_b.py --workdir=runs/k400_swin_b \
        --config.data.files=/data/k400/train.txt --config.init.checkpoint=runs/bevt_k400_swin_b
    mvdjax evaluate --config=configs/finetune/k400_swin_b.py --checkpoint=runs/k400_swin_b \
        --config.evals.test.data.files=/data/k400/test.txt

Published with 8 GPUs (model and hours not stated). Expected: 80.6 top-1 (DALL-E tokens); 81.1 (PeCo tokens), 81.5
(PeCo tokens, 100 epochs). 88M parameters, 282 GFLOPs per view. The rate falls by 0.9 with every block and merging from
the top; position biases train at the full rate, and all norms but the last decay, as the published keys have it.
Source: configs/recognition/swin/bevt_finetune_k400.py of the authors.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from _finetune_bevt import DENSE, finetune, per_block
from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
    return finetune(
        arg,
        dataset='k400',
        classes=400,
        window=(8, 7, 7),
        drop_path=0.3,
        clip=DENSE,
        flip=0.5,
        augment={},
        clips=4,
        label_smoothing=0.0,
        optim={
            'peak_rate': 3e-4,
            'weight_decay': 0.001,
            'clip_norm': 40.0,
            'micro_batches': 4,
            'groups': per_block(0.9),
        },
        run={'accumulate': 4},
    )
