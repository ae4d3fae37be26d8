"""What a pack holds of a video: its own bytes, or a copy that is quicker to read.

    copy    The file as it is. Where the container allows it and the result is proved equal (every packet, time, key
            flag and header, and the first and last picture), the video stream alone: audio and the rest are dropped.
    gop16   H.264 in MP4, a keyframe at least every 16 frames, no B-frames, no CABAC and no loop filter, CRF 20.
    intra   JPEG pictures in Matroska, quantiser 3: each frame is decoded alone. Times are rounded to a millisecond.

The last two write the frames that a full decode gives, in its order and at its times counted from the first frame,
upright, 8 bits, 4:2:0; never larger than they were, and with even sides.
"""

import dataclasses
import io
import itertools
import os
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np

from mvdjax.data import frames, packets
from mvdjax.data.containers import Video, open_video
from mvdjax.data.decode import Blob, DecodeError, Media, VideoInfo, probe, read_frames
from mvdjax.data.watchdog import Heartbeat, UnreadableError, Watch

PROFILES = ('copy', 'gop16', 'intra')
VERSION = 1  # of what the profiles write: raise it with every change that alters a file
MAX_BYTES = 2**30  # of a packed video; tensorflow-datasets' examples end at 2 GiB

_ERRORS = (av.FFmpegError, OSError, MemoryError, UnreadableError, ValueError, ArithmeticError)
_REMUXED = {'mov,mp4,m4a,3gp,3g2,mj2': 'mp4', 'matroska,webm': 'matroska'}
# One thread: a pack is made by as many processes as there are cores. Bit-exact: no dates or version numbers inside.
_ENCODING = {'threads': '1', 'flags': '+bitexact'}
_ENCODERS = {
    'gop16': ('libx264', {'preset': 'fast', 'tune': 'fastdecode', 'crf': '20', 'g': '16', 'bf': '0', 'a53cc': '0'}),
    'intra': ('mjpeg', {'qmin': '3', 'qmax': '3'}),
}
_SCALER = 'lanczos+accurate_rnd+full_chroma_int'
_BT601, _LIKE_BT601 = 6, (2, 5, 6)  # AVColorSpace; 2 is unspecified
_LIMITED, _FULL = 1, 2  # AVColorRange
_MILLISECOND = Fraction(1, 1000)


@dataclasses.dataclass(frozen=True)
class Packed:
    """An encoded video and what `probe` says of it."""

    data: bytes
    info: VideoInfo


def pack_video(media: Media, profile: str, short_side: int, tick: Callable[[], None] = lambda: None) -> Packed:
    """A video as a profile stores it.

    Args:
      media: a video file.
      profile: of `PROFILES`.
      short_side: pictures with a longer short side are made smaller to have this one; 0 for never. Not for 'copy'.
      tick: called after every packet: a sign of life.

    Raises:
      DecodeError: no readable video, or one that would take more than 1 GiB.
    """
    name = media.name if isinstance(media, Blob) else str(media)
    probe(media)  # has the words for what is no video
    try:
        if profile == 'copy':
            data = _content(media)
            data = _without_other_streams(data, Heartbeat(tick)) or data
        else:
            data = _encode(media, profile, short_side, Heartbeat(tick))
    except _ERRORS as error:
        raise DecodeError(name, str(error) if isinstance(error, UnreadableError) else f'fails: {error}') from error
    if len(data) > MAX_BYTES:
        raise DecodeError(
            name, f'takes {len(data) / 2**30:.1f} GiB packed; cut it into clips that take less than 1 GiB'
        )
    blob = Blob(name, data)
    first_and_last(blob)
    return Packed(data, probe(blob))


def settings(profile: str) -> str:
    """What a profile's encoder is told, for `pack.json`."""
    if profile == 'copy':
        return 'packets unchanged'
    codec, options = _ENCODERS[profile]
    return ' '.join([codec, *(f'{name}={value}' for name, value in options.items())])


def first_and_last(media: Media) -> np.ndarray:
    """uint8 (2, h, w, 3): the first and the last frame. Raises DecodeError."""
    return read_frames(media, lambda frames: np.array([0, frames - 1]))


def _content(media: Media) -> bytes:
    if isinstance(media, Blob):
        return media.data
    if (size := os.path.getsize(media)) > MAX_BYTES:
        raise UnreadableError(f'takes {size / 2**30:.1f} GiB; cut it into clips that take less than 1 GiB')
    return Path(media).read_bytes()


def _source(media: Media) -> Path | bytes:
    return media.data if isinstance(media, Blob) else Path(media)


def _without_other_streams(data: bytes, watch: Watch) -> bytes | None:
    """The video stream alone, its packets untouched; None without another stream, or where equality is not proved."""
    with open_video(data, watch) as video:
        kind = _REMUXED.get(video.container.format.name)
        if kind is None or len(video.container.streams) == 1:
            return None
        given, number = _Packets.of(video), video.stream.index
    # Packets hidden by an edit list would show in the copy, which has no such list.
    smaller = _remux(data, number, kind, watch) if given.provable else None
    if smaller is None:
        return None
    with open_video(smaller, watch) as video:
        same = _Packets.of(video) == given
    same = same and np.array_equal(first_and_last(Blob('', data)), first_and_last(Blob('', smaller)))
    return smaller if same else None


@dataclasses.dataclass(frozen=True)
class _Packets:
    """All that decides which frames a decoder gives.

    Attributes:
      provable: whether frames can be told by their times, and all packets show.
      header: the codec's.
      rows: of each packet, in order: its bytes, whether it is a keyframe, and its time from the first frame's.
    """

    provable: bool
    header: bytes | None
    rows: list[tuple[bytes, bool, Fraction]]

    @classmethod
    def of(cls, video: Video) -> Self:
        """Those of a video that has just been opened."""
        index = packets.read_index(video)
        kept, base = index.packets or [], Fraction(video.stream.time_base or _MILLISECOND)
        start = index.pts[index.shown[0]] if len(index.shown) else 0
        rows = [
            (bytes(packet), bool(key), (int(time) - int(start)) * base)
            for packet, key, time in zip(kept, index.keyframe, index.pts, strict=False)
        ]
        provable = index.exact and len(index.shown) == len(kept)
        return cls(provable, video.stream.codec_context.extradata, rows)


def _remux(data: bytes, number: int, kind: str, watch: Watch) -> bytes | None:
    """A container with stream `number` alone; None where FFmpeg refuses to write it."""
    buffer = io.BytesIO()
    try:
        # Opened anew: Matroska's packets have no decoding times unless FFmpeg may look into the stream.
        with (
            av.open(io.BytesIO(data), 'r', container_options={'protocol_whitelist': 'none'}) as source,
            av.open(buffer, 'w', format=kind, container_options={'fflags': '+bitexact'}) as output,
        ):
            stream = output.add_stream_from_template(source.streams[number])
            for packet in source.demux(source.streams[number]):
                watch.check()
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
    except (av.FFmpegError, ValueError):  # a codec that the container does not take, times that it refuses
        return None
    return buffer.getvalue()


@dataclasses.dataclass
class _Clock:
    """Times of frames, from 0 at the first, rising.

    Attributes:
      base: their unit, in seconds.
      stored: unit of the frames' own times; None to count frames instead.
    """

    base: Fraction
    stored: Fraction | None
    _start: int | None = None
    _last: int = -1

    def __call__(self, pts: int | None) -> int:
        """The time of the next frame, in units of `base`."""
        time = self._last + 1
        if self.stored is not None and pts is not None:
            self._start = pts if self._start is None else self._start
            time = max(time, round((pts - self._start) * self.stored / self.base))
        self._last = time
        return time


def _clock(video: Video, index: packets.Index, profile: str) -> _Clock:
    if index.exact:
        base = stored = Fraction(video.stream.time_base or _MILLISECOND)
    else:
        rate = video.stream.average_rate or video.stream.guessed_rate or 25
        base, stored = 1 / Fraction(rate), None
    if profile == 'intra':  # Matroska's unit
        return _Clock(_MILLISECOND, stored) if stored else _Clock(_MILLISECOND, base)
    return _Clock(base, stored)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """How a profile stores pictures like a given one.

    Attributes:
      steps: FFmpeg filters, written `name=arguments`, that bring the pictures to it.
      width, height: of what is stored, upright, in pixels.
      pixel_aspect: width of a pixel by its height, upright. It is passed on, and no reader here applies it.
      matrix, range: AVColorSpace and AVColorRange of what is stored.
    """

    steps: tuple[str, ...]
    width: int
    height: int
    pixel_aspect: Fraction
    matrix: int
    range: int


def _shape(frame: av.VideoFrame, profile: str, short_side: int, pixel_aspect: Fraction) -> _Shape:
    width, height, short = frame.width, frame.height, min(frame.width, frame.height)
    scaled = bool(short_side) and short > short_side
    if scaled:
        width, height = (max(2, 2 * round(side * short_side / short / 2)) for side in (width, height))
    else:
        width, height = width // 2 * 2, height // 2 * 2
    if not width or not height:
        raise UnreadableError(f'is {frame.width} x {frame.height} pixels, too small for even sides')
    steps = []
    if not scaled and (width, height) != (frame.width, frame.height):
        steps.append(f'crop={width}:{height}:0:0:exact=1')  # scaling would blur it all for the sake of one row
    # A reader takes untagged pictures for BT.601, limited range; JPEG has no tags and always is BT.601, full range.
    bt601 = profile == 'intra' or frame.format.is_rgb
    full = profile == 'intra' or (frame.color_range == _FULL and not frame.format.is_rgb)
    right = frame.colorspace in _LIKE_BT601 and (frame.color_range == _FULL) == full
    if scaled or frame.format.name != 'yuv420p' or (profile == 'intra' and not right):
        conversion = ':out_color_matrix=bt601' if bt601 else ''
        steps += [
            f'scale={width}:{height}:flags={_SCALER}{conversion}:out_range={"pc" if full else "tv"}',
            'format=yuv420p',
        ]
    swapped, left, down = frames.turns(frames.display_matrix(frame))
    if swapped:
        width, height, pixel_aspect = height, width, 1 / pixel_aspect
    steps += ['transpose=cclock_flip'] * swapped + ['hflip'] * left + ['vflip'] * down  # FFmpeg's word for swapped axes
    matrix = _BT601 if bt601 else frame.colorspace
    return _Shape(tuple(steps), width, height, pixel_aspect, matrix, _FULL if full else _LIMITED)


def _filters(first: av.VideoFrame, steps: tuple[str, ...]) -> av.filter.Graph:
    """A chain of FFmpeg filters for frames like the first."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = (
        f'video_size={first.width}x{first.height}:pix_fmt={first.format.name}:time_base=1/1000:'
        f'colorspace={first.colorspace}:range={first.color_range}'
    )
    nodes = [graph.add('buffer', source)]
    for step in steps:
        name, _, arguments = step.partition('=')
        nodes.append(graph.add(name, arguments or None))
    graph.link_nodes(*nodes, graph.add('buffersink')).configure()
    return graph


def _open_output(
    output: av.container.OutputContainer, profile: str, shape: _Shape, first: av.VideoFrame, clock: _Clock, fps: float
) -> av.VideoStream:
    codec, options = _ENCODERS[profile]
    rate = Fraction(fps).limit_denominator(1001) or Fraction(25)  # tells players and rate control, not the times
    stream = output.add_stream(codec, rate=rate, options={**_ENCODING, **options})
    assert isinstance(stream, av.VideoStream)
    stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, 'yuv420p'
    context = stream.codec_context
    context.time_base = clock.base
    context.sample_aspect_ratio = shape.pixel_aspect
    context.colorspace, context.color_range = shape.matrix, shape.range
    context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
    return stream


def _pixel_aspect(video: Video) -> Fraction:
    """What the container says, or else the codec once it has decoded a frame."""
    return Fraction(video.stream.sample_aspect_ratio or video.stream.codec_context.sample_aspect_ratio or 1)


def _encode(media: Media, profile: str, short_side: int, watch: Watch, limit: int = 1 << 62) -> bytes:
    """A video encoded anew: its first `limit` frames, or as many as are sound."""
    with open_video(_source(media), watch) as video:
        index = packets.read_index(video)
    buffer, damage = io.BytesIO(), frames.Damage()
    with ExitStack() as stack:
        video = stack.enter_context(open_video(_source(media), watch))
        decoded = packets.every_frame(video, damage)
        first = next(decoded, None)
        if first is None:
            raise UnreadableError('holds no decodable frame')
        given = (first.width, first.height, first.format.name)
        shape = _shape(first, profile, short_side, _pixel_aspect(video))
        clock = _clock(video, index, profile)
        graph = _filters(first, shape.steps) if shape.steps else None
        kind = 'matroska' if profile == 'intra' else 'mp4'
        output = stack.enter_context(av.open(buffer, 'w', format=kind, container_options={'fflags': '+bitexact'}))
        stream = _open_output(output, profile, shape, first, clock, index.fps or 25)
        for frame in itertools.chain([first], decoded):
            if damage.frames > limit or buffer.tell() > MAX_BYTES:
                break
            if (frame.width, frame.height, frame.format.name) != given:
                raise UnreadableError('changes its frame size or pixel format on the way')
            time = clock(frame.pts)
            if graph is not None:
                graph.vpush(frame)
                frame = graph.vpull()
            frame.pts, frame.time_base, frame.pict_type = time, clock.base, 0  # 0: the encoder chooses the type
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    sound = damage.sound()
    if limit > sound and any(frame < sound for frame in damage.hurt):
        raise UnreadableError(f'is damaged: {len(damage.hurt)} of its {damage.frames} frames')
    if sound < min(limit, damage.frames):  # damage to the end makes a shorter video, as it does for `read_frames`
        return _encode(media, profile, short_side, watch, sound)
    return buffer.getvalue()
