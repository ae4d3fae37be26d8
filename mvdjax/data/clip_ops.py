"""Pillow's image operations for whole clips, through OpenCV: the fast mode of `rand_augment` and the colour jitter.

The operation is the same in every frame of a clip, so its tables, kernels and maps are made once per clip. Results
agree with Pillow's to the byte where a table does the work and to one level elsewhere, rotation excepted
(tests/data/test_clip_ops.py has the largest difference of each).

A clip is uint8 (t, h, w, 3), C-contiguous; it is never modified. A box is (top, left, height, width) inside the frame:
functions that take one return only that part of what they would make of the whole frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from mvdjax.data.ops import Box

FILL = 128  # mid grey, not the ImageNet mean: the published runs pass no mean

# Pillow cuts its blends and interpolated values off, OpenCV rounds. Slightly less than a half, as sums that should be
# whole numbers may come out a little below.
_CUT_OFF = -0.499
_GREY = (0.299, 0.587, 0.114)


def cut(frames: np.ndarray, box: Box) -> np.ndarray:
    """The part of each frame inside `box`, a view."""
    top, left, height, width = box
    return frames[:, top : top + height, left : left + width]


def _empty(frames: np.ndarray, box: Box) -> np.ndarray:
    return np.empty((len(frames), box[2], box[3], 3), np.uint8)


# --- through 256-entry tables, to the byte ---------------------------------------------------------------------------


def table_of(apply: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """The table of a Pillow operation that maps each value by itself and all channels alike: uint8 (256,)."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    return np.asarray(apply(Image.fromarray(ramp)))[0, :, 0].copy()


def by_table(frames: np.ndarray, table: np.ndarray, box: Box) -> np.ndarray:
    """Maps values through `table`: (256,), or one for each frame (t, 256), or for each of its channels (t, 256, 3)."""
    tables = np.broadcast_to(table, (len(frames), 256)) if table.ndim == 1 else table
    if table.ndim == 3:
        tables = tables[:, None]  # as OpenCV wants a table of several channels
    out = _empty(frames, box)
    for frame, frame_table, result in zip(cut(frames, box), tables, out, strict=True):
        cv2.LUT(frame, frame_table, dst=result)
    return out


def brightness(frames: np.ndarray, factor: float, box: Box) -> np.ndarray:
    """Blends the clip with black: factor 0 is black, 1 the clip, more exceeds it."""
    return by_table(frames, table_of(lambda image: ImageEnhance.Brightness(image).enhance(factor)), box)


def _histograms(frames: np.ndarray) -> np.ndarray:
    """int64 (t, 256, 3)."""
    counts = [[cv2.calcHist([f], [c], None, [256], [0, 256]).ravel() for c in range(3)] for f in frames]
    return np.array(counts, np.int64).transpose(0, 2, 1)


def auto_contrast(frames: np.ndarray, box: Box) -> np.ndarray:
    """Stretches each channel of each frame from its darkest and lightest value to 0 and 255."""
    present = _histograms(frames) > 0
    low = present.argmax(1)[:, None]  # (t, 1, 3)
    high = 255 - present[:, ::-1].argmax(1)[:, None]
    values = np.arange(256)[None, :, None]
    scale = 255.0 / np.maximum(high - low, 1)
    stretched = (values * scale - low * scale).clip(0, 255).astype(np.uint8)
    return by_table(frames, np.where(high > low, stretched, values.astype(np.uint8)), box)


def equalize(frames: np.ndarray, box: Box) -> np.ndarray:
    """Flattens the histogram of each channel of each frame, by Pillow's integer rule."""
    counts = _histograms(frames)
    lightest = 255 - (counts > 0)[:, ::-1].argmax(1)[:, None]
    step = (counts.sum(1, keepdims=True) - np.take_along_axis(counts, lightest, 1)) // 255
    below = counts.cumsum(1) - counts
    flat = ((step // 2 + below) // np.maximum(step, 1)).clip(0, 255)
    return by_table(frames, np.where(step > 0, flat, np.arange(256)[None, :, None]).astype(np.uint8), box)


def contrast(frames: np.ndarray, factor: float, box: Box) -> np.ndarray:
    """Blends each frame with its mean grey: factor 0 is all grey, 1 the frame, more exceeds it.

    The mean is of OpenCV's grey values. They differ from Pillow's in few pixels, so a mean next to a half may round the
    other way, and the frame be one level lighter or darker.
    """
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    tables = []
    for frame in frames:
        mean = int(cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0] + 0.5)
        tables.append(np.asarray(Image.blend(Image.new('L', (256, 1), mean), ramp, factor))[0])
    return by_table(frames, np.stack(tables), box)


# --- by arithmetic on pixels and neighbours, to one level ------------------------------------------------------------


def color(frames: np.ndarray, factor: float, box: Box) -> np.ndarray:
    """Blends each pixel with its grey value: factor 0 is grey, 1 the frame, more exceeds it."""
    matrix = np.empty((3, 4), np.float32)
    matrix[:, :3] = factor * np.eye(3) + (1 - factor) * np.array(_GREY)
    matrix[:, 3] = _CUT_OFF
    out = _empty(frames, box)
    for frame, result in zip(cut(frames, box), out, strict=True):
        cv2.transform(frame, matrix, dst=result)
    return out


def sharpness(frames: np.ndarray, factor: float, box: Box) -> np.ndarray:
    """Blends each frame with its smoothed self, (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay as they are."""
    tall = frames.reshape(-1, *frames.shape[2:])  # a sum that reaches into the next frame is an outermost pixel's
    means = cv2.boxFilter(tall, -1, (3, 3))
    cv2.addWeighted(tall, factor + (1 - factor) * 4 / 13, means, (1 - factor) * 9 / 13, _CUT_OFF, dst=means)
    out = means.reshape(frames.shape)
    for edge in (0, -1):
        out[:, edge] = frames[:, edge]
        out[:, :, edge] = frames[:, :, edge]
    return cut(out, box)


# --- geometry --------------------------------------------------------------------------------------------------------


def _kernel(fraction: float, cubic: bool) -> np.ndarray:
    """float32 (4,): weights of pixels -1, 0, 1, 2 for a point `fraction` right of pixel 0."""
    d = fraction
    if not cubic:
        return np.array([0, 1 - d, d, 0], np.float32)
    # Pillow's cubic, with a = -1
    return np.array([-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3], np.float32)


def _shift(slab: np.ndarray, out: np.ndarray, shift: float, first: int, cubic: bool, axis: int) -> None:
    """out[x] = slab[x + first + shift] along `axis` (0 or 1) of both, as far as it lies inside `slab`.

    Source pixels before the first and after the last are those, as in Pillow.
    """
    size, count = slab.shape[axis], out.shape[axis]
    near = math.floor(shift + 0.5) + first  # nearest source pixel of out[0]
    fraction = shift - math.floor(shift)
    start, stop = max(0, -near), min(count, size - near)
    if start >= stop:
        return
    # The three pixels more on either side are all that a kernel reaches; elsewhere OpenCV repeats the true border.
    low, high = max(0, start + near - 3), min(size, stop + near + 3)
    anchor, kernel = int(1 + (fraction >= 0.5)), _kernel(fraction, cubic)
    lead = (slice(None),) * axis
    source, target = slab[(*lead, slice(low, high))], out[(*lead, slice(start, stop))]
    kernel, place = (kernel[None, :], (anchor, 0)) if axis else (kernel[:, None], (0, anchor))
    moved = cv2.filter2D(source, -1, kernel, None, place, _CUT_OFF, cv2.BORDER_REPLICATE)
    target[...] = moved[(*lead, slice(start + near - low, stop + near - low))]


def _filled(frames: np.ndarray, box: Box) -> np.ndarray:
    return np.full((len(frames), box[2], box[3], 3), FILL, np.uint8)


def shear_x(frames: np.ndarray, shear: float, cubic: bool, box: Box) -> np.ndarray:
    """Fills (x, y) from (x + shear * y, y). Each row moves by its own distance, alike in all frames: one slab."""
    top, left, height, _ = box
    out = _filled(frames, box)
    for row in range(height):
        _shift(frames[:, top + row], out[:, row], shear * (top + row + 0.5), left, cubic, 1)
    return out


def shear_y(frames: np.ndarray, shear: float, cubic: bool, box: Box) -> np.ndarray:
    """Fills (x, y) from (x, y + shear * x): `shear_x` of the transposed frames."""
    top, left, height, width = box
    columns = frames[:, :, left : left + width]
    turned = np.empty((len(frames), width, frames.shape[1], 3), np.uint8)
    for frame, result in zip(columns, turned, strict=True):
        cv2.transpose(frame, dst=result)
    sheared = np.full((len(frames), width, height, 3), FILL, np.uint8)
    for column in range(width):
        _shift(turned[:, column], sheared[:, column], shear * (left + column + 0.5), top, cubic, 1)
    out = _empty(frames, box)
    for frame, result in zip(sheared, out, strict=True):
        cv2.transpose(frame, dst=result)
    return out


def translate_x(frames: np.ndarray, pixels: float, cubic: bool, box: Box) -> np.ndarray:
    """Fills (x, y) from (x + pixels, y)."""
    top, left, height, _ = box
    out = _filled(frames, box)
    for frame, result in zip(frames, out, strict=True):
        _shift(frame[top : top + height], result, pixels, left, cubic, 1)
    return out


def translate_y(frames: np.ndarray, pixels: float, cubic: bool, box: Box) -> np.ndarray:
    """Fills (x, y) from (x, y + pixels)."""
    top, left, _, width = box
    out = _filled(frames, box)
    for frame, result in zip(frames, out, strict=True):
        _shift(frame[:, left : left + width], result, pixels, top, cubic, 0)
    return out


def rotate(frames: np.ndarray, degrees: float, cubic: bool, box: Box) -> np.ndarray:
    """Rotates counter-clockwise about the centre of the frame, keeping its size.

    OpenCV's cubic has a = -0.75 where Pillow's has -1, and its places are rounded to 1/32 pixel (bilinear: before 5.0).
    """
    full_height, full_width = frames.shape[1:3]
    top, left, height, width = box
    angle = -math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    centre = np.array([full_width / 2, full_height / 2])
    offset = centre - turn @ centre + turn @ np.array([left + 0.5, top + 0.5])  # of the box's first pixel, its middle
    x, y = np.arange(width), np.arange(height)[:, None]
    source_x = cos * x + sin * y + offset[0]
    source_y = cos * y - sin * x + offset[1]
    outside = (source_x < 0) | (source_x >= full_width) | (source_y < 0) | (source_y >= full_height)
    fill, mask = np.full((height, width, 3), FILL, np.uint8), outside.view(np.uint8)
    matrix = np.column_stack([turn, offset - 0.5])
    flags = (cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    out = _empty(frames, box)
    for frame, result in zip(frames, out, strict=True):
        cv2.warpAffine(frame, matrix, (width, height), result, flags, cv2.BORDER_REPLICATE)
        cv2.copyTo(fill, mask, result)
    return out
