"""The machinery under `mvdjax.data.decode`: a video's packet index, and decoding exactly the packets that matter.

"Position" is a packet's place in the file (decoding order), "frame" an index in presentation order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np

from mvdjax.data import frames
from mvdjax.data.containers import Video, open_video, set_up
from mvdjax.data.watchdog import UnreadableError, Watch

# Containers that store a presentation time with every packet; in others FFmpeg guesses them.
_TIMED = ('mov,mp4,m4a,3gp,3g2,mj2', 'matroska,webm', 'mpegts')
_HIDING = ('vp8', 'vp9')
# Codecs of which every shown packet gives one frame, or whose exceptions `_hidden` knows.
_ONE_FRAME = ('h264', 'hevc', 'vp8', 'vp9', 'libdav1d', 'av1', 'mjpeg', 'mpeg4', 'ffv1', 'prores', 'png')
# Of these, the ones that store frames in another order than they show them, by at most this many places.
_REORDERING = ('h264', 'hevc', 'mpeg4')
_REORDER = 16
# Compressed bytes kept from indexing to decoding; beyond that the file is read a second time.
_KEEP_BYTES = 32 * 1024 * 1024
# A gap of this many packets between wanted ones is jumped over where the container knows the places of its packets.
_JUMP = 256
_JUMPING = ('mov,mp4,m4a,3gp,3g2,mj2', 'matroska,webm')


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


def stream_packets(video: Video) -> Iterator[av.Packet]:
    """The stream's packets up to the end or the first damage to the container, without PyAV's empty last one.

    A last packet that the file's end cuts short is left out. (In between, a packet called corrupt may be whole.)
    """
    cut: av.Packet | None = None
    try:
        for number, packet in enumerate(video.container.demux(video.stream)):
            if number % 64 == 0:
                video.watch.check()
            if packet.size:
                if cut is not None:
                    yield cut
                    cut = None
                if packet.is_corrupt:
                    cut = packet
                else:
                    yield packet
    except av.InvalidDataError:
        return


def _hidden(codec: str, packet: av.Packet) -> bool:
    """Whether the packet only makes a picture for others to refer to: VP8 and VP9 may store such ones by themselves."""
    if codec == 'vp8':
        return not memoryview(packet)[0] & 0x10
    if codec == 'vp9':
        data = memoryview(packet)
        if data[-1] & 0xE0 == 0xC0:  # several pictures in one packet: the last one is shown
            return False
        first = data[0] if data[0] & 0x30 != 0x30 else data[0] << 1  # the fourth profile has one more bit
        return not first & 0x0A  # neither show_existing_frame nor show_frame
    return False


def read_index(video: Video) -> Index:
    """Reads every packet of the stream, decoding none."""
    codec = video.stream.codec_context.name
    hiding = codec in _HIDING
    kept: list[av.Packet] | None = []
    total = 0
    sizes: list[int] = []
    pts: list[int | None] = []
    dts: list[int | None] = []
    keyframe, hidden = [], []
    for packet in stream_packets(video):
        size = packet.size
        hide = packet.is_discard or (hiding and _hidden(codec, packet))
        sizes.append(size)
        pts.append(packet.pts)
        keyframe.append(packet.is_keyframe)
        hidden.append(hide)
        if not hide:
            dts.append(packet.dts)
        if kept is not None:
            kept.append(packet)
            total += size
            if total > _KEEP_BYTES:
                kept = None
    times = np.array([0 if t is None else t for t in pts], np.int64)
    visible = np.flatnonzero(~np.array(hidden, np.bool_))
    shown = visible[np.argsort(times[visible], kind='stable')]
    exact = video.container.format.name in _TIMED and codec in _ONE_FRAME and None not in pts and len(shown) > 0
    # Smaller ones may be MPEG-4's way of saying "nothing new", which gives no frame.
    exact = exact and not (codec == 'mpeg4' and min(sizes) < 16)
    # Leading pictures before the first keyframe refer to frames that are not in the file: they never come out.
    exact = exact and keyframe[0] and times.min() == times[0] and len(np.unique(times[shown])) == len(shown)
    exact = bool(exact and _plausible(video, times[visible], dts, np.sort(shown) - shown))
    seconds = float((times[shown[-1]] - times[shown[0]]) * video.stream.time_base) if exact else 0.0
    fps = (len(shown) - 1) / seconds if seconds > 0 else 0.0
    return Index(exact, times, np.array(keyframe, np.bool_), shown, kept, fps)


def _plausible(video: Video, pts: np.ndarray, dts: list[int | None], moved: np.ndarray) -> bool:
    """Whether the times can be those of one recording, undamaged; `moved` is by how many places frames change order."""
    if np.abs(moved).max() > (_REORDER if video.stream.codec_context.name in _REORDERING else 0):
        return False
    kind = video.container.format.name
    if kind == 'matroska,webm':  # stores no decoding times, FFmpeg makes them up
        return True
    known = np.array([-(1 << 62) if time is None else time for time in dts], np.int64)
    late = kind == 'mpegts' and (pts < known).any()
    return not late and bool((np.diff(known[known > -(1 << 62)]) >= 0).all())


class IndexCache:
    """The indices of long files that were read before, without their packets.

    Reading the index is most of the work where a clip is taken out of a long file again and again, as from the films
    of AVA. Short files are not kept: a data set has too many of them, and their indices cost little.
    """

    def __init__(self, least: int = 2000, total: int = 2_000_000) -> None:
        """Keeps indices of at least `least` packets, and of `total` packets in all (17 bytes each)."""
        self._least = least
        self._room = total
        self._kept: dict[tuple[str, int, int], Index] = {}
        self._lock = threading.Lock()

    def get(self, file: Path) -> Index | None:
        """The index of the file as it stands there now."""
        with self._lock:
            key = self._key(file)
            index = self._kept.pop(key, None)
            if index is not None:
                self._kept[key] = index  # the last one used is the last to go
            return index

    def put(self, file: Path, index: Index) -> None:
        """Keeps an index, if it is worth it."""
        size = len(index.pts)
        if not index.exact or size < self._least:
            return
        with self._lock:
            self._kept[self._key(file)] = replace(index, packets=None)
            while sum(len(kept.pts) for kept in self._kept.values()) > self._room:
                self._kept.pop(next(iter(self._kept)))

    @staticmethod
    def _key(file: Path) -> tuple[str, int, int]:
        stat = file.stat()
        return os.path.abspath(file), stat.st_size, stat.st_mtime_ns


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


def decode_ranges(video: Video, index: Index, ids: np.ndarray, unread: bool = False) -> np.ndarray:
    """Decodes frames of an exact index, feeding the decoder no packet that they do not need.

    Args:
        video: the file the index was read from.
        index: with `exact` True.
        ids: int64 (n,) frames in [0, index.frames).
        unread: whether `video` still stands at its start.

    Returns:
        uint8 (n, h, w, 3).

    Raises:
        UnreadableError, av.FFmpegError: a wanted frame did not come, or something else shows that the index is wrong
            or the file damaged.
    """
    ranges = _ranges(index, index.shown[np.unique(ids)])
    if index.packets is None:
        if unread:
            return _decode_ranges(video, _read_ranges(video, index, ranges), index, ids)
        with open_video(video.source, video.watch) as again:
            return _decode_ranges(again, _read_ranges(again, index, ranges), index, ids)
    kept = index.packets
    return _decode_ranges(video, (iter(kept[first : last + 1]) for first, last in ranges), index, ids)


def _read_ranges(video: Video, index: Index, ranges: list[tuple[int, int]]) -> Iterator[Iterator[av.Packet]]:
    """The packets of each range, from the file, jumping over long gaps."""
    jumping = video.container.format.name in _JUMPING and len(np.unique(index.pts)) == len(index.pts)
    places = {time: place for place, time in enumerate(index.pts.tolist())} if jumping else {}
    stream, at = stream_packets(video), 0

    def read(first: int, last: int) -> Iterator[av.Packet]:
        nonlocal at
        for packet in stream:
            place, at = at, at + 1
            if packet.pts != index.pts[place]:
                raise UnreadableError('changed while it was read')
            if place >= first:
                yield packet
            if place == last:
                return

    for first, last in ranges:
        if jumping and first - at > _JUMP:
            video.container.seek(int(index.pts[first]), stream=video.stream)
            stream = stream_packets(video)
            packet = next(stream, None)
            at = places.get(packet.pts, first + 1) if packet is not None else first + 1
            if packet is None or at > first:
                raise UnreadableError('cannot be entered where its index says')
            stream = _chain(packet, stream)
        yield read(first, last)


def _chain(packet: av.Packet, rest: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield packet
    yield from rest


def _hevc_layers(context: av.VideoCodecContext) -> bool:
    """Whether pictures that are "no reference" may still be one for a higher temporal layer; True if not known."""
    extra = context.extradata
    return extra is None or len(extra) < 23 or extra[0] != 1 or extra[21] >> 3 & 7 != 1


def _decode_ranges(video: Video, ranges: Iterable[Iterator[av.Packet]], index: Index, ids: np.ndarray) -> np.ndarray:
    positions = index.shown[np.unique(ids)]
    times = index.pts[positions].tolist()
    wanted = set(times)
    sink = frames.Sink(ids, times)
    context = video.stream.codec_context
    skipping = context.name == 'h264' or (context.name == 'hevc' and not _hevc_layers(context))
    for packets in ranges:
        start: int | None = None  # time of the range's keyframe
        last: int | None = None  # of the frame that came last
        for packet in _ending(packets):
            if packet is not None:
                video.watch.check()
                if skipping:  # frames that nobody asked for and nothing refers to
                    needed = start is None or packet.pts in wanted
                    context.skip_frame = 'DEFAULT' if needed else 'NONREF'
                start = packet.pts if start is None else start
            assert start is not None
            for frame in context.decode(packet):
                _check(frame, start, last)
                last = frame.pts
                sink.offer(frame.pts, frame)
        context.flush_buffers()
    if sink.missing():
        raise UnreadableError('lacks frames that its index lists')
    return sink.result()


def _ending(packets: Iterable[av.Packet]) -> Iterator[av.Packet | None]:
    """The packets, and None: the decoder gives what it still holds."""
    yield from packets
    yield None


def _check(frame: av.VideoFrame, start: int, last: int | None) -> None:
    """Raises `UnreadableError` where a frame shows that decoding from the file's start might give another picture."""
    if frame.pts is None or (last is not None and frame.pts <= last):
        raise UnreadableError('has frames out of their order')
    if frame.pts < start:  # it refers to frames before the keyframe, and nobody wants it from this range
        return
    if frame.is_corrupt:
        raise UnreadableError('is damaged')
    if frame.interlaced_frame:  # two packets may make one frame
        raise UnreadableError('is interlaced')
    if frame.pts == start and not frame.key_frame:
        raise UnreadableError('marks a frame as a keyframe that is none')


def decode_pictures(pictures: Iterable[tuple[int, bytes]], ids: np.ndarray, watch: Watch) -> np.ndarray:
    """Decodes JPEG pictures with FFmpeg, as if they came out of a container.

    Args:
        pictures: (frame, its bytes) for each of `np.unique(ids)`, in order.
        ids: int64 (n,) frames.
        watch: over this read.

    Returns:
        uint8 (n, h, w, 3).

    Raises:
        UnreadableError, av.FFmpegError: one is not a whole picture.
    """
    sink = frames.Sink(ids, np.unique(ids).tolist())
    context = av.CodecContext.create('mjpeg', 'r')
    set_up(context)
    for key, data in pictures:
        watch.check()
        for frame in context.decode(av.Packet(data)):
            if frame.is_corrupt or frame.interlaced_frame:
                raise UnreadableError('is damaged')
            sink.offer(key, frame)
    if sink.missing():
        raise UnreadableError('lacks pictures')
    return sink.result()


def every_frame(video: Video, damage: frames.Damage) -> Iterator[av.VideoFrame]:
    """Decodes everything from the first packet, passing over what is damaged.

    Args:
        video: freshly opened.
        damage: is told of every frame before it comes.
    """
    context = video.stream.codec_context
    for packet in _ending(stream_packets(video)):
        try:
            decoded = context.decode(packet)
        except av.InvalidDataError:
            damage.packet()
            continue
        for frame in decoded:
            damage.frame(frame)
            yield frame


def decode_all(video: Video, ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Decodes everything from the first packet, passing over what is damaged, and counts.

    Args:
        video: freshly opened.
        ids: int64 (n,) frames to keep.

    Returns:
        uint8 (n, h, w, 3), of which the frames at or beyond the count are undefined; the number of frames up to the
        end, or to where damage begins that lasts to the end.

    Raises:
        UnreadableError: a wanted frame is damaged, or refers to one that is.
    """
    sink = frames.Sink(ids, np.unique(ids).tolist())
    damage = frames.Damage()
    for frame in every_frame(video, damage):
        sink.offer(damage.frames - 1, frame)
    sound = damage.sound()
    hurt = sum(frame < sound for frame in damage.hurt.intersection(ids.tolist()))
    if hurt:
        raise UnreadableError(f'is damaged: {len(damage.hurt)} of its {damage.frames} frames, {hurt} of them wanted')
    return sink.result(), sound
