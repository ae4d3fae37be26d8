"""What the quickstart's BEVT stages share: a tiny Swin, tiny clips, and the tokenizer that the first stage trains."""

from typing import Any

SIZE, TOKEN_SIZE = 40, 32  # pixels of a crop, for the model and for the tokenizer
CODES = {'channels': (16, 32, 64), 'blocks': 1, 'vocabulary': 256, 'code_dim': 8}
# Three stages: the last but one has a place for every 10 x 10 pixels, which is a code's share of the crop.
SWIN: dict[str, Any] = {
    'width': 32,
    'depths': (2, 2, 2),
    'heads': (1, 2, 4),
    'window': (4, 4, 4),
    'patch': (2, 5, 5),
    'corrected': True,
}
# Two stages are as few as can be joined, and compile in half the time.
TINY: dict[str, Any] = {**SWIN, 'width': 16, 'depths': (1, 1), 'heads': (1, 2), 'patch': (2, 10, 10)}


def swin(debug: bool) -> dict[str, Any]:
    """The model section."""
    return TINY if debug else SWIN


def tokenizer(debug: bool) -> dict[str, Any]:
    """The tokenizer section."""
    return {'kind': 'vq', 'checkpoint': 'random' if debug else 'quickstart/runs/tokenizer', 'model': CODES}


# Half of the 16 places of an image or slot are hidden, or a little less.
OPTIONS = {'size': SIZE, 'token_size': TOKEN_SIZE, 'masked': 8, 'smallest_block': 2, 'short_sides': (40, 56)}


def images() -> dict[str, Any]:
    """The data section of the image stream."""
    return {
        'files': 'quickstart/data/images.txt',
        'recipe': 'bevt_images',
        'options': {**OPTIONS, 'patch': (1, 10, 10)},
    }


def clips() -> dict[str, Any]:
    """The data section of the video stream."""
    return {
        'files': 'quickstart/data/pretrain.txt',
        'recipe': 'bevt_clips',
        'options': {**OPTIONS, 'patch': (2, 10, 10), 'length': 8, 'stride': 2, 'tube': (0.25, 0.75), 'views': 4},
    }
