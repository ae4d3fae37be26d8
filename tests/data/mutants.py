"""A corpus of five hundred bad files, and what is to be expected of each: `python tests/data/mutants.py FOLDER`.

Every mutant either gives a DecodeError of one line that names it, or frames that a plain decode of the very same bytes
gives too, in the same order. The script ends with status 1 if one does not, and is killed by an alarm if one hangs.
Everything is drawn from fixed seeds: the same corpus everywhere (for one version of the encoders).
"""

import argparse
import contextlib
import hashlib
import io
import re
import resource
import signal
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from video_files import X264, Bits, encode, picture, rebuilt  # noqa: E402

from mvdjax.data.decode import Blob, DecodeError, probe, read_frames, read_image  # noqa: E402

SECONDS = 20  # for one mutant
SIZE = {'frames': 16, 'height': 48, 'width': 64}
SOURCES = {
    'h264.mp4': ('libx264', {'g': '8', **X264}),
    'hevc.mp4': ('libx265', {'preset': 'ultrafast', 'x265-params': 'keyint=8:bframes=3'}),
    'vp9.webm': ('libvpx-vp9', {'deadline': 'realtime', 'cpu-used': '8', 'g': '8'}),
    'mpeg4.avi': ('mpeg4', {'g': '8', 'bf': '2'}),
    'h264.ts': ('libx264', {'g': '8', **X264}),
}
IMAGES = {'photo.jpg': {'quality': 85}, 'drawing.png': {}}
LARGE = 16000
COUNT = 40_000_000
EACH = 68  # mutants of one source: 7 x 68 and the made ones


def sources(folder):
    """name -> bytes of the sound files."""
    found = {}
    for name, (codec, options) in SOURCES.items():
        found[name] = encode(folder / name, codec, **SIZE, **options).read_bytes()
    for name, options in IMAGES.items():
        Image.fromarray(picture(3, 48, 64)).save(folder / name, **options)
        found[name] = (folder / name).read_bytes()
    return found


def damaged(name, data, number, seed):
    """(what was done, the bytes) of mutant `number` of a file."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), number, seed])
    out, size = bytearray(data), len(data)
    if number < 16 and not seed:
        return 'truncated', data[: (number + 1) * size // 17]
    kind = ('flip 1', 'flip 8', 'flip 60', 'flip head', 'huge field', 'zeros', 'cut out', 'doubled')[number % 8]
    at = int(rng.integers(0, size - 40))
    if kind.startswith('flip'):
        end = min(size, 1000) if kind == 'flip head' else size
        for place in rng.integers(0, end, {'1': 1, '8': 8, '60': 60, 'head': 3}[kind[5:]]):
            out[place] ^= 1 << int(rng.integers(8))
    elif kind == 'huge field':
        at = int(rng.integers(0, min(size, 1500) - 4)) if number % 16 < 8 else at
        out[at : at + 4] = b'\xff\xff\xff\xff' if rng.random() < 0.5 else b'\x7f\xff\xff\xff'
    elif kind == 'zeros':
        out[at : at + 40] = bytes(40)
    elif kind == 'cut out':
        del out[at : at + int(rng.integers(1, 40))]
    else:
        out[at:at] = out[max(0, at - 200) : at]
    return kind, bytes(out)


def box(kind, *parts):
    body = b''.join(parts)
    return struct.pack('>I', 8 + len(body)) + kind + body


def changed(data, kind, at, new):
    """The file with `new` written `at` bytes after the first box of that kind begins."""
    place = data.index(kind) + 4 + at
    return data[:place] + new + data[place + len(new) :]


def huge_h264(raw):
    """A raw H.264 stream whose headers say 16,000 x 16,000."""
    start = raw.index(b'\0\0\1\x67') + 3
    end = raw.index(b'\0\0\1', start)
    sps = raw[start:end].rstrip(b'\0')
    bits = Bits(sps[4:].replace(b'\0\0\3', b'\0\0'))
    for _ in range(2):
        bits.ue()
    if bits.ue() == 0:
        bits.ue()
    bits.ue()
    bits.u(1)
    before = bits.text[: bits.at]
    for _ in range(2):
        bits.ue()
    side = f'{LARGE // 16:b}'
    side = '0' * (len(side) - 1) + side
    text = before + side + side + bits.text[bits.at :]
    text += '0' * (-len(text) % 8)
    body = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    return raw.replace(sps, sps[:4] + re.sub(rb'\0\0(?=[\0-\3])', b'\0\0\3', body))


def remuxed(data, suffix):
    """The packets of one container in another, in the order of the file."""
    out = io.BytesIO()
    quietly = {'codec_whitelist': 'none'}  # or this process would fall for the bombs it makes
    with av.open(io.BytesIO(data), container_options=quietly) as read, av.open(out, 'w', format=suffix) as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(packet for packet in read.demux(video=0) if packet.size):
            packet.stream, packet.pts, packet.dts, packet.time_base = copy, number, number, Fraction(1, 30)
            write.mux(packet)
    return out.getvalue()


def sound(suffix):
    out = io.BytesIO()
    with av.open(out, 'w', format=suffix) as container:
        stream = container.add_stream('aac', rate=16000, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format='fltp', layout='mono')
        frame.sample_rate, frame.pts = 16000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return out.getvalue()


def bombs(files, folder):
    """Files that claim far more than they hold: name -> (bytes, what the error says)."""
    mp4, jpg, png = files['h264.mp4'], files['photo.jpg'], files['drawing.png']
    raw = encode(folder / 'raw.h264', 'libx264', **SIZE, g='8', profile='main').read_bytes()
    mjpeg = encode(folder / 'm.mkv', 'mjpeg', frames=3, height=48, width=64).read_bytes()
    fragments = encode(folder / 'f.mp4', 'libx264', **SIZE, g='8', movflags='frag_keyframe+empty_moov').read_bytes()
    big = struct.pack('>HH', 30000, 30000)
    # FFmpeg itself refuses 30,000 x 30,000 by its header; this much it would take memory for.
    large = struct.pack('>HH', LARGE, LARGE)

    def big_jpeg(data, size):
        """Every picture's frame header changed."""
        parts = data.split(b'\xff\xc0\0\x11\x08')
        assert len(parts) > 1
        return parts[0] + b''.join(b'\xff\xc0\0\x11\x08' + size + part[4:] for part in parts[1:])

    header = b'IHDR' + struct.pack('>II', 30000, 30000) + png[24:29]
    many = changed(mp4, b'stsz', 0, struct.pack('>III', 0, 1, COUNT))  # samples of one byte, all in the first chunk
    many = changed(many, b'stsc', 0, struct.pack('>IIIII', 0, 1, 1, COUNT, 1))
    runs = rebuilt(fragments, b'trun', lambda _: struct.pack('>II', 0, COUNT))
    edits = struct.pack('>II', 0, 700_000) + struct.pack('>IiHH', 1000, 0, 1, 0) * 700_000
    nested = b''
    for _ in range(2000):
        nested = box(b'moov', nested)
    moov = mp4.index(b'moov') - 4
    inside = mp4[moov + 8 :]
    return {
        'stsd.mp4': (changed(mp4, b'avc1', 24, big), '16 frames'),
        'sps.h264': (huge_h264(raw), 'refused'),
        'sps.ts': (remuxed(huge_h264(raw), 'mpegts'), 'refused'),
        'sof.mkv': (big_jpeg(mjpeg, large), 'refused'),
        'sof.avi': (big_jpeg(remuxed(mjpeg, 'avi'), large), 'refused'),
        'sof.jpg': (big_jpeg(jpg, big), 'more than the 16384'),
        'ihdr.png': (png[:12] + header + struct.pack('>I', zlib.crc32(header)) + png[33:], 'more than the 16384'),
        'samples.mp4': (many, f'claims {COUNT} samples'),
        'runs.mp4': (runs, f'claims {COUNT} samples'),
        'edits.mp4': (rebuilt(mp4, b'elst', lambda _: edits), 'claims an edit list of 700000 parts'),
        'nested.mp4': (mp4[:28] + nested, 'refused'),
        'loop.mp4': (mp4[:28] + b'\0\0\0\1moov' + struct.pack('>Q', 8) + mp4[28:], 'refused'),
        'duration.mp4': (changed(mp4, b'mvhd', 12, b'\0\0\0\1\xff\xff\xff\xff'), '16 frames'),
        'metadata.mp4': (mp4[:moov] + box(b'moov', inside, box(b'udta', notes(mp4=True))), '16 frames'),
    }


def notes(mp4):
    """Fifty thousand comments."""
    return b''.join(box(b'\xa9' + f'{i % 1000:03d}'.encode(), struct.pack('>HH', 4, 0), b'text') for i in range(50_000))


def odd(files):
    """Files that are something else: name -> bytes. Each is refused."""
    return {
        'empty.mp4': b'',
        'one_byte.mp4': b'\0',
        'zeros.avi': bytes(5000),
        'text.webm': b'<html><body>404 Not Found</body></html>\n' * 30,
        'list.ts': b'#EXTM3U\n#EXTINF:2,\nother.ts\n#EXT-X-ENDLIST\n',
        'image.mp4': files['photo.jpg'],
        'drawing.webm': files['drawing.png'],
        'sound.mp4': sound('mp4'),
        'sound.ts': sound('mpegts'),
        'video.jpg': files['h264.mp4'],
    }


def plain(data):
    """Hashes of all frames that the plainest decode gives, damaged packets passed over."""
    found = []
    try:
        with av.open(io.BytesIO(data), metadata_errors='replace') as container:
            stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
            stream.codec_context.thread_count = 1  # FFmpeg conceals damage with one thread only
            for packet in container.demux(stream):
                if packet.size == 0 and packet.dts is not None:
                    continue
                try:
                    found += [digest(frame.to_ndarray(format='rgb24')) for frame in packet.decode()]
                except av.InvalidDataError:
                    continue
    except av.FFmpegError:
        with contextlib.suppress(av.FFmpegError, NameError):  # the container is damaged: what the decoder still holds
            found += [digest(frame.to_ndarray(format='rgb24')) for frame in stream.decode(None)]
    return found


def digest(frame):
    return hashlib.sha256(np.ascontiguousarray(frame)).hexdigest()


def judge(name, data):
    """One line: 'refused: WHY', 'FRAMES frames', or 'WRONG: ...'."""
    blob = Blob(name, data)
    counts = []

    def everything(frames):
        counts.append(frames)
        return np.arange(frames)

    try:
        if name.endswith(('.jpg', '.png')):
            read_image(blob)
            return 'an image'
        frames = [digest(frame) for frame in read_frames(blob, everything)]
        if probe(blob).frames < 1:
            return 'WRONG: no frames, no error'
    except DecodeError as error:
        line = str(error)
        if '\n' in line or not line.startswith(f'{name} ') or len(line) < len(name) + 6:
            return f'WRONG: an error that does not explain itself: {line!r}'
        return f'refused: {error.reason}'
    real = plain(data)
    rest = iter(real)
    if not all(frame in rest for frame in frames):
        return f'WRONG: {sum(frame not in real for frame in frames)} of {len(frames)} frames are not real ones'
    for i in {0, len(frames) // 2, len(frames) - 1}:
        promised = []

        def one(count, i=i, promised=promised):
            promised.append(count)
            return np.array([min(i, count - 1)])

        try:
            frame = digest(read_frames(blob, one)[0])
        except DecodeError as error:
            return f'WRONG: frame {i} alone is refused: {error.reason}'
        if frame not in real or (promised[-1] == len(frames) and frame != frames[i]):
            return f'WRONG: frame {i} alone is another one'
    return f'{len(frames)} frames' + ('' if len(frames) == len(real) else f' of {len(real)}')


def corpus(folder, seed):
    """Yields (name, what was done, bytes, what the verdict has to say)."""
    files = sources(folder)
    for name, data in files.items():
        for number in range(EACH):
            what, mutant = damaged(name, data, number, seed)
            stem, suffix = name.rsplit('.', 1)
            yield f'{stem}_{number}.{suffix}', what, mutant, ''
    for name, data in odd(files).items():
        yield name, 'not a video', data, 'refused'
    for name, (data, expected) in bombs(files, folder).items():
        yield name, 'bomb', data, expected


def peak():
    """The most memory this process has had, in MiB. (`getrusage` would count its parent's, at the fork, too.)"""
    status = Path('/proc/self/status')
    if status.exists():
        return int(re.search(r'VmHWM:\s+(\d+)', status.read_text())[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('folder', type=Path)
    parser.add_argument('--seed', type=int, default=0, help='another one makes another corpus')
    parser.add_argument('--show', action='store_true', help='a line for each mutant')
    args = parser.parse_args()
    before = peak()
    outcomes, wrong = {}, 0
    for name, what, data, expected in corpus(args.folder, args.seed):
        print(f'{name} ({what})', file=sys.stderr)  # the last line names what crashed or hung
        signal.alarm(SECONDS)
        verdict = judge(name, data)
        signal.alarm(0)
        if not re.search(expected, verdict) and not verdict.startswith('WRONG'):
            verdict = f'WRONG: {verdict!r}, not {expected!r}'
        wrong += verdict.startswith('WRONG')
        if args.show or verdict.startswith('WRONG'):
            print(f'{name} ({what}): {verdict}')
        key = verdict.split(':')[0] if verdict[0].isalpha() else 'frames'
        outcomes[key] = outcomes.get(key, 0) + 1
    print(f'{sum(outcomes.values())} mutants: {outcomes}; memory {before} MiB before, {peak()} MiB at most')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
