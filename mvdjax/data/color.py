"""Random changes of colour, one draw for all frames of a clip. Clips are uint8 (t, h, w, 3) RGB, never modified."""

from __future__ import annotations

import cv2
import numpy as np

from mvdjax.data import clip_ops, clip_tables
from mvdjax.errors import UserError


def hsv_shift(frames: np.ndarray, hue: int, saturation: int, value: int) -> np.ndarray:
    """Adds to OpenCV's 8-bit hue, saturation and value (golden: data/ava_transforms, to one level).

    Args:
        frames: the clip.
        hue: of a circle of 180, which wraps.
        saturation: of 255; sums are clipped to [0, 255].
        value: likewise.

    Returns:
        uint8 of the same shape.
    """
    steps = np.arange(256)
    shifted = [(steps + hue) % 180, (steps + saturation).clip(0, 255), (steps + value).clip(0, 255)]
    table = np.stack(shifted, -1).astype(np.uint8)[None]
    out = np.empty_like(frames, order='C')
    for frame, result in zip(frames, out, strict=True):
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB, dst=result)
    return out


def random_hsv_shift(
    rng: np.random.Generator, frames: np.ndarray, hue: int = 10, saturation: int = 26, value: int = 26
) -> np.ndarray:
    """`hsv_shift` by whole numbers drawn from [-limit, limit]; the defaults are the published AVA training's."""
    shifts = [int(rng.integers(-limit, limit + 1)) for limit in (hue, saturation, value)]
    return hsv_shift(frames, *shifts)


def check_jitter(limits: tuple[float, float, float, float]) -> None:
    """Raises UserError unless these are the limits of a `color_jitter`."""
    if not all(0 <= limit <= 1 for limit in limits[:3]) or not 0 <= limits[3] <= 0.5:
        raise UserError(
            'data options: color_jitter is brightness, contrast and saturation in [0, 1] and hue in [0, 0.5], '
            f'not {tuple(limits)}'
        )


def color_jitter(
    rng: np.random.Generator,
    frames: np.ndarray,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
) -> np.ndarray:
    """Brightness, contrast, saturation and hue, in an order drawn anew for each clip.

    The first three blend with black, the frame's mean grey and the pixel's grey value by a factor uniform in
    [1 - limit, 1 + limit]; the hue turns by a share of the circle uniform in [-limit, limit]. The defaults are those of
    BEVT's images, whose published code draws the order once per run.

    Args:
        rng: asked for the order and four numbers, whatever the limits.
        frames: the clip.
        brightness: limit; 0 leaves it alone, as for the others.
        contrast: likewise.
        saturation: likewise.
        hue: likewise, at most 0.5.

    Returns:
        uint8 of the same shape, `frames` themselves if all limits are 0.
    """
    order = rng.permutation(4)
    draws = rng.uniform(-1, 1, 4)
    box = (0, 0, *frames.shape[1:3])
    for which in order:
        limit = (brightness, contrast, saturation, hue)[which]
        if not limit:
            continue
        change = float(limit * draws[which])
        if which == 0:
            frames = clip_tables.by_table(frames, clip_tables.brightness(1 + change), box)
        elif which == 1:
            table = clip_tables.contrast(clip_tables.Mapped(frames), 1 + change)
            frames = clip_tables.by_table(frames, table, box)
        elif which == 2:
            frames = clip_ops.color(frames, 1 + change, box)
        else:
            frames = hsv_shift(frames, round(180 * change), 0, 0)
    return frames
