"""Model FLOPs of Video Swins by formula; what counts, and how, is said in `flops`.

Positions that a window's padding adds pass the attention like all others, and are counted there. The products that
spread a table of position biases over the pairs of a window are not: they look numbers up.
"""

import math

from mvdjax.flops import TRAINED, linear
from mvdjax.models.bevt import MaskedSwin, SwinClassifier
from mvdjax.models.embed import Grid
from mvdjax.models.video_swin import VideoSwin
from mvdjax.models.window_attention import cut


def grids(swin: VideoSwin, video_shape: tuple[int, ...], image: bool = False) -> list[Grid]:
    """The (t, h, w) grids of the stages' maps, of a (..., frames, height, width, channels) input."""
    patch = (1, *swin.patch[1:]) if image else swin.patch
    t, h, w = (-(-side // p) for side, p in zip(video_shape[-4:-1], patch, strict=True))
    found = [(t, h, w)]
    for _ in swin.depths[1:]:
        found.append((t, -(-found[-1][1] // 2), -(-found[-1][2] // 2)))
    return found


def patches(swin: VideoSwin, video_shape: tuple[int, ...], image: bool = False) -> float:
    """Forward pass of the patch embedding over one sample."""
    frames = 1 if image else swin.patch[0]
    inputs = frames * math.prod(swin.patch[1:]) * len(swin.mean)
    return linear(math.prod(grids(swin, video_shape, image)[0]), inputs, swin.width)


def backbone(swin: VideoSwin, video_shape: tuple[int, ...], image: bool = False) -> float:
    """Forward pass over one sample of a (..., frames, height, width, channels) input, patch embedding included."""
    total = patches(swin, video_shape, image)
    for i, grid in enumerate(grids(swin, video_shape, image)):
        width, tokens = swin.width * 2**i, math.prod(grid)
        hidden = round(swin.mlp_ratio * width)
        for block in range(swin.depths[i]):
            windows = cut(grid, swin.window, block % 2 == 1, image, swin.corrected)
            inside, within = math.prod(windows.count) * math.prod(windows.size), math.prod(windows.size)
            total += linear(inside, width, 4 * width) + 2 * linear(inside, width, within)
            total += 2 * linear(tokens, width, hidden)
        if i:
            total += linear(tokens, 2 * width, width)  # the merging before this stage
    return total


def classifier(model: SwinClassifier, video_shape: tuple[int, ...]) -> dict[str, float]:
    """Training FLOPs of a step of a classifier on a (b, t, h, w, c) batch: {'encoder', 'head'}."""
    swin, samples = model.backbone, video_shape[0]
    encoder = TRAINED * backbone(swin, video_shape) - patches(swin, video_shape)
    return {
        'encoder': samples * encoder,
        'head': samples * TRAINED * linear(1, swin.out_width, model.num_classes),
    }


def fusion(model: MaskedSwin, video_shape: tuple[int, ...], image: bool = False) -> float:
    """Forward pass of the layers between the last stage and the final norm, over one sample."""
    swin = model.backbone
    fine, coarse = grids(swin, video_shape, image)[-2:]
    width, tokens = swin.out_width, math.prod(fine)
    up = linear(math.prod(coarse), width, 4 * width)
    down = linear(tokens, width + width // 2, width)
    return up + down + (0.0 if image else linear(tokens, width, swin.patch[0] * width))


def stream(model: MaskedSwin, video_shape: tuple[int, ...], image: bool = False) -> dict[str, float]:
    """Training FLOPs of one stream of a masked model on a (b, t, h, w, c) batch: {'encoder', 'decoder'}.

    The decoder is the fusion and the head; scores of all positions are counted, as they are computed.
    """
    swin, samples = model.backbone, video_shape[0]
    encoder = TRAINED * backbone(swin, video_shape, image) - patches(swin, video_shape, image)
    tokens = math.prod(grids(swin, video_shape, image)[-2]) * (1 if image else swin.patch[0])
    decoder = fusion(model, video_shape, image) + linear(tokens, swin.out_width, model.vocabulary)
    return {'encoder': samples * encoder, 'decoder': samples * TRAINED * decoder}


def per_view(model: SwinClassifier, video_shape: tuple[int, ...]) -> float:
    """What papers quote as FLOPs of a forward pass: one per multiply-add, and five per value that a norm passes.

    Video Swin's and BEVT's tables hold these counts (fvcore's): for Swin-B and 32 x 224 x 224 pixels 282 G with windows
    of 8 x 7 x 7, 321 G with windows of 16 x 7 x 7.
    """
    swin = model.backbone
    maps = grids(swin, video_shape)
    sizes = [math.prod(grid) * swin.width * 2**i for i, grid in enumerate(maps)]
    merged = [4 * math.prod(grid) * swin.width * 2**i for i, grid in enumerate(maps[1:])]
    normed = sizes[0] + sum(2 * n * size for n, size in zip(swin.depths, sizes, strict=True)) + sum(merged) + sizes[-1]
    return (backbone(swin, video_shape) + linear(1, swin.out_width, model.num_classes)) / 2 + 5 * normed
