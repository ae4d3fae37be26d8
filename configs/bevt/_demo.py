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


def tokenizer(debug: bool) -> dict[str, Any]:
    """The tokenizer section."""
    return {'kind': 'vq', 'checkpoint': 'random' if debug else 'quickstart/runs/tokenizer', 'model': CODES}


def images() -> dict[str, Any]:
    """The data section of the image stream."""
    options = {'masked': 7, 'smallest_block': 2, 'short_sides': (40, 56), 'token_size': TOKEN_SIZE}
    return {
        'files': 'quickstart/data/images.txt',
        'recipe': 'bevt_images',
        'options': {'size': SIZE, 'patch': (1, 10, 10), **options},
    }


def clips() -> dict[str, Any]:
    """The data section of the video stream."""
    options = {'masked': 7, 'smallest_block': 2, 'short_sides': (40, 56), 'token_size': TOKEN_SIZE}
    return {
        'files': 'quickstart/data/pretrain.txt',
        'recipe': 'bevt_clips',
        'options': {'size': SIZE, 'length': 8, 'stride': 2, 'patch': (2, 10, 10), 'views': 4, **options},
    }
