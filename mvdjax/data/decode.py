"""Video and image files to uint8 RGB arrays: exact frame indices, little work, one error type for bad files.

The frames of a video are counted in presentation order, as a full decode from the start would give them; the
container's own frame count and rate are never trusted. Where the container stores timestamps, the index is read
without decoding and only the packets that the wanted frames need are decoded; everywhere else, and whenever anything
is amiss, the video is decoded and counted from its start. Files are opened, read and closed within each call; only the
indices of long videos are remembered.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mvdjax.data import containers, packets
from mvdjax.data.watchdog import UnreadableError, Watch

_BAD_VIDEO = (av.FFmpegError, OSError, MemoryError, UnreadableError)
# All that Pillow's decoders were seen to raise on damaged files.
_BAD_IMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, MemoryError, struct.error),
)
# Others would be guessed from the contents too, and one of them (EPS) starts a program.
_IMAGES = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'PPM', 'TIFF', 'JPEG2000')


@dataclass(frozen=True)
class Blob:
    """An encoded file that is in memory: out of a pack, or from an object store.

    Attributes:
        name: what messages call it, such as the path it was fetched from.
        data: all of its bytes.
    """

    name: str
    data: bytes = field(repr=False)


Media = str | Path | Blob


@dataclass(frozen=True)
class Pictures:
    """A video whose frames are JPEG pictures that can be read one by one: out of a pack.

    Attributes:
        frames: how many there are.
        read: (n,) frame numbers -> the bytes of each. Raises UnreadableError, OSError.
        whole: the video in a container, for when that fails. Raises DecodeError.
    """

    frames: int
    read: Callable[[np.ndarray], list[bytes]]
    whole: Callable[[], Blob]


_INDICES = packets.IndexCache()


class DecodeError(Exception):
    """A file that cannot be read as what it should be.

    Attributes:
        path: the file.
        reason: what is wrong with it, such as 'has no video stream'.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f'{path} {reason}')
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str | Path, str]]:
        return DecodeError, (self.path, self.reason)  # so that it survives the way back from a worker process


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` found out by reading the file.

    Attributes:
        frames: as many as `read_frames` offers to `pick`, unless a damaged part shows only when decoded.
        width: of the frames `read_frames` returns (rotation applied), in pixels.
        height: likewise.
        fps: mean rate by the timestamps, in frames a second; the container's claim where it stores none; 0 if unknown.
        codec: FFmpeg's name, such as 'h264'.
        container: FFmpeg's name, such as 'mov,mp4,m4a,3gp,3g2,mj2'.
    """

    frames: int
    width: int
    height: int
    fps: float
    codec: str
    container: str


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableError):
        return str(error)
    text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return f'cannot be decoded: {text}'


def _name(media: Media) -> str | Path:
    return media.name if isinstance(media, Blob) else media


def _source(media: Media) -> Path | bytes:
    """The path, if it is a file with something in it, or a blob's bytes.

    Raises:
        DecodeError: there is nothing to read.
    """
    if isinstance(media, Blob):
        if not media.data:
            raise DecodeError(media.name, 'is empty')
        return media.data
    path, file = media, Path(media)
    try:
        if file.is_dir():
            raise DecodeError(path, 'is a directory')
        if not file.is_file():
            raise DecodeError(path, 'is not a regular file' if file.exists() else 'does not exist')
        if file.stat().st_size == 0:
            raise DecodeError(path, 'is empty')
    except (OSError, ValueError) as error:  # a name too long or with a zero byte, no permission
        raise DecodeError(path, f'cannot be opened: {error}') from error
    return file


class _Picker:
    """Calls the caller's `pick` once per frame count."""

    def __init__(self, pick: Callable[[int], np.ndarray]) -> None:
        self._pick = pick
        self._answers: dict[int, np.ndarray] = {}

    def __call__(self, frames: int) -> np.ndarray:
        if frames not in self._answers:
            ids = np.asarray(self._pick(frames))
            if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
                raise ValueError(f'pick must return a vector of integers, not {ids.dtype} of shape {ids.shape}')
            self._answers[frames] = ids.astype(np.int64)
        return self._answers[frames]


def _check_range(ids: np.ndarray, frames: int) -> None:
    if ids.size and not (ids.min() >= 0 and ids.max() < frames):
        raise ValueError(f'pick returned frames {ids.min()} to {ids.max()} of a video of {frames}')


def read_frames(media: Media | Pictures, pick: Callable[[int], np.ndarray]) -> np.ndarray:
    """Decodes the frames that `pick` chooses.

    Args:
        media: a local video file, one in memory, or pictures.
        pick: gets the number of decodable frames (at least 1) and returns integer indices into them, in any order,
            repeats allowed. It is called again if decoding shows another number than the packets promised.

    Returns:
        uint8 (len(indices), h, w, 3), RGB, turned upright where the file says so. No indices give (0, h, w, 3) with
        h = w = 0.

    Raises:
        DecodeError: the file is not a readable video. A damaged one counts as the frames that can be had from it.
        ValueError: an index out of range, or indices that are no integer vector.
    """
    picker = _Picker(pick)
    if isinstance(media, Pictures):
        with suppress(*_BAD_VIDEO):
            return _read_pictures(media, picker)
        media = media.whole()  # overcomes what is wrong, or has the words for it
    with _watched(media) as (source, watch):
        return _read(source, watch, picker)[0]


def _read_pictures(pictures: Pictures, picker: _Picker) -> np.ndarray:
    ids = picker(pictures.frames)
    _check_range(ids, pictures.frames)
    wanted = np.unique(ids)
    return packets.decode_pictures(zip(wanted.tolist(), pictures.read(wanted), strict=True), ids, Watch())


@contextmanager
def _watched(media: Media) -> Iterator[tuple[Path | bytes, Watch]]:
    """What to read, watched; all that reading may raise becomes a DecodeError."""
    name, source = _name(media), _source(media)
    try:
        yield source, Watch()
    except _BAD_VIDEO as error:
        raise DecodeError(name, _reason(error)) from error


def _read(source: Path | bytes, watch: Watch, picker: _Picker) -> tuple[np.ndarray, packets.Index]:
    """The frames that `picker` chooses, and the index that was found on the way."""
    known = None if isinstance(source, bytes) else _INDICES.get(source)
    with containers.open_video(source, watch) as video:
        index = known or packets.read_index(video)
        if known is None and not isinstance(source, bytes):
            _INDICES.put(source, index)
        if index.exact:
            ids = picker(index.frames)
            _check_range(ids, index.frames)
            try:
                return packets.decode_ranges(video, index, ids, unread=known is not None), index
            except _BAD_VIDEO:
                pass  # whatever is wrong shows again, or is overcome, when decoding from the start
    return _read_counted(source, watch, picker, index.frames), index


def _read_counted(source: Path | bytes, watch: Watch, picker: _Picker, expected: int) -> np.ndarray:
    """Decodes from the first packet, counting; again if the count is not what was expected (0: not known)."""
    while True:
        # Until the count is confirmed, an index out of range is the guess's fault and not the caller's.
        ids = picker(expected) if expected else np.zeros(0, np.int64)
        with containers.open_video(source, watch) as video:
            frames, count = packets.decode_all(video, ids)
        if count == 0:
            raise UnreadableError('holds no decodable frame')
        if count == expected:
            _check_range(ids, count)
            return frames
        expected = count


def probe(media: Media) -> VideoInfo:
    """Reads a video's index and its first frame.

    Raises:
        DecodeError: as `read_frames`.
    """
    counts: list[int] = []

    def first(frames: int) -> np.ndarray:
        counts.append(frames)
        return np.zeros(1, np.int64)

    with _watched(media) as (source, watch):
        frames, index = _read(source, watch, _Picker(first))
        with containers.open_video(source, watch) as video:
            codec, container = video.stream.codec_context.name, video.container.format.name
            fps = index.fps if index.exact else float(video.stream.average_rate or 0)
    height, width = frames.shape[1:3]
    return VideoInfo(counts[-1], width, height, fps, codec, container)


def read_image(media: Media) -> np.ndarray:
    """Decodes an image with PIL, turned upright by its EXIF tag.

    Returns:
        uint8 (h, w, 3), RGB.

    Raises:
        DecodeError: the file is not a readable image of 8 bits a channel, or is over 16384 pixels a side or
            80 megapixels.
    """
    name, source = _name(media), _source(media)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb') as file:
            return _decode_image(file)
    except UnreadableError as error:
        raise DecodeError(name, str(error)) from error
    except UnidentifiedImageError as error:
        raise DecodeError(name, f'is not a readable image: it is none of {", ".join(_IMAGES)}') from error
    except _BAD_IMAGE as error:
        raise DecodeError(name, f'is not a readable image: {error}') from error


def _decode_image(file: IO[bytes]) -> np.ndarray:
    try:
        image = Image.open(file, formats=_IMAGES)
    except Image.DecompressionBombError as error:
        raise UnreadableError(f'has {containers.TOO_LARGE}') from error
    with image:
        containers.check_size(*image.size)
        if image.mode.startswith(('I', 'F')):
            raise UnreadableError('has grey values of more than 8 bits: convert it')
        upright = ImageOps.exif_transpose(image)
        if 'transparency' in upright.info:  # of a palette: Pillow wants this detour
            upright = upright.convert('RGBA')
        return np.array(upright.convert('RGB'))
