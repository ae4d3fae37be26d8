"""Opening a video for one decode: what FFmpeg may see, which containers it may read, and how large a picture may be.

FFmpeg gets the bytes through `_Reader` and nothing else: it may open no file, device or address by itself, so that a
playlist, or a reference inside a file, leads nowhere. It opens no decoder of its own either to look into the streams
(which would cost as much as decoding the frames, and would take memory for whatever size a header claims).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from av.stream import Discard, Disposition

from mvdjax.data import boxes
from mvdjax.data.watchdog import UnreadableError, Watch

MAX_SIDE = 16384
MAX_PIXELS = 80_000_000  # Pillow begins to warn at 89 million

_BUFFER = 128 * 1024  # bytes read at once
TOO_LARGE = f'more than the {MAX_SIDE} a side or {MAX_PIXELS // 10**6} megapixels allowed'

# FFmpeg's names of the containers it may read; the sounds and still images are there to be refused by name.
_VIDEOS = (
    *('mov', 'matroska', 'avi', 'mpegts', 'mpeg', 'flv', 'asf', 'ogg', 'h264', 'hevc', 'm4v', 'mpegvideo', 'mjpeg'),
    *('ivf', 'obu', 'nut', 'mxf', 'dv', 'gif', 'apng', 'rm', 'vc1', 'vc1test', 'h261', 'h263', 'yuv4mpegpipe', 'wtv'),
)
_REFUSED = (
    *('wav', 'mp3', 'flac', 'aac', 'aiff'),
    *('png_pipe', 'jpeg_pipe', 'webp_pipe', 'bmp_pipe', 'tiff_pipe', 'j2k_pipe', 'ppm_pipe'),
)
_FORMATS = ','.join(_VIDEOS + _REFUSED)
_PLAYLISTS = (b'#EXTM3U', b'ffconcat version', b'[playlist]', b'<smil', b'<MPD')


def check_size(width: int, height: int) -> None:
    """Refuses pictures over 16384 pixels a side or 80 megapixels with `UnreadableError`."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise UnreadableError(f'is {width} x {height} pixels, {TOO_LARGE}')


@dataclass(frozen=True)
class Video:
    """An open file, or encoded bytes, and its video stream."""

    source: Path | bytes
    watch: Watch
    container: av.container.InputContainer
    stream: av.VideoStream


class _Reader:
    """The file as FFmpeg sees it: bytes without a name. Every read is a sign of life, and may find the time used up."""

    def __init__(self, file: io.RawIOBase | io.BytesIO, watch: Watch) -> None:
        self._read = file.read
        self.seek = file.seek
        self.tell = file.tell
        self._watch = watch

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""
        self._watch.check()
        return self._read(count) or b''


@contextmanager
def open_video(source: Path | bytes, watch: Watch) -> Iterator[Video]:
    """Opens a local file, or what stood in one, for a single-threaded decode of its first real video stream.

    Raises:
        UnreadableError: not a video, or of an absurd size.
        av.FFmpegError, OSError: it cannot be read.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb', buffering=0) as file:
        head = (file.read(256) or b'').lstrip(b'\xef\xbb\xbf \t\r\n')
        if head.startswith(_PLAYLISTS):
            raise UnreadableError('is a playlist, not a video')
        boxes.check(file)
        file.seek(0)
        with _open_container(_Reader(file, watch), head) as container:
            yield Video(source, watch, container, _video_stream(container))


def _open_container(reader: _Reader, head: bytes) -> av.container.InputContainer:
    options = {
        'codec_whitelist': 'none',  # for looking into the streams only: PyAV decodes with contexts of its own
        'protocol_whitelist': 'none',
        'format_whitelist': _FORMATS,
    }
    try:
        return av.open(reader, 'r', container_options=options, metadata_errors='replace', buffer_size=_BUFFER)
    except (av.InvalidDataError, av.ArgumentError) as error:
        text = head.splitlines()[0].decode('ascii', 'replace')[:40] if head else ''
        if text and text.isprintable() and text.isascii():  # most often a web server's apology
            raise UnreadableError(f'is a text file, not a video; it begins {text!r}') from error
        if isinstance(error, av.ArgumentError):  # what FFmpeg says of a format that is not in the list
            raise UnreadableError('is no video: its container is none of those that are read') from error
        raise


def set_up(context: av.VideoCodecContext) -> None:
    """Settings of every decoder: one thread, and no picture that is too large."""
    context.options = {'max_pixels': str(MAX_PIXELS)}  # the coded size may differ from the header's
    context.thread_count = 1
    context.thread_type = 'SLICE'


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    kind = container.format.name
    if kind.endswith('_pipe'):
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
    set_up(context)
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream
