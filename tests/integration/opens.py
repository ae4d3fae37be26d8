"""Memory over many opens: `python tests/integration/opens.py [--opens 20000] [--files FILE ...]`.

Reads three frames out of small files of six kinds (and one that is broken), over and over, and prints the memory of
this process as it goes. Status 1 if it grows by more than `--bound` bytes an open, fitted over the second half; the
first half fills caches. Twenty thousand opens take about two minutes on one core.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'data'), str(HERE.parent.parent)]

from video_files import X264, encode  # noqa: E402

from mvdjax.data.decode import Blob, DecodeError, probe, read_frames  # noqa: E402

KINDS = {
    'a.mp4': ('libx264', {'g': '8', **X264}),
    'a.webm': ('libvpx-vp9', {'deadline': 'realtime', 'cpu-used': '8', 'g': '8'}),
    'a.avi': ('mpeg4', {'g': '8'}),
    'a.ts': ('libx264', {'g': '8', **X264}),
    'a.mkv': ('mjpeg', {}),
    'b.mp4': ('libx265', {'preset': 'ultrafast', 'x265-params': 'keyint=8'}),
}


def small_files(folder):
    """The six kinds, one of them cut in two."""
    files = [
        encode(folder / name, codec, frames=12, height=48, width=64, **options)
        for name, (codec, options) in KINDS.items()
    ]
    (folder / 'broken.mp4').write_bytes(files[0].read_bytes()[:900])
    return [*files, folder / 'broken.mp4']


def measure(files, opens, every):
    """(opens, bytes of memory of this process) after each `every` of them."""
    process = psutil.Process()
    blobs = [Blob(str(file), file.read_bytes()) for file in files]
    points = []
    for i in range(opens):
        media = (files if i % 3 else blobs)[i % len(files)]
        with contextlib.suppress(DecodeError):
            read_frames(media, lambda frames: np.arange(0, frames, 5))
            if i % 50 == 0:
                probe(media)
        if (i + 1) % every == 0:
            points.append((i + 1, process.memory_info().rss))
    return points


def slope(points):
    """Bytes an open, by a straight line through the second half of the points."""
    x, y = np.array(points[len(points) // 2 :], float).T
    return np.polyfit(x, y, 1)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--opens', type=int, default=20_000)
    parser.add_argument('--files', type=Path, nargs='*', help='real files in place of the made ones')
    parser.add_argument('--bound', type=float, default=200.0, help='bytes an open')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        points = measure(args.files or small_files(Path(folder)), args.opens, max(1, args.opens // 20))
    for count, memory in points[:: max(1, len(points) // 10)]:
        print(f'{count:>7} opens  {memory / 2**20:7.1f} MiB')
    growth = slope(points)
    print(f'{args.opens} opens in {time.monotonic() - start:.0f} s: {growth:+.1f} bytes an open over the second half')
    return int(growth > args.bound)


if __name__ == '__main__':
    sys.exit(main())
