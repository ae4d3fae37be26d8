"""Which frames of a video make a clip: the published loaders' rules, exact to the index.

Pure functions of the number of frames and, where a rule is random, of a `numpy.random.Generator`. All return int64
frame ids in [0, num_frames). The rules were checked against golden values computed with the published loaders; their
oddities (a last frame that is never reached, 61 frames that count as 64) are kept, since they decide what a model sees.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def _check(num_frames: int, **counts: int) -> None:
    for name, value in {'num_frames': num_frames, **counts}.items():
        if value < 1:
            raise ValueError(f'{name} must be at least 1, not {value}')


def pretrain_clip(
    num_frames: int, rng: np.random.Generator, length: int = 16, stride: int = 4, segments: int = 1
) -> np.ndarray:
    """Clips for pre-training, by the published distillation / VideoMAE loader (golden: data/frames_pretrain).

    The video's possible starts (num_frames - length * stride + 1 of them) are cut into `segments` equal parts and one
    start is drawn in each; a video too short for that many parts gives starts drawn anywhere and sorted, and one of
    length * stride frames or fewer starts at frame 0. Stepping stops before the last frame, which is then repeated.

    Args:
        num_frames: frames in the video, at least 1.
        rng: asked once for `segments` integers, and not at all for a short video.
        length: frames per clip.
        stride: distance between them, in frames.
        segments: clips per video.

    Returns:
        int64 (segments, length).
    """
    _check(num_frames, length=length, stride=stride, segments=segments)
    span = length * stride
    per_segment = (num_frames - span + 1) // segments
    if per_segment > 0:
        starts = np.arange(segments) * per_segment + rng.integers(0, per_segment, size=segments)
    elif num_frames > max(segments, span):
        starts = np.sort(rng.integers(0, num_frames - span + 1, size=segments))
    else:
        starts = np.zeros(segments, np.int64)
    # The loader counts from 1 and steps only while the next position is strictly below num_frames.
    most_steps = np.maximum((num_frames - 2 - starts) // stride, 0)
    steps = np.minimum(np.arange(length)[None, :], most_steps[:, None])
    return (starts[:, None] + stride * steps).astype(np.int64)


def kinetics_train(num_frames: int, rng: np.random.Generator, length: int = 16, stride: int = 4) -> np.ndarray:
    """A fine-tuning clip, by the published Kinetics loader (golden: data/frames_k400_train).

    `length` points spread evenly over a window of length * stride frames, truncated: the spacing is
    stride * length / (length - 1), not `stride`. The window's end is drawn below `num_frames`, so the last frame of a
    long video is never used. A video of at most length * stride frames gives num_frames // stride points over the
    whole of it and then its last frame.

    Returns:
        int64 (length,).
    """
    _check(num_frames, length=length, stride=stride)
    span = length * stride
    if num_frames <= span:
        points = num_frames // stride
        padding = np.full(length - points, num_frames, np.float64)
        ids = np.concatenate([np.linspace(0, num_frames, num=points), padding])
        return np.clip(ids, 0, num_frames - 1).astype(np.int64)
    end = int(rng.integers(span, num_frames))
    ids = np.linspace(end - span, end, num=length)
    return np.clip(ids, end - span, end - 1).astype(np.int64)


def kinetics_test(num_frames: int, length: int = 16, stride: int = 4, clips: int = 5) -> np.ndarray:
    """Test clips, by the published Kinetics loader (golden: data/frames_k400_test).

    Every `stride`-th frame is listed (the last repeated up to `length`) and `clips` windows of `length` are laid evenly
    over the list, their starts truncated. A video of at most length * stride frames gives equal clips. One clip, at
    which the published loader divides by zero, is the window at the start of the video.

    Returns:
        int64 (clips, length).
    """
    _check(num_frames, length=length, stride=stride, clips=clips)
    listed = np.arange(0, num_frames, stride, dtype=np.int64)
    listed = np.pad(listed, (0, max(0, length - len(listed))), mode='edge')
    step = (len(listed) - length) / max(clips - 1, 1)
    starts = np.array([int(clip * step) for clip in range(clips)])
    return listed[starts[:, None] + np.arange(length)]


def _edges(num_frames: int, segments: int) -> list[int]:
    """Boundaries of equal segments of [0, num_frames - 1]: segments + 1 frame ids, half rounded to even."""
    tick = (num_frames - 1) / segments
    return [round(tick * i) for i in range(segments + 1)]


def segments_train(num_frames: int, rng: np.random.Generator, length: int = 16) -> np.ndarray:
    """One random frame from each of `length` equal segments: MVD's Something-Something rule (golden: data/frames_ssv2).

    Both ends of a segment can be drawn, so neighbours share a frame; ids never decrease. VideoMAE's own rule differs.

    Returns:
        int64 (length,).
    """
    _check(num_frames, length=length)
    edges = _edges(num_frames, length)
    return np.array([rng.integers(low, high + 1) for low, high in pairwise(edges)], np.int64)


def segments_test(num_frames: int, length: int = 16, clips: int = 2) -> np.ndarray:
    """Test clips by segments: MVD's Something-Something rule (golden: data/frames_ssv2).

    The video is cut into length * clips segments; clip c takes the middles of segments c, c + clips, c + 2 * clips...
    The published loader does this for 2 clips only. Other counts are ours; one clip takes the middle of each of
    `length` segments.

    Returns:
        int64 (clips, length).
    """
    _check(num_frames, length=length, clips=clips)
    edges = np.array(_edges(num_frames, length * clips), np.int64)
    middles = (edges[:-1] + edges[1:]) // 2
    return np.ascontiguousarray(middles.reshape(length, clips).T)
