"""What BEVT's two pretraining stages share (arXiv 2112.01529); the files beside this one state the rest.

Both: Swin-B, DALL-E's tokens at 14 x 14 places a frame, AdamW, linear warm-up of a running cosine, gradient norm 3.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mvdjax.debug_form import DEMO, is_debug, shorten

VIDEO, IMAGE = (2, 16, 16), (1, 16, 16)  # pixels of a place that is masked, and predicted
NO_DECAY = (1.0, 0.0)


def pretrain(
    arg: str,
    *,
    streams: tuple[str, ...],
    window: tuple[int, int, int],
    drop_path: float,
    run: Mapping[str, Any],
    checkpoint: str,
    micro_batches: int = 1,
) -> ConfigDict:
    """The config of a stage.

    Args:
      arg: of the file.
      streams: 'image' alone or 'video' and 'image'; epochs are those of the first.
      window: of the attention.
      drop_path: rate of the last block.
      run: the run section.
      checkpoint: of the stage before, or ''.
      micro_batches: see `optimizers.make_optimizer`.
    """
    c = ConfigDict()
    c.task_name = 'bevt'
    c.task = {
        'model': {'variant': 'B', 'window': window, 'drop_path': drop_path, 'dtype': 'bfloat16', 'remat': 'none'},
        'tokenizer': {'kind': 'dalle', 'checkpoint': 'runs/dalle_encoder', 'model': {'dtype': 'bfloat16'}},
        'weights': dict.fromkeys(streams, 1.0),
    }
    masks = {'size': 224, 'token_size': 112, 'masked': 98, 'smallest_block': 16}
    data = {
        'video': {
            'files': 'data/k400/train.txt',
            'recipe': 'bevt_clips',
            'options': {**masks, 'length': 16, 'stride': 8, 'patch': VIDEO, 'tube': (0.5, 1.0)},
            'workers': 8,
            'threads': 2,
        },
        'image': {
            'files': 'data/in1k/train.txt',
            'recipe': 'bevt_images',
            'options': {**masks, 'patch': IMAGE, 'color_jitter': (0.4, 0.4, 0.4, 0.0)},
            'workers': 8,
            'threads': 2,
        },
    }
    c.data = data[streams[0]]
    c.streams = {name: {'data': data[name], 'batch': 8 * run['global_batch']} for name in streams[1:]}
    c.evals = {}
    c.optim = {
        'peak_rate': 5e-4,
        'end_rate': 0.0,
        'schedule': 'scaled_cosine',
        'micro_batches': micro_batches,
        'warmup_epochs': 10.0,
        'weight_decay': 0.05,
        'betas': (0.9, 0.999),
        'clip_norm': 3.0,
        'groups': {'relative_position_table': NO_DECAY, 'norm': NO_DECAY},  # biases and mask token decay
    }
    c.init = {'checkpoint': checkpoint}
    if checkpoint:  # the authors' image model has no head; where there is one, it starts afresh as published
        c.init.update(allow_fresh=('^lm_down_st/', '^fpn_[st]/', '^lm_head/'), fresh=('^lm_head/',))
    c.run = {**run, 'stream': streams[0]}
    c.mesh = {}
    return shrunk(c) if is_debug(arg) else c


def shrunk(c: ConfigDict) -> ConfigDict:
    """The debug form: a batch of 8 clips with 16 images, or of 8 images; two stages, which are what is joined."""
    tiny = {'width': 16, 'depths': (1, 2), 'heads': (1, 2), 'window': (2, 2, 2)}
    c.task.model = {**tiny, 'drop_path': 0.1, 'dtype': 'bfloat16'}
    c.task.tokenizer = {'kind': 'dalle', 'checkpoint': 'random', 'model': {'width': 4, 'blocks': 1, 'vocabulary': 64}}
    stream = c.run.stream
    for name, data in {stream: c.data, **{name: node.data for name, node in c.streams.items()}}.items():
        images = name == 'image'
        data.update(files=f'{DEMO}/{"images" if images else "pretrain"}.txt', workers=0)
        sizes = {'size': 32, 'token_size': 64, 'patch': (1 if images else 2, 4, 4), 'short_sides': (32, 40)}
        data.options.update(**sizes, masked=32, smallest_block=4)
    for node in c.streams.values():
        node.batch = 16
    if stream == 'video':
        c.data.options.update(length=4, stride=2)
    c.init.checkpoint = ''
    shorten(c)
    c.run.stream = stream
    return c
