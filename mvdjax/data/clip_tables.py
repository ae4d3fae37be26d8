"""Pillow's operations that map values, for whole clips: 256-entry tables, which agree with Pillow's to the byte.

Tables can be composed, and what a frame's histogram becomes follows from its table: `Mapped` is a clip seen through
tables that have not been applied yet, so that a chain of such operations looks at the pixels once and makes only those
that are wanted.

A clip is uint8 (t, h, w, 3), C-contiguous; it is never modified. A table is uint8 (256,) for the clip, (t, 256) for
each frame, or (t, 256, 3) for each of its channels. A box is (top, left, height, width) inside the frame.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from mvdjax.data.ops import Box

_RAMP = np.arange(256, dtype=np.uint8)


def cut(frames: np.ndarray, box: Box) -> np.ndarray:
    """The part of each frame inside `box`, a view."""
    top, left, height, width = box
    return frames[:, top : top + height, left : left + width]


def table_of(apply: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """The table of a Pillow operation that maps each value by itself and all channels alike: uint8 (256,)."""
    ramp = np.repeat(_RAMP[None, :, None], 3, axis=2)
    return np.asarray(apply(Image.fromarray(ramp)))[0, :, 0].copy()


# Since OpenCV 5 tables may have 65536 entries: two values at once, which takes less than half the time.
_PAIRS = int(cv2.__version__.split('.', 1)[0]) >= 5


def _pairs(table: np.ndarray) -> np.ndarray:
    """The table of two neighbouring bytes, uint16 (65536,), whichever comes first."""
    wide = table.astype(np.uint16)
    return (wide[:, None] << 8 | wide).ravel()


def mapped(frames: np.ndarray, table: np.ndarray | None, box: Box) -> Iterator[np.ndarray]:
    """What is inside the box, its values mapped through a table, frame by frame; each lasts until the next one."""
    if table is None:
        yield from cut(frames, box)
        return
    top, left, height, width = box
    if table.ndim == 1 and ((table == ~_RAMP).all() or (table == _RAMP & table[-1]).all()):
        # Inverted, or fewer bits: arithmetic is several times faster than looking values up.
        result, inverted = np.empty((height, width, 3), np.uint8), table[0] == 255
        for frame in cut(frames, box):
            yield np.invert(frame, out=result) if inverted else np.bitwise_and(frame, table[-1], out=result)
        return
    worth = table.ndim == 1 or height * width * 3 > 2**16  # a frame's own table of pairs has to be made first
    in_pairs = worth and _PAIRS and table.ndim < 3 and not frames.strides[1] % 2 and frames.strides[2:] == (3, 1)
    in_pairs = in_pairs and (width % 2 == 0 or frames.shape[2] > width)
    wide = width + width % 2 if in_pairs else width
    first = min(left, frames.shape[2] - wide)
    part = cut(frames, (top, first, height, wide))
    out = np.empty((height, wide, 3), np.uint8)
    result = out[:, left - first :][:, :width]
    if in_pairs:
        pairs, target = (
            part.reshape(len(part), height, wide * 3).view(np.uint16),
            out.reshape(height, -1).view(np.uint16),
        )
        doubled = itertools.repeat(_pairs(table)) if table.ndim == 1 else map(_pairs, table)
        for frame, frame_table in zip(pairs, doubled, strict=False):
            cv2.LUT(frame, frame_table, dst=target)
            yield result
        return
    tables = np.broadcast_to(table, (len(part), 256)) if table.ndim == 1 else table
    if table.ndim == 3:
        tables = tables[:, None]  # as OpenCV wants a table of several channels
    for frame, frame_table in zip(part, tables, strict=True):
        cv2.LUT(frame, frame_table, dst=out)
        yield result


def by_table(frames: np.ndarray, table: np.ndarray, box: Box) -> np.ndarray:
    """Maps the values inside the box through a table."""
    out = np.empty((len(frames), box[2], box[3], 3), np.uint8)
    for result, frame in zip(out, mapped(frames, table, box), strict=True):
        result[...] = frame
    return out


def _wide(table: np.ndarray) -> np.ndarray:
    """A table as (1 or t, 256, 1 or 3)."""
    return table.reshape(-1, 256, table.shape[2] if table.ndim == 3 else 1)


def compose(first: np.ndarray, then: np.ndarray) -> np.ndarray:
    """The table of two, one after the other."""
    if then.ndim == 1:
        return then[first]
    second, values = np.broadcast_arrays(_wide(then), _wide(first))
    both = np.take_along_axis(second, values, axis=1)
    return both if both.shape[2] == 3 else both[..., 0]


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A clip whose values a table still has to map.

    Attributes:
        frames: the clip.
        table: None for none.
    """

    frames: np.ndarray
    table: np.ndarray | None = None

    def then(self, table: np.ndarray) -> Mapped:
        """With one more table."""
        if (table == (_RAMP if table.ndim < 3 else _RAMP[:, None])).all():  # a frame with black and white in it, mostly
            return self
        return Mapped(self.frames, table if self.table is None else compose(self.table, table))

    def made(self, box: Box | None = None) -> np.ndarray:
        """The pixels inside a box, or all; a view of the clip where nothing has to be mapped."""
        box = (0, 0, *self.frames.shape[1:3]) if box is None else box
        return cut(self.frames, box) if self.table is None else by_table(self.frames, self.table, box)

    def each(self, box: Box) -> Iterator[np.ndarray]:
        """The same frame by frame, each of which lasts until the next one."""
        return mapped(self.frames, self.table, box)

    def histograms(self) -> np.ndarray:
        """How often each value comes: int64 (t, 256, 3)."""
        found = [cv2.calcHist([f], [c], None, [256], [0, 256]) for f in self.frames for c in range(3)]
        counts = np.array(found).reshape(-1, 3, 256).transpose(0, 2, 1)  # float32, in which they are exact
        if self.table is None:
            return counts.astype(np.int64)
        bins = _wide(self.table) + 256 * np.arange(counts.size // 256).reshape(-1, 1, 3)
        summed = np.bincount(bins.ravel(), counts.ravel(), counts.size)
        return summed.astype(np.int64).reshape(-1, 3, 256).transpose(0, 2, 1)

    def extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """The darkest and the lightest value of each channel of each frame: int64 (t, 1, 3) each."""
        if self.table is None:  # columns first: neighbours in memory
            columns = (self.frames.min(1), self.frames.max(1))
            return columns[0].min(1)[:, None].astype(np.int64), columns[1].max(1)[:, None].astype(np.int64)
        present = self.histograms() > 0
        return present.argmax(1)[:, None], 255 - present[:, ::-1].argmax(1)[:, None]


def auto_contrast(clip: Mapped) -> np.ndarray:
    """Stretches each channel of each frame from its darkest and lightest value to 0 and 255: (t, 256, 3)."""
    low, high = clip.extremes()
    values = np.arange(256)[None, :, None]
    scale = 255.0 / np.maximum(high - low, 1)
    stretched = (values * scale - low * scale).clip(0, 255).astype(np.uint8)
    return np.where(high > low, stretched, values.astype(np.uint8))


def equalize(clip: Mapped) -> np.ndarray:
    """Flattens the histogram of each channel of each frame, by Pillow's integer rule: (t, 256, 3)."""
    counts = clip.histograms()
    lightest = 255 - (counts > 0)[:, ::-1].argmax(1)[:, None]
    step = (counts.sum(1, keepdims=True) - np.take_along_axis(counts, lightest, 1)) // 255
    below = counts.cumsum(1) - counts
    flat = ((step // 2 + below) // np.maximum(step, 1)).clip(0, 255)
    return np.where(step > 0, flat, np.arange(256)[None, :, None]).astype(np.uint8)


def contrast(clip: Mapped, factor: float) -> np.ndarray:
    """Blends each frame with its mean grey, factor 0 is all grey, 1 the frame, more exceeds it: (t, 256).

    The mean is of OpenCV's grey values. They differ from Pillow's in few pixels, so a mean next to a half may round the
    other way, and the frame be one level lighter or darker.
    """
    whole = (0, 0, *clip.frames.shape[1:3])
    greys = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in mapped(clip.frames, clip.table, whole))
    means = np.array([[int(cv2.mean(grey)[0] + 0.5)] for grey in greys], np.uint8)
    grey, ramp = (Image.fromarray(np.ascontiguousarray(np.broadcast_to(v, (len(means), 256)))) for v in (means, _RAMP))
    return np.asarray(Image.blend(grey, ramp, factor))


def brightness(factor: float) -> np.ndarray:
    """Blends the clip with black, factor 0 is black, 1 the clip, more exceeds it: (256,)."""
    return table_of(lambda image: ImageEnhance.Brightness(image).enhance(factor))
