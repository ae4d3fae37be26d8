"""Model FLOPs of tokenizers by formula; what counts, and how, is said in `flops`. Convolutions are matrix products."""

from mvdjax.flops import TRAINED, linear
from mvdjax.models.dvae import GROUPS, DalleEncoder
from mvdjax.models.vq import VQ


def dalle(encoder: DalleEncoder, height: int, width: int) -> float:
    """Forward pass of DALL-E's encoder over one image of so many pixels."""
    places, inputs = height * width, encoder.width
    total = linear(places, 7 * 7 * 3, inputs)
    for i, factor in enumerate(GROUPS):
        outputs = factor * encoder.width
        narrow = outputs // 4
        for _ in range(encoder.blocks):
            if inputs != outputs:
                total += linear(places, inputs, outputs)
            total += linear(places, 9 * inputs, narrow) + 2 * linear(places, 9 * narrow, narrow)
            total += linear(places, narrow, outputs)
            inputs = outputs
        if i + 1 < len(GROUPS):
            places //= 4
    return total + linear(places, inputs, encoder.vocabulary)


def _levels(model: VQ, height: int, width: int) -> tuple[float, int]:
    """Forward pass of the residual blocks of one side over an image, and the number of codes."""
    places, total = height * width, 0.0
    for channels in model.channels:
        places //= 4
        total += model.blocks * 2 * linear(places, 9 * channels, channels)
    return total, places


def codebook(model: VQ, height: int, width: int) -> float:
    """Forward pass of a VQ tokenizer's encoder over one image: down to its codes, and the search for the nearest."""
    total, codes = _levels(model, height, width)
    places, inputs = height * width, len(model.mean)
    for channels in model.channels:
        places //= 4
        total += linear(places, 4 * inputs, channels)
        inputs = channels
    return total + linear(codes, inputs, model.code_dim) + linear(codes, model.code_dim, model.vocabulary)


def trained_codebook(model: VQ, images: int, height: int, width: int) -> dict[str, float]:
    """Training FLOPs of a VQ tokenizer on so many images: {'encoder', 'decoder'}; the search has no gradient."""
    total, codes = _levels(model, height, width)
    places, outputs = height * width, len(model.mean)
    for channels in model.channels:
        places //= 4
        total += linear(places, channels, 4 * outputs)
        outputs = channels
    total += linear(codes, model.code_dim, model.channels[-1])
    search = linear(codes, model.code_dim, model.vocabulary)
    pixels = linear(height * width // 4, 4 * len(model.mean), model.channels[0])  # which take no gradient
    encoder = TRAINED * (codebook(model, height, width) - search) + search - pixels
    return {'encoder': images * encoder, 'decoder': images * TRAINED * total}
