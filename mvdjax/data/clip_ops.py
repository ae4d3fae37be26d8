"""Pillow's image operations for whole clips, through OpenCV: the fast mode of `rand_augment` and the colour jitter.

The operation is the same in every frame of a clip, so its kernels and maps are made once per clip. Results agree with
Pillow's to one level, rotation excepted (tests/data/test_clip_ops.py has the largest difference of each). Operations
that map values are in `clip_tables`.

A clip is uint8 (t, h, w, 3), C-contiguous; it is never modified. A box is (top, left, height, width) inside the frame:
functions that take one return only that part of what they would make of the whole frame.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from mvdjax.data.clip_tables import cut
from mvdjax.data.ops import Box

FILL = 128  # mid grey, not the ImageNet mean: the published runs pass no mean

# Pillow cuts its blends and interpolated values off, OpenCV rounds. Slightly less than a half, as sums that should be
# whole numbers may come out a little below.
_CUT_OFF = -0.499
_GREY = (0.299, 0.587, 0.114)


def _empty(frames: np.ndarray, box: Box) -> np.ndarray:
    return np.empty((len(frames), box[2], box[3], 3), np.uint8)


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
