"""Pillow's operations that map values, for whole clips: 256-entry tables, which agree with Pillow's to the byte.

Tables can be composed, and what a frame's histogram becomes follows from its table: `Mapped` is a clip seen through
tables that have not been applied yet, so that a chain of such operations looks at the pixels once and makes only those
that are wanted.

A clip is uint8 (t, h, w, 3), C-contiguous; it is never modified. A table is uint8 (256,) for the clip, (t, 256) for
each frame, or (t, 256, 3) for each of its channels. A box is (top, left, height, width) inside the frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

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


def by_table(frames: np.ndarray, table: np.ndarray, box: Box) -> np.ndarray:
    """Maps the values inside the box through a table."""
    part, out = cut(frames, box), np.empty((len(frames), box[2], box[3], 3), np.uint8)
    if table.ndim == 1 and np.array_equal(table, ~_RAMP):  # ten times faster than looking values up, as the next
        return np.invert(part, out=out)
    if table.ndim == 1 and np.array_equal(table, _RAMP & table[-1]):
        return np.bitwise_and(part, table[-1], out=out)
    tables = np.broadcast_to(table, (len(frames), 256)) if table.ndim == 1 else table
    if table.ndim == 3:
        tables = tables[:, None]  # as OpenCV wants a table of several channels
    for frame, frame_table, result in zip(part, tables, out, strict=True):
        cv2.LUT(frame, frame_table, dst=result)
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
        return Mapped(self.frames, table if self.table is None else compose(self.table, table))

    def made(self, box: Box | None = None) -> np.ndarray:
        """The pixels inside a box, or all; a view of the clip where nothing has to be mapped."""
        box = (0, 0, *self.frames.shape[1:3]) if box is None else box
        return cut(self.frames, box) if self.table is None else by_table(self.frames, self.table, box)

    def histograms(self) -> np.ndarray:
        """How often each value comes: int64 (t, 256, 3)."""
        found = [[cv2.calcHist([f], [c], None, [256], [0, 256]).ravel() for c in range(3)] for f in self.frames]
        counts = np.array(found, np.int64).transpose(0, 2, 1)
        if self.table is None:
            return counts
        mapped = np.zeros_like(counts)
        np.add.at(mapped, (np.arange(len(counts))[:, None, None], _wide(self.table), np.arange(3)), counts)
        return mapped

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
    ramp = Image.fromarray(_RAMP[None])
    tables = []
    for frame in clip.made():
        mean = int(cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0] + 0.5)
        tables.append(np.asarray(Image.blend(Image.new('L', (256, 1), mean), ramp, factor))[0])
    return np.stack(tables)


def brightness(factor: float) -> np.ndarray:
    """Blends the clip with black, factor 0 is black, 1 the clip, more exceeds it: (256,)."""
    return table_of(lambda image: ImageEnhance.Brightness(image).enhance(factor))
