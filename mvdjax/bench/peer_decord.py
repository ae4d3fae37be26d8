"""The peer of `mvdjax bench loader --peer=decord`: distillation clips made the way the published loader makes them.

It decodes with decord's VideoReader on one thread, crops and resizes every frame with PIL to both of the published
sizes, and hands on normalised float32. It draws the same frames and the same crop as our loader from the same
generator, so that both do the same job. Written for this comparison; decord is no dependency of ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mvdjax.data import ops, sampling
from mvdjax.errors import UserError

# ImageNet statistics, as every published run normalises with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Clip = tuple[np.ndarray, np.ndarray]


def video_reader() -> Any:
    """decord's VideoReader.

    Raises:
        UserError: decord is not installed.
    """
    try:
        import decord
    except ImportError as error:
        raise UserError(
            f'the peer needs decord ({error}): pip install decord (or eva-decord) into this environment, or leave out '
            '--peer'
        ) from error
    return decord.VideoReader


def normalised(images: Sequence[Image.Image]) -> np.ndarray:
    """Frames to float32 (3, t, h, w): stacked along the channels, scaled to [0, 1], normalised channel by channel."""
    stacked = np.concatenate([np.array(image) for image in images], axis=2)  # (h, w, t * 3)
    planes = np.ascontiguousarray(stacked.transpose(2, 0, 1)).astype(np.float32)
    planes /= np.float32(255)
    for channel, plane in enumerate(planes):
        plane -= np.float32(MEAN[channel % 3])
        plane /= np.float32(STD[channel % 3])
    return planes.reshape(len(images), 3, *planes.shape[1:]).swapaxes(0, 1)


def load_clip(
    reader: Any, path: str, rng: np.random.Generator, length: int, stride: int, sizes: tuple[int, int]
) -> Clip:
    """One clip at the two sizes.

    Args:
        reader: decord's VideoReader, or what looks like it.
        path: the video.
        rng: draws the frames, then the crop.
        length: frames per clip.
        stride: frames between two of them.
        sizes: sides of the student's and of the teacher's squares; the crop is drawn for the first.

    Returns:
        Two float32 arrays (3, length, side, side).
    """
    video = reader(path, num_threads=1)
    ids = sampling.pretrain_clip(len(video), rng, length, stride).reshape(-1)
    images = [Image.fromarray(frame).convert('RGB') for frame in video.get_batch(ids).asnumpy()]
    top, left, height, width = ops.multiscale_crop_box(rng, images[0].height, images[0].width, sizes[0])
    crops = [image.crop((left, top, left + width, top + height)) for image in images]
    first, second = (
        normalised([crop.resize((side, side), Image.Resampling.BILINEAR) for crop in crops]) for side in sizes
    )
    return first, second


def collate(clips: Sequence[Clip]) -> Clip:
    """A batch of clips: two float32 arrays (b, 3, length, side, side)."""
    first, second = (np.stack(views) for views in zip(*clips, strict=True))
    return first, second
