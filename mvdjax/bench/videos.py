"""The videos that `mvdjax bench loader` reads: rendered once into a cache folder, alike on every machine.

They stand for the two kinds of files people train on. `kinetics` is 340 x 256 H.264 at 30 frames a second, 10 s long,
with x264's own defaults: a keyframe every 250 frames, B-frames, pyramid. `ssv2` is 427 x 240 VP9 in webm at 12 frames
a second, 4 s long. What a decoder has to do depends on the pictures, so they are made to be what cameras see after one
lossy compression: textured, hardly any grain, a camera that stands, pans, zooms or shakes, and a few things that move.
"""

import dataclasses
import io
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from mvdjax.data import pack, transcode
from mvdjax.data.sources import read_list

VERSION = 1  # raise it with every change that alters a file
PACK_VERSION = 2  # likewise with what packs hold besides videos
_GRAIN = 1  # standard deviation, in levels of 255
_CAMERAS = ('still', 'pan', 'zoom', 'shake')


@dataclasses.dataclass(frozen=True)
class VideoKind:
    """How one kind of video is made.

    Attributes:
        height, width: in pixels.
        fps: frames a second.
        frames: length.
        suffix: of the file; it names the container.
        codec: FFmpeg's encoder.
        options: of the encoder.
    """

    height: int
    width: int
    fps: int
    frames: int
    suffix: str
    codec: str
    options: dict[str, str]


KINDS = {
    'kinetics': VideoKind(256, 340, 30, 300, '.mp4', 'libx264', {'preset': 'medium', 'crf': '23', 'g': '250'}),
    'ssv2': VideoKind(240, 427, 12, 48, '.webm', 'libvpx-vp9', {'crf': '32', 'b': '0', 'cpu-used': '5', 'g': '128'}),
}


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A coloured texture with structure of all sizes, uint8 (height, width, 3)."""
    picture = np.zeros((height, width, 3), np.float32)
    for octave in range(7):
        cells = max(2, height >> (7 - octave)), max(2, width >> (7 - octave))
        noise = rng.standard_normal((*cells, 3), np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 0.75**octave
    low, high = np.percentile(picture, (1, 99))
    return np.clip((picture - low) * (255 / (high - low)), 0, 255).astype(np.uint8)


def _view(camera: str, i: int, fps: int) -> tuple[float, float, float]:
    """Where the camera looks at frame i: pixels right, pixels down, and the zoom."""
    seconds = i / fps
    if camera == 'pan':
        return 25 * seconds, 6 * math.sin(seconds), 1.0
    if camera == 'zoom':
        return 0.0, 0.0, 1.25 + 0.25 * math.sin(seconds)
    if camera == 'shake':
        return 6 * math.sin(2.9 * seconds), 6 * math.sin(4.3 * seconds), 1.0
    return 0.0, 0.0, 1.0


def render(kind: VideoKind, seed: int) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 (height, width, 3), RGB; `seed` also picks the camera."""
    rng = np.random.default_rng(seed)
    camera = _CAMERAS[seed % len(_CAMERAS)]
    scene = _texture(rng, 2 * kind.height, 2 * kind.width)
    things = [_texture(rng, side, side) for side in rng.integers(kind.height // 6, kind.height // 2, 4).tolist()]
    paths = rng.uniform(0.3, 1.5, (len(things), 2)), rng.uniform(0, 2 * math.pi, (len(things), 2))
    for i in range(kind.frames):
        right, down, zoom = _view(camera, i, kind.fps)
        # Output pixel (x, y) shows scene pixel (x / zoom + right, y / zoom + down), about the scene's centre.
        left, top = kind.width / 2 + right, kind.height / 2 + down
        matrix = np.array([[1 / zoom, 0, left], [0, 1 / zoom, top]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(scene, matrix, (kind.width, kind.height), flags=flags, borderMode=cv2.BORDER_REFLECT)
        for thing, speed, phase in zip(things, *paths, strict=True):
            side = len(thing)
            y, x = (np.sin(speed * i / kind.fps + phase) + 1) / 2 * (kind.height - side, kind.width - side)
            frame[int(y) : int(y) + side, int(x) : int(x) + side] = thing
        grain = rng.standard_normal((kind.height, kind.width, 1), np.float32) * _GRAIN
        yield np.clip(frame + grain, 0, 255).astype(np.uint8)


def encode(kind: VideoKind, frames: Iterator[np.ndarray]) -> bytes:
    """The bytes of a video file."""
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format=kind.suffix[1:], container_options={'fflags': '+bitexact'}) as output:
        options = {**kind.options, 'threads': '1', 'flags': '+bitexact'}
        stream = output.add_stream(kind.codec, rate=Fraction(kind.fps), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = kind.height, kind.width, 'yuv420p'
        for picture in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def write_videos(folder: Path, kind: str, count: int) -> Path:
    """The list of `count` videos of a kind, which are written to `folder` if they are not there yet.

    Raises:
        OSError: they cannot be written.
    """
    made = KINDS[kind]
    target = folder / f'v{VERSION}' / kind
    target.mkdir(parents=True, exist_ok=True)
    names = [f'{seed}{made.suffix}' for seed in range(count)]
    for seed, name in enumerate(names):
        if not (target / name).exists():
            _write(target / name, encode(made, render(made, seed)))
    return _write(target / f'first_{count}.txt', ''.join(f'{name} 0\n' for name in names).encode())


def write_packed(folder: Path, kind: str, count: int, profile: str) -> Path:
    """The pack that `mvdjax data pack` makes of the same videos. Raises UserError if it cannot be written."""
    sources = write_videos(folder, kind, count)
    target = sources.with_name(f'{sources.stem}_{profile}_v{transcode.VERSION}_{PACK_VERSION}')
    pack.write_pack(read_list(str(sources)), '', str(target), pack.PackSpec(profile, name=kind), progress=False)
    return target


def _write(path: Path, data: bytes) -> Path:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return path
