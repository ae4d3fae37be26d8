"""Crops, resizes, flips and erasing boxes on clips: pure functions, exact to the published pipelines.

A clip is (t, h, w, 3), uint8 unless said otherwise. A box is (top, left, height, width) in pixels. A size is an int
for a square or (height, width). Random functions take a `numpy.random.Generator` and return only the box, so that two
views, or an image and its boxes, can share one draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image

from mvdjax.errors import UserError

Box = tuple[int, int, int, int]
Size = int | tuple[int, int]

# Offsets of the 13 fixed crop positions, in quarters of the free (width, height): corners, edges, centre, quarters.
_QUARTERS = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 4), (2, 0)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)


def height_width(size: Size) -> tuple[int, int]:
    """A size as (height, width).

    Raises:
        UserError: a side is below one pixel.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise UserError(f'a size must be at least 1 pixel, not {size}')
    return height, width


def blank_clip(frames: int | tuple[int, ...], size: Size) -> np.ndarray:
    """Black uint8 (*frames, height, width, 3) pixels."""
    leading = (frames,) if isinstance(frames, int) else frames
    return np.zeros((*leading, *height_width(size), 3), np.uint8)


def multiscale_crop_candidates(
    height: int, width: int, size: Size, scales: Sequence[float] = (1, 0.875, 0.75, 0.66)
) -> np.ndarray:
    """Every crop the pre-training transform can draw (golden: data/multiscale_crop).

    Sides are the short side times a scale; one within 2 pixels of `size` becomes `size` itself. Height and width use
    the same or neighbouring scales. For an image a little smaller than `size` the largest crop reaches over the edge.
    The published code crops for square inputs only. For an oblong `size` the sides are those of the largest box of
    its aspect instead of the short side.

    Args:
        height: image height.
        width: image width.
        size: the student's input size.
        scales: descending shares of the short side.

    Returns:
        int64 (crop sizes, 13, 4): boxes; with the 4 default scales there are 10 crop sizes, some of them equal.
    """
    target_height, target_width = height_width(size)
    largest_height = min(height, width * target_height / target_width)
    largest_width = min(width, height * target_width / target_height)
    heights = _crop_sides(largest_height, target_height, scales)
    widths = _crop_sides(largest_width, target_width, scales)
    boxes = []
    for i, h in enumerate(heights):
        for j, w in enumerate(widths):
            if abs(i - j) <= 1:
                down, right = (height - h) // 4, (width - w) // 4
                boxes.append([(y * down, x * right, h, w) for x, y in _QUARTERS])
    return np.array(boxes, np.int64)


def _crop_sides(largest: float, target: int, scales: Sequence[float]) -> list[int]:
    sides = [int(largest * scale) for scale in scales]
    return [target if abs(side - target) < 3 else side for side in sides]


def multiscale_crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    size: Size,
    scales: Sequence[float] = (1, 0.875, 0.75, 0.66),
) -> Box:
    """Draws one of `multiscale_crop_candidates`: first the crop size, then one of its 13 places, both uniformly."""
    candidates = multiscale_crop_candidates(height, width, size, scales)
    places = candidates[rng.integers(0, candidates.shape[0])]
    top, left, h, w = (int(value) for value in places[rng.integers(0, places.shape[0])])
    return top, left, h, w


def crop_resize_antialias(
    frames: np.ndarray, box: Box, size: Size, kernel: str = 'bilinear', fast: bool = False
) -> np.ndarray:
    """Crops and resizes with antialiasing, as PIL does (bilinear golden: data/multiscale_crop_pixels, to the byte).

    Parts of the box outside the image are black.

    Args:
        frames: uint8 (t, h, w, 3).
        box: may reach over the edges.
        size: of the result.
        kernel: 'bilinear' (video pre-training) or 'bicubic' (MAE's images).
        fast: bilinearly through OpenCV, which takes a sixth of the time. Antialiasing only acts where something
            shrinks, so what is enlarged is one level off at most, by rounding. What shrinks, to no less than half, is
            smoothed first (see `_resize_smoothed`): half a level off in the mean on pictures, 16 at most. What shrinks
            further or has a part outside the image goes through PIL.

    Returns:
        uint8 (t, height, width, 3).
    """
    resample = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}[kernel]
    top, left, h, w = box
    out_height, out_width = height_width(size)
    inside = top >= 0 and left >= 0 and top + h <= frames.shape[1] and left + w <= frames.shape[2]
    if fast and inside and kernel == 'bilinear' and h <= 2 * out_height and w <= 2 * out_width:
        return _resize_smoothed(frames[:, top : top + h, left : left + w], (out_height, out_width))
    out = np.empty((len(frames), out_height, out_width, 3), np.uint8)
    for frame, result in zip(frames, out, strict=True):
        if inside:  # cutting the array first spares copying the whole frame into a PIL image
            image = Image.fromarray(frame[top : top + h, left : left + w])
        else:
            image = Image.fromarray(frame).crop((left, top, left + w, top + h))
        result[...] = np.asarray(image.resize((out_width, out_height), resample))
    return out


def _resize_smoothed(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`_resize_bilinear`, before which an axis that shrinks is smoothed: near to an antialiased resize.

    PIL widens its triangle by the factor s of shrinking. The same weights come out at s = 1 and s = 2, and nearly so in
    between, if pixels are weighted (a, 1 - 2 a, a) before an ordinary bilinear resize. There a = (s^2 - 1) / 12 keeps
    the triangle's variance, which is best for soft pictures, and a = (1 - 1 / s) / 2 is nearest to its weights, best
    for noise: the mean of both is used.
    """
    factors = [max(1.0, old / new) for old, new in zip(frames.shape[1:3], size, strict=True)]
    if max(factors) == 1:
        return _resize_bilinear(frames, size)
    sides = [((s * s - 1) / 12 + (1 - 1 / s) / 2) / 2 for s in factors]
    down, right = (np.array([side, 1 - 2 * side, side], np.float32) for side in sides)
    out = np.empty((len(frames), *size, 3), np.uint8)
    smooth = np.empty(frames.shape[1:], np.uint8)
    for frame, result in zip(frames, out, strict=True):
        cv2.sepFilter2D(frame, -1, right, down, dst=smooth, borderType=cv2.BORDER_REPLICATE)
        cv2.resize(smooth, size[::-1], dst=result, interpolation=cv2.INTER_LINEAR)
    return out


def random_resized_crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (0.75, 1.3333),
) -> Box:
    """A crop of random area and aspect (golden: data/rrc_boxes).

    Ten tries, each with a uniform share of the area and a log-uniform aspect; a try that fits draws top, then left. If
    none fits: the central crop with the image's aspect clipped to `ratio`.

    Args:
        rng: source of the draws.
        height: image height.
        width: image width.
        scale: range of crop area / image area.
        ratio: range of crop width / crop height. The published upper bound is 1.3333, not 4/3.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = rng.uniform(*scale) * (height * width)
        aspect = math.exp(rng.uniform(low, high))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return top, left, h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def crop_ratio(size: Size, ratio: tuple[float, float] = (0.75, 1.3333)) -> tuple[float, float]:
    """The `ratio` of `random_resized_crop_box` for an output of `size`: relative to its own width / height."""
    height, width = height_width(size)
    return ratio[0] * (width / height), ratio[1] * (width / height)


def resize_into(frames: Iterable[np.ndarray], out: np.ndarray, mirrored: bool = False) -> None:
    """Resizes frames (h, w, 3) as `crop_resize_bilinear`, and mirrors them, into `out`, (t, height, width, 3) alike."""
    size = out.shape[2], out.shape[1]
    resized = np.empty(out.shape[1:], out.dtype)  # mirrored on the way to its place, while it is in the cache
    for frame, result in zip(frames, out, strict=True):
        cv2.resize(frame, size, dst=resized if mirrored else result, interpolation=cv2.INTER_LINEAR)
        if mirrored:
            cv2.flip(resized, 1, dst=result)  # NumPy copies backwards pixel by pixel, 40 times slower


def _resize_bilinear(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's INTER_LINEAR on (t, h, w, 3), views too; uint8 or float32. Uses as many threads as OpenCV is set to."""
    out = np.empty((len(frames), *size, 3), frames.dtype)
    resize_into(frames, out)
    return out


def crop_resize_bilinear(frames: np.ndarray, box: Box, size: Size) -> np.ndarray:
    """Crops and resizes bilinearly with half-pixel centres and no antialiasing (golden: data/rrc_resize).

    The published fine-tuning pipeline resizes normalised float32 frames; float32 input here agrees with it to 1e-5.
    uint8 input is rounded to whole levels, at most one level of 255 from the float result: faster, and what packed
    training data uses.

    Args:
        frames: uint8 or float32 (t, h, w, 3).
        box: must lie inside the image.
        size: of the result.

    Returns:
        (t, height, width, 3) of the input's dtype.

    Raises:
        ValueError: the box reaches over an edge or is empty.
    """
    top, left, h, w = box
    if min(top, left) < 0 or min(h, w) < 1 or top + h > frames.shape[1] or left + w > frames.shape[2]:
        raise ValueError(f'box {box} does not lie inside a {frames.shape[1]} x {frames.shape[2]} image')
    return _resize_bilinear(frames[:, top : top + h, left : left + w], height_width(size))


def random_short_side_crop(
    rng: np.random.Generator, frames: np.ndarray, size: Size, short_sides: tuple[int, int] = (256, 320)
) -> np.ndarray:
    """A crop of `size` from frames resized to a random short side: BEVT's pre-training.

    The short side is a uniform whole number from the first to the last of `short_sides`, the resize bicubic without
    antialiasing, the long side rounded, the place of the crop uniform.

    Returns:
        uint8 (t, height, width, 3).

    Raises:
        UserError: the crop is larger than the resized frames.
    """
    h, w = height_width(size)
    scale = int(rng.integers(short_sides[0], short_sides[1] + 1)) / min(frames.shape[1:3])
    height, width = (int(side * scale + 0.5) for side in frames.shape[1:3])
    if h > height or w > width:
        raise UserError(f'a crop of {h} x {w} does not fit into frames of {height} x {width}')
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    out = np.empty((len(frames), h, w, 3), np.uint8)
    for frame, result in zip(frames, out, strict=True):
        resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
        result[...] = resized[top : top + h, left : left + w]
    return out


def resize_lanczos(frames: np.ndarray, size: Size) -> np.ndarray:
    """Resizes by OpenCV's Lanczos over 8 x 8 pixels, without antialiasing: the view that BEVT's tokenizer gets.

    Returns:
        uint8 (t, height, width, 3).
    """
    height, width = height_width(size)
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, result in zip(frames, out, strict=True):
        cv2.resize(frame, (width, height), dst=result, interpolation=cv2.INTER_LANCZOS4)
    return out


def short_side_resize(frames: np.ndarray, size: Size) -> np.ndarray:
    """Resizes bilinearly, without antialiasing, to a short side of `size` (golden: data/val_transform, to the byte).

    The long side is truncated to a whole pixel. A clip whose short side fits already is returned as it is. For
    (height, width) the "short side" is the one that reaches its length first: the result just covers that size.

    Returns:
        uint8 (t, height, width, 3).
    """
    height, width = frames.shape[1:3]
    short_height, short_width = height_width(size)
    if width * short_height < height * short_width:  # narrower than the size
        resized = int(short_width * height / width), short_width
    else:
        resized = short_height, int(short_height * width / height)
    return frames if resized == (height, width) else _resize_bilinear(frames, resized)


def center_crop(frames: np.ndarray, size: Size) -> np.ndarray:
    """The central crop, its offset rounded half to even (golden: data/val_transform).

    Returns:
        (t, height, width, 3), a view.

    Raises:
        UserError: the crop is larger than the frames.
    """
    h, w = height_width(size)
    height, width = frames.shape[1:3]
    if h > height or w > width:
        raise UserError(f'a crop of {h} x {w} does not fit into frames of {height} x {width}')
    top, left = round((height - h) / 2), round((width - w) / 2)
    return frames[:, top : top + h, left : left + w]


CROP_RULES = ('even', 'bevt')


def spatial_crops(frames: np.ndarray, size: Size, crops: int = 3, rule: str = 'even') -> np.ndarray:
    """Test crops along the side with more to spare.

    Frames come from `short_side_resize`, and `size` is their short side in the published protocols, whose crops are
    square; a smaller one is centred on the short side.

    Rules:
      even  crops spread evenly from the start to the end of the side (golden: data/spatial_test). One crop, at which
            the published loader divides by zero, is the centre crop.
      bevt  three crops: start, end, middle. The end lies at twice the middle, which with an odd number of pixels to
            spare is one short of the last (golden: bevt/frame_sampling).

    Returns:
        (crops, t, height, width, 3).

    Raises:
        UserError: the crop is larger than the frames, or fewer than one crop is asked for.
    """
    if crops < 1:
        raise UserError(f'the number of crops must be at least 1, not {crops}')
    height, width = frames.shape[1:3]
    h, w = height_width(size)
    if crops == 1:
        return center_crop(frames, size)[None]
    down = height - h >= width - w
    band = center_crop(frames, (height, w) if down else (h, width))
    spare = max(height - h, width - w)
    if rule == 'bevt':
        starts = [0, spare // 2 * 2, spare // 2]
    else:
        starts = [int(i * (spare / (crops - 1))) for i in range(crops)]
    if down:
        return np.stack([band[:, start : start + h] for start in starts])
    return np.stack([band[:, :, start : start + w] for start in starts])


def flip(frames: np.ndarray) -> np.ndarray:
    """Mirrors left and right. Returns a contiguous array of the same shape and dtype."""
    out = np.empty(frames.shape, frames.dtype)
    for frame, result in zip(frames, out, strict=True):
        cv2.flip(frame, 1, dst=result)  # NumPy copies backwards pixel by pixel, 40 times slower
    return out


def random_erasing_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    min_aspect: float = 0.3,
) -> np.ndarray:
    """Where random erasing puts its noise; the same box in every frame of a clip (golden: data/erasing_boxes).

    Up to 100 tries, each with a uniform share of the area and a log-uniform aspect in [min_aspect, 1 / min_aspect];
    both sides must be strictly smaller than the frame's. The noise itself is drawn on the device.

    Args:
        rng: source of the draws.
        height: frame height.
        width: frame width.
        probability: of erasing anything.
        area: range of box area / frame area.
        min_aspect: smallest height / width.

    Returns:
        int32 (4,): top, left, height, width; zeros mean that nothing is erased.
    """
    if rng.random() > probability:
        return np.zeros(4, np.int32)
    bound = math.log(1 / min_aspect)
    for _ in range(100):
        target = rng.uniform(*area) * (height * width)
        aspect = math.exp(rng.uniform(-bound, bound))
        h = round(math.sqrt(target * aspect))
        w = round(math.sqrt(target / aspect))
        if h < height and w < width:
            top = rng.integers(0, height - h + 1)
            left = rng.integers(0, width - w + 1)
            return np.array([top, left, h, w], np.int32)
    return np.zeros(4, np.int32)
