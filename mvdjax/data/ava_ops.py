"""AVA clips and their person boxes: the published transforms of both together.

Boxes are float32 (n, 4): x1, y1, x2, y2 in pixels. x2 and y2 are the last pixel inside, so a box is x2 - x1 + 1 wide,
as in the published code. Clips are uint8 (t, h, w, 3). Frames of a clip: `sampling.key_second_window`. Colours:
`color.random_hsv_shift`. Source: the golden cases data/ava_{dataset,transforms,box_ops}.
"""

from __future__ import annotations

import cv2
import numpy as np

SHORT_SIDE = 256
CROP = 224


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes cut to the pixels of an image."""
    return boxes.clip(0, np.array([width - 1, height - 1] * 2, np.float32))


def resized_size(height: int, width: int, short_side: int = SHORT_SIDE, swap: bool = False) -> tuple[int, int]:
    """(height, width) with a short side of `short_side`, the long one truncated.

    Args:
        height: of the frames.
        width: of the frames.
        short_side: in pixels.
        swap: as the published code: frames whose short side fits already come out with height and width exchanged.
    """
    if min(height, width) == short_side:
        return (width, height) if swap else (height, width)
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def resize(frames: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Frames resized bilinearly, without antialiasing, to (height, width), and the boxes with them."""
    height, width = size
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, result in zip(frames, out, strict=True):
        cv2.resize(frame, (width, height), dst=result, interpolation=cv2.INTER_LINEAR)
    ratio = np.array([width / frames.shape[2], height / frames.shape[1]] * 2, np.float32)
    return out, boxes * ratio


def crop(frames: np.ndarray, boxes: np.ndarray, top: int, left: int, size: int = CROP) -> tuple[np.ndarray, np.ndarray]:
    """A square of the frames, a view, and the boxes in it, cut to [0, size].

    Boxes outside the square stay, without area, as published: their labels count in the loss.
    """
    moved = boxes - np.array([left, top] * 2, np.float32)
    return frames[:, top : top + size, left : left + size], moved.clip(0, size)


def flip(frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both mirrored left and right."""
    width = frames.shape[2]
    mirrored = np.stack([width - boxes[:, 2] - 1, boxes[:, 1], width - boxes[:, 0] - 1, boxes[:, 3]], axis=1)
    return np.ascontiguousarray(frames[:, :, ::-1]), mirrored


def extend(boxes: np.ndarray, height: int, width: int, share: tuple[float, float] = (0.1, 0.05)) -> np.ndarray:
    """Boxes made larger for evaluation, cut to the image.

    Args:
        boxes: (n, 4).
        height: of the image.
        width: of the image.
        share: of each box's width and height that is added, half of it on either side.
    """
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    grow = sides * np.array(share, np.float32) / 2
    return clip_boxes(np.concatenate([boxes[:, :2] - grow, boxes[:, 2:] + grow], axis=1), height, width)


def jitter(
    boxes: np.ndarray,
    uniform: np.ndarray,
    height: int,
    width: int,
    outward: tuple[float, float] = (0.2, 0.1),
    inward: tuple[float, float] = (0.1, 0.05),
) -> np.ndarray:
    """Boxes with each edge moved for training, cut to the image.

    Args:
        boxes: (n, 4).
        uniform: (4, n) draws in [0, 1): for x1, y1, x2, y2. 0 moves an edge left or up as far as it goes.
        height: of the image.
        width: of the image.
        outward: how far an edge moves out, as shares of each box's width and height.
        inward: how far in.

    Returns:
        float32 (n, 4), at least a pixel wide and high.
    """
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    out, into = sides * np.array(outward, np.float32), sides * np.array(inward, np.float32)
    draws = uniform.T.astype(np.float32)
    first = boxes[:, :2] - out + draws[:, :2] * (out + into)
    last = boxes[:, 2:] - into + draws[:, 2:] * (out + into)
    return clip_boxes(np.concatenate([first, np.maximum(last, first + 1)], axis=1), height, width)
