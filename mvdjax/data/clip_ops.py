"""Pillow's image operations for whole clips, through OpenCV: the fast mode of `rand_augment` and the colour jitter.

The operation is the same in every frame of a clip, so its kernels and maps are made once per clip. Results agree with
Pillow's to one level, rotation excepted (tests/data/test_clip_ops.py has the largest difference of each). Operations
that map values are in `clip_tables`.

A clip is uint8 (t, h, w, 3); it is never modified. A box is (top, left, height, width) inside the frame. An operation
makes one box of its result out of a `Part` of the frames, and has a function `..._reach` that says which part it takes:
so each of several operations makes no more than the next one needs.
"""

from __future__ import annotations

import dataclasses
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
# Pixels that a cubic kernel reaches beyond the nearest one, and one for rounding.
_KERNEL = 3

FrameSize = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class Part:
    """A box of each frame of a clip.

    Attributes:
      frames: what is inside the box.
      box: where it lies.
      size: of the whole frames.
    """

    frames: np.ndarray
    box: Box
    size: FrameSize


def _empty(frames: np.ndarray, box: Box) -> np.ndarray:
    return np.empty((len(frames), box[2], box[3], 3), np.uint8)


def _reach(size: FrameSize, rows: tuple[float, float], columns: tuple[float, float], margin: int) -> Box:
    """The part of the frame around these first and last places; one pixel of its edge if they lie outside."""
    ends = []
    for (first, last), side in zip((rows, columns), size, strict=True):
        low = min(max(math.floor(first) - margin, 0), side - 1)
        ends.append((low, max(min(math.ceil(last) + margin + 1, side), low + 1)))
    (top, bottom), (left, right) = ends
    return top, left, bottom - top, right - left


def _rows(box: Box) -> tuple[int, int]:
    return box[0], box[0] + box[2] - 1


def _columns(box: Box) -> tuple[int, int]:
    return box[1], box[1] + box[3] - 1


def _moved(ends: tuple[int, int], *shifts: float) -> tuple[float, float]:
    return ends[0] + min(shifts), ends[1] + max(shifts)


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


def sharpness_reach(size: FrameSize, factor: float, box: Box) -> Box:
    """The box and the pixels around it."""
    return _reach(size, _rows(box), _columns(box), 1)


def sharpness(part: Part, factor: float, box: Box) -> np.ndarray:
    """Blends each frame with its smoothed self, (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay as they are."""
    top, left, height, width = part.box
    inner = (box[0] - top, box[1] - left, *box[2:])
    # The frame's own edges, as far as they lie in the part.
    edges: list[tuple[slice | int, ...]] = [
        (i,) for i, is_edge in ((0, top == 0), (-1, top + height == part.size[0])) if is_edge
    ]
    edges += [(slice(None), i) for i, is_edge in ((0, left == 0), (-1, left + width == part.size[1])) if is_edge]
    out, means = _empty(part.frames, box), np.empty((height, width, 3), np.uint8)
    for frame, result in zip(part.frames, out, strict=True):
        cv2.boxFilter(frame, -1, (3, 3), dst=means)
        cv2.addWeighted(frame, factor + (1 - factor) * 4 / 13, means, (1 - factor) * 9 / 13, _CUT_OFF, dst=means)
        for edge in edges:
            means[edge] = frame[edge]
        result[...] = cut(means[None], inner)[0]
    return out


# --- geometry --------------------------------------------------------------------------------------------------------


def _kernels(fractions: np.ndarray, cubic: bool) -> np.ndarray:
    """float32 (n, 4): weights of pixels -1, 0, 1, 2 for points by these fractions right of pixel 0."""
    d = fractions
    if not cubic:
        return np.stack([0 * d, 1 - d, d, 0 * d], -1).astype(np.float32)
    # Pillow's cubic, with a = -1
    weights = [-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3]
    return np.stack(weights, -1).astype(np.float32)


def _shift(source: np.ndarray, out: np.ndarray, shifts: np.ndarray, cubic: bool) -> None:
    """out[:, i, x] = source[:, i, x + shifts[i]] for each row i of (t, rows, columns, 3), grey beyond the columns.

    A row of all frames is one filter. Source pixels before the first and after the last are those, as in Pillow.
    """
    size, count = source.shape[2], out.shape[2]
    near = np.floor(shifts + 0.5).astype(np.int64)  # nearest source pixel of out[:, i, 0]
    fractions = shifts - np.floor(shifts)
    starts, stops = np.clip(-near, 0, count), np.clip(size - near, 0, count)
    # The three pixels more on either side are all that a kernel reaches; elsewhere OpenCV repeats the true border.
    lows, highs = np.maximum(starts + near - _KERNEL, 0), np.minimum(stops + near + _KERNEL, size)
    kernels, anchors = _kernels(fractions, cubic)[:, None], (1 + (fractions >= 0.5)).tolist()
    if starts.max() > 0 or stops.min() < count:
        out.fill(FILL)
    filter2d, border = cv2.filter2D, cv2.BORDER_REPLICATE
    places = zip(
        starts.tolist(), stops.tolist(), lows.tolist(), highs.tolist(), (starts + near - lows).tolist(), strict=True
    )
    for row, (start, stop, low, high, skip) in enumerate(places):
        if start < stop:
            moved = filter2d(source[:, row, low:high], -1, kernels[row], None, (anchors[row], 0), _CUT_OFF, border)
            out[:, row, start:stop] = moved[:, skip : skip + stop - start]


def _turned(frames: np.ndarray) -> np.ndarray:
    """Rows for columns."""
    out = np.empty((len(frames), *frames.shape[2:0:-1], 3), np.uint8)
    for frame, result in zip(frames, out, strict=True):
        cv2.transpose(frame, dst=result)
    return out


def _sheared(shear: float, first: int, count: int) -> np.ndarray:
    """How far each of `count` rows or columns moves."""
    return shear * (first + np.arange(count) + 0.5)


def shear_x_reach(size: FrameSize, shear: float, box: Box) -> Box:
    """The box's rows, and the columns from which they come."""
    moves = _sheared(shear, box[0], box[2])
    return _reach(size, _rows(box), _moved(_columns(box), moves[0], moves[-1]), _KERNEL)


def shear_x(part: Part, shear: float, cubic: bool, box: Box) -> np.ndarray:
    """Fills (x, y) from (x + shear * y, y). Each row moves by its own distance, alike in all frames."""
    top, left, height, _ = box
    out = _empty(part.frames, box)
    rows = part.frames[:, top - part.box[0] :][:, :height]
    _shift(rows, out, _sheared(shear, top, height) + (left - part.box[1]), cubic)
    return out


def shear_y_reach(size: FrameSize, shear: float, box: Box) -> Box:
    """The box's columns, and the rows from which they come."""
    moves = _sheared(shear, box[1], box[3])
    return _reach(size, _moved(_rows(box), moves[0], moves[-1]), _columns(box), _KERNEL)


def shear_y(part: Part, shear: float, cubic: bool, box: Box) -> np.ndarray:
    """Fills (x, y) from (x, y + shear * x): `shear_x` of the transposed frames."""
    top, left, height, width = box
    columns = _turned(part.frames[:, :, left - part.box[1] :][:, :, :width])
    out = np.empty((len(columns), width, height, 3), np.uint8)
    _shift(columns, out, _sheared(shear, left, width) + (top - part.box[0]), cubic)
    return _turned(out)


def _translate(source: np.ndarray, out: np.ndarray, shift: float, cubic: bool, axis: int) -> None:
    """out[x] = source[x + shift] along `axis` (0 or 1) of a frame, grey beyond it, as `_shift`."""
    size, count = source.shape[axis], out.shape[axis]
    near, fraction = math.floor(shift + 0.5), shift - math.floor(shift)
    start, stop = min(max(0, -near), count), max(min(count, size - near), 0)
    lead = (slice(None),) * axis
    out[(*lead, slice(0, start))] = out[(*lead, slice(stop, None))] = FILL
    if start >= stop:
        out[...] = FILL
        return
    low, high = max(0, start + near - _KERNEL), min(size, stop + near + _KERNEL)
    kernel, anchor = _kernels(np.array([fraction]), cubic), int(1 + (fraction >= 0.5))
    kernel, place = (kernel, (anchor, 0)) if axis else (kernel.T, (0, anchor))
    moved = cv2.filter2D(source[(*lead, slice(low, high))], -1, kernel, None, place, _CUT_OFF, cv2.BORDER_REPLICATE)
    out[(*lead, slice(start, stop))] = moved[(*lead, slice(start + near - low, stop + near - low))]


def translate_x_reach(size: FrameSize, pixels: float, box: Box) -> Box:
    """The box, moved."""
    return _reach(size, _rows(box), _moved(_columns(box), pixels), _KERNEL)


def translate_x(part: Part, pixels: float, cubic: bool, box: Box) -> np.ndarray:
    """Fills (x, y) from (x + pixels, y)."""
    top, left, height, _ = box
    frames, out = part.frames[:, top - part.box[0] :][:, :height], _empty(part.frames, box)
    for frame, result in zip(frames, out, strict=True):
        _translate(frame, result, pixels + left - part.box[1], cubic, 1)
    return out


def translate_y_reach(size: FrameSize, pixels: float, box: Box) -> Box:
    """The box, moved."""
    return _reach(size, _moved(_rows(box), pixels), _columns(box), _KERNEL)


def translate_y(part: Part, pixels: float, cubic: bool, box: Box) -> np.ndarray:
    """Fills (x, y) from (x, y + pixels)."""
    top, left, _, width = box
    frames, out = part.frames[:, :, left - part.box[1] :][:, :, :width], _empty(part.frames, box)
    for frame, result in zip(frames, out, strict=True):
        _translate(frame, result, pixels + top - part.box[0], cubic, 0)
    return out


def _rotation(size: FrameSize, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The matrix and the offset that take (x, y), counted from the frame's corner, to its source."""
    angle = -math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    centre = np.array([size[1] / 2, size[0] / 2])
    return turn, centre - turn @ centre


def _sources(size: FrameSize, degrees: float, box: Box) -> np.ndarray:
    """Where the middles of the box's corner pixels come from: (4, 2) of x, y."""
    turn, offset = _rotation(size, degrees)
    corners = [(x + 0.5, y + 0.5) for x in _columns(box) for y in _rows(box)]
    return np.array(corners) @ turn.T + offset


def rotate_reach(size: FrameSize, degrees: float, box: Box) -> Box:
    """The smallest box around the turned one."""
    left, top = _sources(size, degrees, box).min(0) - 0.5
    right, bottom = _sources(size, degrees, box).max(0) - 0.5
    return _reach(size, (top, bottom), (left, right), _KERNEL)


def rotate(part: Part, degrees: float, cubic: bool, box: Box) -> np.ndarray:
    """Rotates counter-clockwise about the centre of the frame, keeping its size.

    OpenCV's cubic has a = -0.75 where Pillow's has -1, and its places are rounded to 1/32 pixel (bilinear: before 5.0).
    """
    full_height, full_width = part.size
    top, left, height, width = box
    turn, offset = _rotation(part.size, degrees)
    offset = offset + turn @ np.array([left + 0.5, top + 0.5])  # of the box's first pixel, its middle
    corners = _sources(part.size, degrees, box)
    mask = None
    if corners.min() < 0 or (corners >= (full_width, full_height)).any():
        (cos, sin), x, y = turn[0], np.arange(width), np.arange(height)[:, None]
        source_x = cos * x + sin * y + offset[0]
        source_y = cos * y - sin * x + offset[1]
        outside = (source_x < 0) | (source_x >= full_width) | (source_y < 0) | (source_y >= full_height)
        fill, mask = np.full((height, width, 3), FILL, np.uint8), outside.view(np.uint8)
    matrix = np.column_stack([turn, offset - 0.5 - (part.box[1], part.box[0])])
    flags = (cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    out = _empty(part.frames, box)
    for frame, result in zip(part.frames, out, strict=True):
        cv2.warpAffine(frame, matrix, (width, height), result, flags, cv2.BORDER_REPLICATE)
        if mask is not None:
            cv2.copyTo(fill, mask, result)
    return out
