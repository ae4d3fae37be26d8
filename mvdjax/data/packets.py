"""The machinery under `mvdjax.data.decode`: a video's packet index, and decoding exactly the packets that matter.

"Position" is a packet's place in the file (decoding order), "frame" an index in presentation order.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.stream import Discard, Disposition
from av.video.reformatter import VideoReformatter

MAX_SIDE = 16384
MAX_PIXELS = 100_000_000

# Containers that store a presentation time with every packet; in others FFmpeg guesses them.
_TIMED = ('mov,mp4,m4a,3gp,3g2,mj2', 'matroska,webm', 'mpegts')
# VP8 stores its invisible reference frames as packets of their own, with times of their own.
_UNCOUNTABLE = ('vp8',)
_SKIPPING = ('h264', 'hevc')
_PLAYLISTS = ('hls', 'concat', 'dash')
# Compressed bytes kept from indexing to decoding; beyond that the file is read a second time.
_KEEP_BYTES = 256 * 1024 * 1024


class UnreadableError(Exception):
    """Why a file cannot be used; the text continues a sentence that starts with its path."""


@dataclass(frozen=True)
class Video:
    """An open file, or encoded bytes, and its video stream."""

    source: Path | bytes
    container: av.container.InputContainer
    stream: av.VideoStream


@dataclass(frozen=True)
class Index:
    """What the packets of a video say, in decoding order.

    Attributes:
        exact: whether frames can be told by their times; if not, only decoding from the start counts them rightly.
        pts: int64 (packets,): presentation times, in units of the stream's time base.
        keyframe: bool (packets,).
        shown: int64 (frames,): positions of the packets that give a frame, in presentation order.
        packets: the packets themselves, or None if they are too large to keep.
        fps: mean frame rate by the times; 0 if there is only one frame.
    """

    exact: bool
    pts: np.ndarray
    keyframe: np.ndarray
    shown: np.ndarray
    packets: list[av.Packet] | None
    fps: float

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.shown)


def check_size(width: int, height: int) -> None:
    """Refuses pictures over 16384 pixels a side or 100 megapixels with `UnreadableError`."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise UnreadableError(
            f'is {width} x {height} pixels, more than the {MAX_SIDE} a side or 100 megapixels allowed'
        )


@contextmanager
def open_video(source: Path | bytes, probing: bool) -> Iterator[Video]:
    """Opens a local file for one single-threaded decode of its first real video stream.

    Args:
        source: the file, or what stands in it.
        probing: whether FFmpeg may decode the first frames to learn what the header does not say. Going without saves
            as much time as decoding them takes, and is enough to index the packets.

    Raises:
        UnreadableError: not a video, or of an absurd size.
        av.FFmpegError: FFmpeg cannot open it.
    """
    # A packet cut off by the file's end is dropped.
    options = {'fflags': '+discardcorrupt'}
    if not probing:
        options['codec_whitelist'] = 'none'  # for the probing only: PyAV decodes with contexts of its own
    if isinstance(source, bytes):
        media: str | io.BytesIO = io.BytesIO(source)  # shares the bytes
        options['protocol_whitelist'] = 'none'  # bytes may name no file at all
    else:
        media = f'file:{source}'  # the prefix keeps a colon in a path from naming a protocol
        options['protocol_whitelist'] = 'file'
    with av.open(media, container_options=options, metadata_errors='replace') as container:
        kind = container.format.name
        if kind == 'tty':
            raise UnreadableError('is a text file, not a video')
        if kind in _PLAYLISTS:
            raise UnreadableError('is a playlist, not a video')
        if kind == 'image2' or kind.endswith('_pipe'):
            raise UnreadableError('is a still image, not a video')
        if not container.streams.video:
            raise UnreadableError('has no video stream')
        pictures = Disposition.attached_pic | Disposition.timed_thumbnails
        moving = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if not moving:
            raise UnreadableError('has no video stream, only a cover picture')
        stream = moving[0]
        context = stream.codec_context
        if context is None:
            raise UnreadableError('uses a codec that this FFmpeg cannot decode')
        check_size(context.width, context.height)
        context.options = {'max_pixels': str(MAX_PIXELS)}  # the coded size may differ from the header's
        context.thread_count = 1
        context.thread_type = 'SLICE'
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        yield Video(source, container, stream)


def _packets(video: Video) -> Iterator[av.Packet]:
    """The stream's packets up to the end or the first damage to the container, without PyAV's empty last one."""
    try:
        yield from (packet for packet in video.container.demux(video.stream) if packet.size)
    except av.InvalidDataError:
        return


def read_index(video: Video) -> Index:
    """Reads every packet of the stream, decoding none."""
    kept: list[av.Packet] | None = []
    size = 0
    pts: list[int | None] = []
    keyframe, hidden = [], []
    for packet in _packets(video):
        pts.append(packet.pts)
        keyframe.append(packet.is_keyframe)
        hidden.append(packet.is_discard)
        size += packet.size
        if kept is not None:
            kept.append(packet)
        if size > _KEEP_BYTES:
            kept = None
    timed = video.container.format.name in _TIMED and video.stream.codec_context.name not in _UNCOUNTABLE
    times = np.array([0 if t is None else t for t in pts], np.int64)
    visible = np.flatnonzero(~np.array(hidden, np.bool_))
    shown = visible[np.argsort(times[visible], kind='stable')]
    exact = timed and None not in pts and len(shown) > 0
    # Leading pictures before the first keyframe refer to frames that are not in the file: they never come out.
    exact = exact and keyframe[0] and times.min() == times[0] and len(np.unique(times[shown])) == len(shown)
    seconds = float((times[shown[-1]] - times[shown[0]]) * video.stream.time_base) if exact else 0.0
    fps = (len(shown) - 1) / seconds if seconds > 0 else 0.0
    return Index(exact, times, np.array(keyframe, np.bool_), shown, kept, fps)


class _Sink:
    """Collects the wanted frames as RGB."""

    def __init__(self, ids: np.ndarray, keys: Iterable[int]) -> None:
        """`keys` names the frames of `np.unique(ids)`, as `offer` will."""
        unique, inverse = np.unique(ids, return_inverse=True)
        self._missing = {key: np.flatnonzero(inverse == i) for i, key in zip(range(len(unique)), keys, strict=True)}
        self._count = len(ids)
        self._out: np.ndarray | None = None
        self._size = (0, 0)
        self._quarters = 0
        self._reformatter = VideoReformatter()

    def offer(self, key: int | None, frame: av.VideoFrame) -> None:
        """Converts the frame if `key` is wanted. Raises `UnreadableError` where its size differs from the others'."""
        places = self._missing.pop(key, None) if key is not None else None
        if places is None:
            return
        check_size(frame.width, frame.height)
        if self._out is None:
            self._size = (frame.height, frame.width)
            self._out = np.empty((self._count, frame.height, frame.width * 3), np.uint8)
            # PyAV's angle and numpy's turns are both counter-clockwise.
            self._quarters = round(frame.rotation / 90) % 4
        if (frame.height, frame.width) != self._size:
            raise UnreadableError('changes its frame size on the way')
        plane = self._reformatter.reformat(frame, format='rgb24', threads=1).planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        self._out[places] = rows[: frame.height, : frame.width * 3]

    def missing(self) -> bool:
        """Whether a wanted frame has not come."""
        return bool(self._missing)

    def result(self) -> np.ndarray:
        """uint8 (ids, h, w, 3), upright; (0, 0, 0, 3) if nothing was wanted."""
        if self._out is None:
            return np.empty((0, 0, 0, 3), np.uint8)
        frames = self._out.reshape(self._count, *self._size, 3)
        return np.ascontiguousarray(np.rot90(frames, self._quarters, axes=(1, 2)))


def _ranges(index: Index, positions: np.ndarray) -> list[tuple[int, int]]:
    """Merged ranges of positions (first, last) that decode the frames at `positions`.

    A range starts at the last keyframe that comes before the wanted frame in the file *and* in time: a picture stored
    after a keyframe but shown before it refers to the group of pictures before.
    """
    keys = np.flatnonzero(index.keyframe)
    ranges: list[tuple[int, int]] = []
    for position in np.sort(positions).tolist():
        before = keys[: np.searchsorted(keys, position, side='right')]
        usable = before[index.pts[before] <= index.pts[position]]
        if not usable.size:
            raise UnreadableError('starts with frames that refer to missing ones')
        first = int(usable[-1])
        last = position
        while ranges and first <= ranges[-1][1] + 1:
            first = min(first, ranges[-1][0])
            ranges.pop()
        ranges.append((first, last))
    return ranges


def decode_ranges(video: Video, index: Index, ids: np.ndarray) -> np.ndarray:
    """Decodes frames of an exact index, feeding the decoder no packet that they do not need.

    Args:
        video: the file the index was read from.
        index: with `exact` True.
        ids: int64 (n,) frames in [0, index.frames).

    Returns:
        uint8 (n, h, w, 3).

    Raises:
        UnreadableError, av.FFmpegError: a wanted frame did not come, so the index or the file is wrong.
    """
    if index.packets is None:
        with open_video(video.source, probing=False) as again:
            return _decode_ranges(again, _packets(again), index, ids)
    return _decode_ranges(video, index.packets, index, ids)


def _decode_ranges(video: Video, packets: Iterable[av.Packet], index: Index, ids: np.ndarray) -> np.ndarray:
    positions = index.shown[np.unique(ids)]
    wanted = set(positions.tolist())
    sink = _Sink(ids, index.pts[positions].tolist())
    context = video.stream.codec_context
    skipping = context.name in _SKIPPING
    ranges = iter(_ranges(index, positions))
    first, last = next(ranges, (0, -1))
    for position, packet in enumerate(packets):
        if position > last:
            break
        if position < first:
            continue
        if skipping:  # frames that nobody asked for and nothing refers to
            context.skip_frame = 'DEFAULT' if position in wanted else 'NONREF'
        for frame in context.decode(packet):
            sink.offer(frame.pts, frame)
        if position == last:
            for frame in context.decode(None):
                sink.offer(frame.pts, frame)
            context.flush_buffers()
            first, last = next(ranges, (0, -1))
    if sink.missing():
        raise UnreadableError('lacks frames that its index lists')
    return sink.result()


def decode_all(video: Video, ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Decodes everything from the first packet, passing over what is damaged, and counts.

    Args:
        video: freshly opened.
        ids: int64 (n,) frames to keep.

    Returns:
        uint8 (n, h, w, 3), of which the frames at or beyond the count are undefined; the number of frames that came.
    """
    sink = _Sink(ids, np.unique(ids).tolist())
    context = video.stream.codec_context
    count = 0

    def decode(packet: av.Packet | None) -> None:
        nonlocal count
        try:
            frames = context.decode(packet)
        except av.InvalidDataError:
            return
        for frame in frames:
            sink.offer(count, frame)
            count += 1

    for packet in _packets(video):
        decode(packet)
    decode(None)
    return sink.result(), count
