"""Decoded frames: into one RGB array, upright; and which of them can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from mvdjax.data.containers import check_size
from mvdjax.data.watchdog import UnreadableError

# The largest array `read_frames` makes.
MAX_BYTES = 4 * 1024**3


# Makes what is kept of a frame, uint8 (h, w, 3), RGB, upright; alike in shape for all of a video.
Each = Callable[[np.ndarray], np.ndarray]


class Sink:
    """Collects the wanted frames as RGB, or what `each` makes of them while they are in the processor's cache."""

    def __init__(self, ids: np.ndarray, keys: Iterable[int], each: Each | None = None) -> None:
        """`keys` names the frames of `np.unique(ids)`, as `offer` will."""
        self._each = each
        unique, inverse = np.unique(ids, return_inverse=True)
        self._missing = {key: np.flatnonzero(inverse == i) for i, key in zip(range(len(unique)), keys, strict=True)}
        self._count = len(ids)
        self._out: np.ndarray | None = None
        self._size: tuple[int, int] | None = None
        self._matrix: np.ndarray | None = None
        self._reformatter = VideoReformatter()

    def offer(self, key: int | None, frame: av.VideoFrame) -> None:
        """Converts the frame if `key` is wanted. Raises `UnreadableError` where its size differs from the others'."""
        places = self._missing.pop(key, None) if key is not None else None
        if places is None:
            return
        check_size(frame.width, frame.height)
        if self._size is None:
            if self._count * frame.height * frame.width * 3 > MAX_BYTES:
                raise UnreadableError(
                    f'is too large to give {self._count} frames of {frame.width} x {frame.height} at once'
                )
            self._size = (frame.height, frame.width)
            self._matrix = display_matrix(frame)
        if (frame.height, frame.width) != self._size:
            raise UnreadableError('changes its frame size on the way')
        try:
            plane = self._reformatter.reformat(frame, format='rgb24', threads=1).planes[0]
        except ValueError as error:
            raise UnreadableError(f'has pixels that cannot be converted: {error}') from error
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        made = rows[: frame.height, : frame.width * 3]
        if self._each:
            whole = _upright(made.reshape(1, *self._size, 3), self._matrix)[0]
            made = self._each(whole if self._matrix is None else np.ascontiguousarray(whole))
        if self._out is None:
            self._out = np.empty((self._count, *made.shape), made.dtype)
        self._out[places] = made

    def missing(self) -> bool:
        """Whether a wanted frame has not come."""
        return bool(self._missing)

    def result(self) -> np.ndarray:
        """uint8 (ids, h, w, 3), upright, or what `each` made, stacked; (0, 0, 0, 3) if nothing was wanted."""
        if self._out is None or self._size is None:
            return np.empty((0, 0, 0, 3), np.uint8)
        if self._each:
            return self._out
        frames = self._out.reshape(self._count, *self._size, 3)
        return np.ascontiguousarray(_upright(frames, self._matrix))


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """The 2 x 2 part of the frame's display matrix, if it turns the frame (upside down alone is not seen)."""
    if frame.rotation == 0:  # a look at `side_data` ties the frame into a cycle: it would outlive this call
        return None
    data: Any = frame.side_data.get('DISPLAYMATRIX')
    return None if data is None else np.frombuffer(memoryview(data), np.int32)[:9].reshape(3, 3)[:2, :2]


def turns(matrix: np.ndarray | None) -> tuple[bool, bool, bool]:
    """Whether a display matrix that takes (x, y) to (x, y) @ matrix swaps the axes, then mirrors left, then down."""
    if matrix is None:
        return False, False, False
    size = np.abs(matrix.astype(np.int64))
    swapped = bool(size[0, 1] + size[1, 0] > size[0, 0] + size[1, 1])
    if swapped:
        matrix = matrix[::-1]
    return swapped, bool(matrix[0, 0] < 0), bool(matrix[1, 1] < 0)


def _upright(frames: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turns and mirrors (n, h, w, 3) by a display matrix, in quarters."""
    swapped, left, down = turns(matrix)
    if swapped:
        frames = frames.swapaxes(1, 2)
    if left:
        frames = frames[:, :, ::-1]
    return frames[:, ::-1] if down else frames


class Damage:
    """Which frames of a full decode cannot be trusted: from a damaged one to the next keyframe.

    The pictures that FFmpeg makes up for what is missing depend on more than the file.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.hurt: set[int] = set()
        self._hurting = False
        self._run = 0  # the first of the B-frames that came last: they may refer to the frame that comes next

    def sound(self) -> int:
        """The number of frames up to the end, or to where damage begins that lasts to the end.

        Raises:
            UnreadableError: there is none.
        """
        sound = self.frames
        while sound - 1 in self.hurt:
            sound -= 1
        if self.frames and not sound:
            raise UnreadableError('is damaged from its first frame to its last')
        return sound

    def packet(self) -> None:
        """A packet gave an error."""
        self._hurting = True

    def frame(self, frame: av.VideoFrame) -> None:
        """A frame came."""
        if frame.is_corrupt:
            self._hurting = True
            self.hurt.update(range(self._run, self.frames))
        elif frame.key_frame:
            self._hurting = False
        if self._hurting:
            self.hurt.add(self.frames)
        self.frames += 1
        if frame.pict_type != PictureType.B:
            self._run = self.frames
