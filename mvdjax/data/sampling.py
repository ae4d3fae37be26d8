"""Which frames of a video make a clip: the published loaders' rules, exact to the index.

Pure functions of the number of frames and, where a rule is random, of a `numpy.random.Generator`. All return int64
frame ids in [0, num_frames). The rules were checked against golden values computed with the published loaders; their
oddities (a last frame that is never reached, 61 frames that count as 64) are kept, since they decide what a model sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from mvdjax.errors import UserError


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
    starts = _random_starts(num_frames, rng, span, segments)
    if starts is None:
        starts = np.zeros(segments, np.int64)
    # The loader counts from 1 and steps only while the next position is strictly below num_frames.
    most_steps = np.maximum((num_frames - 2 - starts) // stride, 0)
    steps = np.minimum(np.arange(length)[None, :], most_steps[:, None])
    return (starts[:, None] + stride * steps).astype(np.int64)


def _random_starts(num_frames: int, rng: np.random.Generator, span: int, parts: int) -> np.ndarray | None:
    """Starts of windows of `span` frames, one in each of `parts` equal parts of those possible; drawn anywhere and
    sorted where there are fewer than parts; None where the published loaders draw nothing.
    """
    spare = num_frames - span + 1
    part = spare // parts
    if part > 0:
        return np.arange(parts) * part + rng.integers(0, part, size=parts)
    if num_frames > max(parts, span):
        return np.sort(rng.integers(0, spare, size=parts))
    return None


def kinetics_train(
    num_frames: int, rng: np.random.Generator, length: int = 16, stride: int = 4, segments: int = 1
) -> np.ndarray:
    """A fine-tuning clip, by the published Kinetics loader (golden: data/frames_k400_train).

    `length` points spread evenly over a window of length * stride frames, truncated: the spacing is
    stride * length / (length - 1), not `stride`. The window's end is drawn below `num_frames`, so the last frame of a
    long video is never used. A video of at most length * stride frames gives num_frames // stride points over the
    whole of it and then its last frame. With several segments the rule is applied to equal parts of the video.

    Args:
        num_frames: frames in the video, at least 1.
        rng: asked for one integer per segment that is longer than the window.
        length: frames per segment.
        stride: window length / `length`.
        segments: equal parts of the video; the published runs have 1.

    Returns:
        int64 (segments * length,): one clip, segment after segment.
    """
    _check(num_frames, length=length, stride=stride, segments=segments)
    part = max(num_frames // segments, 1)
    clips = [_kinetics_window(part, rng, length, stride) + i * part for i in range(segments)]
    return np.minimum(np.concatenate(clips), num_frames - 1)


def _kinetics_window(num_frames: int, rng: np.random.Generator, length: int, stride: int) -> np.ndarray:
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

    Both ends of a segment can be drawn, so neighbours share a frame; ids never decrease. BEVT trains by the same rule
    (golden: bevt/frame_sampling); VideoMAE's differs, see `floor_segments_train`.

    Returns:
        int64 (length,).
    """
    _check(num_frames, length=length)
    edges = _edges(num_frames, length)
    return np.array([rng.integers(low, high + 1) for low, high in pairwise(edges)], np.int64)


def segments_test(num_frames: int, length: int = 16, clips: int = 2) -> np.ndarray:
    """Test clips by segments: MVD's Something-Something rule (golden: data/frames_ssv2).

    The video is cut into length * clips segments; clip c takes the middles of segments c, c + clips, c + 2 * clips...
    MVD's loader does this for 2 clips only. One clip, the middles of `length` segments, is BEVT's test (golden:
    bevt/frame_sampling). Other counts are ours.

    Returns:
        int64 (clips, length).
    """
    _check(num_frames, length=length, clips=clips)
    edges = np.array(_edges(num_frames, length * clips), np.int64)
    middles = (edges[:-1] + edges[1:]) // 2
    return np.ascontiguousarray(middles.reshape(length, clips).T)


def floor_segments_train(num_frames: int, rng: np.random.Generator, length: int = 16) -> np.ndarray:
    """One random frame from each of `length` segments: VideoMAE's Something-Something rule (golden: data/frames_ssv2).

    Segments are num_frames // length frames long and do not overlap; frames left over at the end are never used. A
    video of fewer than `length` frames gives its first frame `length` times, as published; `segments_train` does not.

    Returns:
        int64 (length,).
    """
    _check(num_frames, length=length)
    size = num_frames // length
    if size == 0:
        return np.zeros(length, np.int64)
    return np.arange(length) * size + rng.integers(0, size, size=length)


def floor_segments_test(num_frames: int, length: int = 16, clips: int = 2) -> np.ndarray:
    """Test clips by segments: VideoMAE's Something-Something rule (golden: data/frames_ssv2).

    length * clips points are spread over [0, num_frames), each at a share i / (length * clips) of it, truncated; clip c
    takes points c, c + clips, c + 2 * clips... The published loader does this for 2 clips only.

    Returns:
        int64 (clips, length).
    """
    _check(num_frames, length=length, clips=clips)
    tick = num_frames / length
    starts = np.array([[int(clip * tick / clips + tick * i) for i in range(length)] for clip in range(clips)], np.int64)
    return starts


def windows_train(
    num_frames: int, rng: np.random.Generator, length: int = 16, stride: int = 8, clips: int = 1
) -> np.ndarray:
    """Random windows, by BEVT's loader: its pre-training clips and Kinetics fine-tuning (golden: bevt/frame_sampling).

    Every `stride`-th frame of a window of length * stride frames; one start is drawn in each of `clips` equal parts of
    the possible starts. A video shorter than the window starts at its first frame and wraps round.

    Args:
        num_frames: frames in the video, at least 1.
        rng: asked once for `clips` integers, and not at all for a short video.
        length: frames per clip.
        stride: distance between them, in frames.
        clips: windows per video.

    Returns:
        int64 (clips, length).
    """
    _check(num_frames, length=length, stride=stride, clips=clips)
    span = length * stride
    starts = _random_starts(num_frames, rng, span, clips)
    if starts is None:
        spare = max(0, num_frames - span + 1)
        starts = np.array([round(clip * spare / clips) for clip in range(clips)])
    return _wrap(starts, length, stride, num_frames)


def windows_test(num_frames: int, length: int = 32, stride: int = 2, clips: int = 4) -> np.ndarray:
    """Test windows, by BEVT's loader: each in the middle of an equal part of the starts (golden: bevt/frame_sampling).

    A video shorter than the window gives equal clips, from its first frame on and round again.

    Returns:
        int64 (clips, length).
    """
    _check(num_frames, length=length, stride=stride, clips=clips)
    spare = num_frames - length * stride + 1
    step = spare / clips
    starts = [int(clip * step + step / 2) if spare > 0 else 0 for clip in range(clips)]
    return _wrap(np.array(starts), length, stride, num_frames)


def _wrap(starts: np.ndarray, length: int, stride: int, num_frames: int) -> np.ndarray:
    return (starts[:, None] + stride * np.arange(length)).astype(np.int64) % num_frames


def centre_window(num_frames: int, length: int = 16, stride: int = 4) -> np.ndarray:
    """Every `stride`-th frame around the middle, by the published AVA code (golden: data/ava_transforms).

    The window starts one frame later than a centred one would; positions before the first or after the last frame give
    that frame.

    Returns:
        int64 (length,).
    """
    _check(num_frames, length=length, stride=stride)
    start = (num_frames - length * stride) // 2 + 1
    return np.clip(start + stride * np.arange(length), 0, num_frames - 1)


def key_second_window(second: int, frames_of: Callable[[int], int], length: int = 16, stride: int = 4) -> np.ndarray:
    """The frames of an AVA clip, from files of one second each (golden: data/ava_dataset).

    Whole files are taken on both sides of the key frame, which is the first frame of file `second`, until each side has
    half the window; the longer side is cut to the shorter, far from the key frame, and `centre_window` picks from it.

    Args:
        second: of the key frame, and name of the file that starts with it.
        frames_of: number of frames in the file of a second; asked only for the files that are needed.
        length: frames per clip.
        stride: distance between them, in frames.

    Returns:
        int64 (length, 2): the second whose file to read, and the frame in that file.

    Raises:
        ValueError: a file that is needed has no frames.
    """
    half = length * stride // 2
    sides: list[list[tuple[int, int]]] = []
    for first, step, wanted in ((second - 1, -1, half), (second, 1, length * stride - half)):
        side: list[tuple[int, int]] = []  # outwards from the key frame
        file = first
        while len(side) < wanted:
            count = frames_of(file)
            _check(count)
            side += [(file, i) for i in range(count)][::step]
            file += step
        sides.append(side)
    shorter = min(len(side) for side in sides)
    frames = [*sides[0][:shorter][::-1], *sides[1][:shorter]]
    return np.array(frames, np.int64)[centre_window(len(frames), length, stride)]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a data set is sampled in fine-tuning.

    Attributes:
        train: (frames in the video, rng, length, stride) -> (length,) frame ids.
        test: (frames in the video, length, stride, clips) -> (clips, length) frame ids.
    """

    train: Callable[[int, np.random.Generator, int, int], np.ndarray]
    test: Callable[[int, int, int, int], np.ndarray]


RULES = {
    'dense': Rule(kinetics_train, kinetics_test),  # MVD and VideoMAE: Kinetics, UCF101, HMDB51
    'segments': Rule(  # MVD and BEVT: Something-Something
        lambda n, rng, length, stride: segments_train(n, rng, length),
        lambda n, length, stride, clips: segments_test(n, length, clips),
    ),
    'floor_segments': Rule(  # VideoMAE: Something-Something
        lambda n, rng, length, stride: floor_segments_train(n, rng, length),
        lambda n, length, stride, clips: floor_segments_test(n, length, clips),
    ),
    'windows': Rule(  # BEVT: Kinetics
        lambda n, rng, length, stride: windows_train(n, rng, length, stride)[0],
        windows_test,
    ),
}


def check_rule(name: str) -> None:
    """Raises UserError unless `name` is a key of `RULES`."""
    if name not in RULES:
        raise UserError(f'sampling must be one of {", ".join(RULES)}, not {name!r}')
