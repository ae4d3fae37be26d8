"""What one clip costs: `python tests/integration/decode_cost.py [--rounds 30] [--files FILE ...]`.

Processor milliseconds for 16 frames at stride 4 from a random start, medians over interleaved rounds: from the path,
from memory, and beside it decoding every packet up to the same frames with nothing skipped and nothing converted (what
FFmpeg by itself would do). Without `--files`, small files are made for it, one of them five minutes long.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'data'), str(HERE.parent.parent)]

from video_files import X264, encode  # noqa: E402

from mvdjax.data.decode import Blob, read_frames  # noqa: E402

SIZE = {'height': 256, 'width': 340}
KINDS = {
    'h264, 10 s, GOP 250.mp4': ('libx264', {'frames': 300, 'g': '250', **SIZE, **X264}),
    'h264, 300 s.mp4': ('libx264', {'frames': 9000, 'g': '60', 'height': 64, 'width': 96, **X264}),
    'vp9, 4 s.webm': ('libvpx-vp9', {'frames': 48, **SIZE, 'deadline': 'realtime', 'cpu-used': '7'}),
    'mpeg4, 10 s.avi': ('mpeg4', {'frames': 300, **SIZE}),
    'mjpeg, 10 s.mkv': ('mjpeg', {'frames': 300, **SIZE}),
}


def bare(path, ids):
    """Decodes all packets from the keyframe before the first wanted frame to the last one."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        packets = [packet for packet in container.demux(stream) if packet.size]
        first = max(i for i, packet in enumerate(packets[: ids[0] + 1]) if packet.is_keyframe)
        for packet in packets[first : ids[-1] + 1]:
            packet.decode()


def cost(call):
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument('--files', type=Path, nargs='*')
    args = parser.parse_args()
    print(f'{"":28}{"first read":>12}{"path":>8}{"memory":>8}{"bare":>8}   ms of one core per clip')
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or [
            encode(Path(folder) / name, codec, **options) for name, (codec, options) in KINDS.items()
        ]
        for path in files:
            measure(path, args.rounds)


def measure(path, rounds):
    rng = np.random.default_rng(0)
    blob = Blob(str(path), path.read_bytes())
    counts = []
    first = cost(lambda: read_frames(path, lambda frames: counts.append(frames) or np.arange(16)))
    costs = []
    for _ in range(rounds):
        ids = np.minimum(rng.integers(0, max(1, counts[0] - 64)) + 4 * np.arange(16), counts[0] - 1)
        calls = (
            lambda ids=ids: read_frames(path, lambda _: ids),
            lambda ids=ids: read_frames(blob, lambda _: ids),
            lambda ids=ids: bare(path, ids),
        )
        costs.append([cost(call) for call in calls])
    path_cost, memory_cost, bare_cost = np.median(costs, 0)
    print(f'{path.name:28}{first:12.1f}{path_cost:8.1f}{memory_cost:8.1f}{bare_cost:8.1f}', flush=True)


if __name__ == '__main__':
    main()
