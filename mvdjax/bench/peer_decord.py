"""The peers of `mvdjax bench loader --peer=decord`: clips made the way the published loaders make them.

They decode with decord's VideoReader on one thread. For distillation every frame is cropped and resized with PIL to
both of the published sizes and then becomes normalised float32; for fine-tuning RandAugment goes through PIL frame by
frame, and normalised float32 frames are cropped and resized. Frames, crops and operations are drawn as in our recipes,
so that both do the same job. Written for this comparison; decord is no dependency of ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mvdjax.data import ops, sampling
from mvdjax.data.rand_augment import RandAugment
from mvdjax.errors import UserError

# ImageNet statistics, as every published run normalises with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Probabilities of the published fine-tuning runs.
FLIP, ERASING = 0.5, 0.25

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


def load_views(
    reader: Any, path: str, rng: np.random.Generator, length: int, stride: int, size: int, spec: str, views: int
) -> list[np.ndarray]:
    """Fine-tuning clips: `views` augmentations of the frames of one clip, each with an erasing box to draw.

    Args:
        reader: decord's VideoReader, or what looks like it.
        path: the video.
        rng: source of the draws.
        length: frames per clip.
        stride: frames between two of them.
        size: side of the square.
        spec: of RandAugment.
        views: number of augmentations.

    Returns:
        float32 (3, length, size, size) each.
    """
    video = reader(path, num_threads=1)
    frames = video.get_batch(sampling.kinetics_train(len(video), rng, length, stride)).asnumpy()
    return [_augmented(frames, rng, size, spec) for _ in range(views)]


def _augmented(frames: np.ndarray, rng: np.random.Generator, size: int, spec: str) -> np.ndarray:
    height, width = frames.shape[1:3]
    augment = RandAugment(spec, mode='exact')
    steps = augment.plan(rng, len(frames))
    box = ops.random_resized_crop_box(rng, height, width, ratio=ops.crop_ratio(size))
    images = augment.apply(steps, frames).astype(np.float32)
    images /= np.float32(255)
    images -= np.array(MEAN, np.float32)
    images /= np.array(STD, np.float32)
    clip = ops.crop_resize_bilinear(images, box, size)
    if rng.random() < FLIP:
        clip = ops.flip(clip)
    ops.random_erasing_box(rng, size, size, ERASING)
    return np.ascontiguousarray(clip.transpose(3, 0, 1, 2))


def collate(clips: Sequence[Clip]) -> Clip:
    """A batch of clips: two float32 arrays (b, 3, length, side, side)."""
    first, second = (np.stack(views) for views in zip(*clips, strict=True))
    return first, second
