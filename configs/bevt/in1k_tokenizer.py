"""A VQ tokenizer on ImageNet-1K, 8192 codes, in the manner of PeCo (arXiv 2111.12710): BEVT without DALL-E's weights.

    mvdjax train --config=configs/bevt/in1k_tokenizer.py --workdir=runs/tokenizer_in1k \
        --config.data.files=/data/in1k/train.txt --config.evals.val.data.files=/data/in1k/val.txt \
        --config.task.perceptual.checkpoint=runs/mae_in1k_vit_b
    mvdjax evaluate --config=configs/bevt/in1k_tokenizer.py --checkpoint=runs/tokenizer_in1k --set=val

Then give the recipes of BEVT --config.task.tokenizer.kind=vq --config.task.tokenizer.checkpoint=runs/tokenizer_in1k;
the model is the checkpoint's. Not a published recipe and not yet run at this size: network, rates and length are ours.
PeCo's own has as many codes; its perceptual network is another self-supervised one. Images have 112 pixels, the size of
BEVT's tokenizer view, so a code stands for 8 x 8 of them; they must divide into the patches of the perceptual encoder,
which was trained at twice that.
Expected: nothing is published for this; BEVT with PeCo's codes is 0.5 to 0.8 points above BEVT with DALL-E's.
":debug" is a tiny model for two steps on the demo data (mvdjax data demo --output=quickstart/data).
"""

from ml_collections import ConfigDict

from mvdjax.debug_form import DEMO, is_debug, shorten


def get_config(arg: str = '') -> ConfigDict:
    debug = is_debug(arg)
    size = 32 if debug else 112
    encoder = {
        'variant': 'debug' if debug else 'B',
        'patch': (1, 16, 16),
        'pos_embed': 'sincos2d',
        'cls_token': True,
        'qkv_bias': 'full',
        'dtype': 'bfloat16',
    }
    tiny = {'channels': (8, 8, 8), 'blocks': 1, 'vocabulary': 32, 'code_dim': 4}
    model = tiny if debug else {'channels': (64, 128, 256), 'blocks': 2, 'vocabulary': 8192, 'code_dim': 32}
    c = ConfigDict()
    c.task_name = 'tokenizer_vq'
    c.task = {
        'model': {**model, 'dtype': 'bfloat16'},
        'perceptual': {'model': encoder, 'checkpoint': 'random' if debug else 'runs/mae_in1k_vit_b', 'weight': 0.1},
    }
    data = {'recipe': 'images', 'workers': 0 if debug else 8}
    lists = {name: f'{DEMO}/images.txt' if debug else f'data/in1k/{name}.txt' for name in ('train', 'val')}
    c.data = {**data, 'files': lists['train'], 'options': {'size': size, 'scale': (0.2, 1.0)}}
    whole = {'size': size, 'scale': (1.0, 1.0), 'flip': 0.0}
    c.evals = {'val': {'data': {**data, 'files': lists['val'], 'options': whole}, 'batch': 64}}
    c.optim = {
        'peak_rate': 4e-4,
        'end_rate': 4e-6,
        'warmup_epochs': 0.5,
        'weight_decay': 1e-4,
        'betas': (0.9, 0.99),
        'clip_norm': 1.0,
    }
    c.init = {}
    c.run = {'global_batch': 256, 'epochs': 50, 'eval_every': 5000, 'eval_sets': ('val',)}
    c.mesh = {}
    if debug:
        shorten(c)
    return c
