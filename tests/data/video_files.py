"""Small videos for the decoding tests, made on the spot with PyAV."""

import struct
from fractions import Fraction

import av
import numpy as np

from mvdjax.data.containers import open_video
from mvdjax.data.decode import probe, read_frames
from mvdjax.data.watchdog import Watch

BOXES = (b'moov', b'trak', b'mdia', b'minf', b'stbl', b'edts', b'moof', b'traf')
X264 = {'preset': 'veryfast', 'bf': '3', 'b-pyramid': 'normal'}


def picture(i, height, width):
    """Frame i of a textured, moving scene."""
    y, x = np.mgrid[:height, :width]
    texture = (np.sin((x + 3 * i) / 5) + np.cos((y - 2 * i) / 7) + np.sin((x * y + 40 * i) / 331)) * 40 + 128
    return np.stack([texture, np.roll(texture, 5 * i, 1), 255 - texture], -1).astype(np.uint8)


def encode(
    path, codec, frames=60, height=64, width=96, times=None, rotation=None, pix_fmt=None, movflags=None, **options
):
    with av.open(str(path), 'w', container_options={'movflags': movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width = height, width
        stream.pix_fmt = pix_fmt or ('yuvj420p' if codec == 'mjpeg' else 'yuv420p')
        if codec == 'libx265':
            stream.options = {**options, 'x265-params': options.get('x265-params', '') + ':log-level=none'}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, height, width), format='rgb24')
            frame.pts = i if times is None else int(times[i])
            if times is not None:
                frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sequential(path):
    """Every frame, by the plainest use of PyAV there is."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)])


def opened(path):
    return open_video(path, Watch())


def chosen(ids):
    return lambda frames: np.asarray(ids)


def check_against(path, expected):
    """Every index alone or in one call, and subsets in any order with repeats."""
    count = len(expected)
    seen = []

    def everything(frames):
        seen.append(frames)
        return np.arange(frames)

    np.testing.assert_array_equal(read_frames(path, everything), expected)
    assert seen[-1] == count
    for i in range(0, count):
        np.testing.assert_array_equal(read_frames(path, chosen([i]))[0], expected[i], err_msg=f'frame {i}')
    rng = np.random.default_rng(0)
    for size in (2, 3, 5, 16):
        ids = rng.integers(0, count, size)
        np.testing.assert_array_equal(read_frames(path, chosen(ids)), expected[ids], err_msg=str(ids))
    assert probe(path).frames == count


def available(codec):
    try:
        av.codec.Codec(codec, 'w')
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def remux(source, target, change, **options):
    """Copies the packets that `change(position, packet)` returns, without decoding."""
    with av.open(str(source)) as read, av.open(str(target), 'w', container_options=options) as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for position, packet in enumerate(packet for packet in read.demux(stream) if packet.size):
            changed = change(position, packet)
            if changed is not None:
                changed.stream = copy
                write.mux(changed)
    return target


class Bits:
    """Reads the bits of an H.264 parameter set."""

    def __init__(self, data):
        self.text = ''.join(f'{byte:08b}' for byte in data)
        self.at = 0

    def u(self, count):
        self.at += count
        return int(self.text[self.at - count : self.at], 2)

    def ue(self):
        zeros = self.text.index('1', self.at) - self.at
        self.at += zeros
        return self.u(zeros + 1) - 1


def rebuilt(data, kind, change):
    """The boxes of `data` with `change(body)` in place of the body of each box of that kind."""
    out, at = b'', 0
    while at + 8 <= len(data):
        size, name = struct.unpack('>I4s', data[at : at + 8])
        body = data[at + 8 : at + size]
        if name == kind:
            body = change(body)
        elif name in BOXES:
            body = rebuilt(body, kind, change)
        out += struct.pack('>I4s', 8 + len(body), name) + body
        at += size
    return out
