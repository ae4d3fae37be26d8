"""What one file is: the facts that `mvdjax data check` gathers by hashing it and decoding it once, frame by frame.

Whether a file is readable is always `mvdjax.data.decode`'s verdict, the one that training goes by; what is added here
are the things that training never asks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from mvdjax.data import containers, decode, frames, media, packets
from mvdjax.data.decode import Blob, DecodeError
from mvdjax.data.watchdog import Heartbeat, UnreadableError
from mvdjax.data.watched import FETCH_SECONDS, Alive

VERSION = 1  # of what is gathered: raise it with every change of a fact's meaning
_CHUNK = 1 << 20
_SECONDS_PER_BYTE = 1e-6  # what a large file may take longer for without a sign of life


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a file; a fact that could not be learnt is 0, '' or False.

    Attributes:
      problem: why it cannot be used, continuing a sentence that starts with its path; '' for a good file.
      notes: what is odd about a file that can be used, likewise.
      sha256: of its bytes, in hexadecimal.
      bytes: its size.
      full: whether every frame was decoded, not only the first.
      frames: that decode; where not `full`, that its packets promise. 1 of an image.
      width: of a frame as training sees it (rotation applied), in pixels.
      height: likewise.
      rotation: degrees, counter-clockwise, by which frames are turned to stand upright.
      fps: mean rate by the timestamps, in frames a second.
      seconds: frames / fps.
      variable: whether the time from frame to frame varies by more than half.
      codec: FFmpeg's name, such as 'h264'; of an image its format, such as 'jpeg'.
      pixels: FFmpeg's name of the pixel format, such as 'yuv420p'.
      container: FFmpeg's name, such as 'mov,mp4,m4a,3gp,3g2,mj2'.
      pictures: SHA-256 of what the frames show; equal for files that differ only in their container or metadata.
    """

    problem: str = ''
    notes: tuple[str, ...] = ()
    sha256: str = ''
    bytes: int = 0
    full: bool = False
    frames: int = 0
    width: int = 0
    height: int = 0
    rotation: int = 0
    fps: float = 0.0
    seconds: float = 0.0
    variable: bool = False
    codec: str = ''
    pixels: str = ''
    container: str = ''
    pictures: str = ''


def from_dict(values: Mapping[str, Any]) -> Facts:
    """Facts as `dataclasses.asdict` and JSON leave them. Raises TypeError for anything else."""
    return Facts(**{**values, 'notes': tuple(values['notes'])})


@dataclasses.dataclass(frozen=True)
class Job:
    """A file to examine.

    Attributes:
      path: as a record has it: local, in an object store, or in a packed data set.
      image: whether it should be an image rather than a video.
      full: decode every frame, not only the first.
      patience: seconds without progress after which a decoder is given up; large files get more.
      known: facts by SHA-256 of files that may be this one.
    """

    path: str
    image: bool
    full: bool
    patience: float
    known: Mapping[str, Facts] = dataclasses.field(default_factory=dict)


def examine(job: Job, alive: Alive) -> Facts:
    """Hashes and decodes a file.

    Args:
      job: the file.
      alive: is called before every piece of work with the seconds that it may take.
    """
    alive(FETCH_SECONDS)
    try:
        found = media.fetch(job.path)
    except DecodeError as error:
        return Facts(problem=error.reason)
    alive(job.patience)
    size = len(found.data) if isinstance(found, Blob) else _size(found)
    patience = job.patience + size * _SECONDS_PER_BYTE

    def going_on() -> None:
        alive(patience)

    digest = _digest(found, going_on)
    if digest in job.known:
        return job.known[digest]
    facts = Facts(sha256=digest, bytes=size)
    try:
        return _image(facts, found) if job.image else _video(facts, found, job.full, going_on)
    except DecodeError as error:
        return dataclasses.replace(facts, problem=error.reason)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path) if os.path.isfile(path) else 0
    except (OSError, ValueError):  # a name with a zero byte
        return 0


def _digest(found: str | Blob, alive: Any) -> str:
    """SHA-256 of a file's bytes; '' if it cannot be read, of which the decoder has more to say."""
    if isinstance(found, Blob):
        return hashlib.sha256(found.data).hexdigest()
    digest = hashlib.sha256()
    try:
        with open(found, 'rb') as file:
            while chunk := file.read(_CHUNK):
                alive()
                digest.update(chunk)
    except (OSError, ValueError):
        return ''
    return digest.hexdigest()


def _image(facts: Facts, found: str | Blob) -> Facts:
    """An image's facts. Raises DecodeError."""
    picture = decode.read_image(found)
    with Image.open(io.BytesIO(found.data) if isinstance(found, Blob) else found) as image:
        codec = (image.format or '').lower()
    height, width = picture.shape[:2]
    shown = hashlib.sha256(f'{width}x{height}'.encode() + picture.tobytes()).hexdigest()
    return dataclasses.replace(facts, full=True, frames=1, width=width, height=height, codec=codec, pictures=shown)


def _video(facts: Facts, found: str | Blob, full: bool, alive: Any) -> Facts:
    """A video's facts. Raises DecodeError."""
    alive()
    info = decode.probe(found)
    facts = dataclasses.replace(
        facts,
        frames=info.frames,
        width=info.width,
        height=info.height,
        fps=round(info.fps, 3),
        codec=info.codec,
        container=info.container,
    )
    name, source = (found.name, found.data) if isinstance(found, Blob) else (found, Path(found))
    try:
        with containers.open_video(source, Heartbeat(alive)) as video:
            seen = _Seen(video, full)
    except (av.FFmpegError, OSError, MemoryError, UnreadableError) as error:
        text = str(error) if isinstance(error, UnreadableError) else f'cannot be decoded to its end: {error}'
        raise DecodeError(name, text) from error
    facts = dataclasses.replace(facts, full=full, variable=seen.variable, rotation=seen.rotation, pixels=seen.pixels)
    if full:
        notes = tuple(seen.notes(info.frames))
        facts = dataclasses.replace(facts, frames=seen.sound, notes=notes, pictures=seen.digest.hexdigest())
    return dataclasses.replace(facts, seconds=round(facts.frames / info.fps, 3) if info.fps else 0.0)


class _Seen:
    """What a decode of a video from its first packet shows; of the first frame only, if not `full`."""

    def __init__(self, video: containers.Video, full: bool) -> None:
        """Decodes.

        Raises:
          UnreadableError: frames of different sizes, or damaged ones before sound ones: a clip that needs such a frame
            is refused in training.
          av.FFmpegError: FFmpeg gives up.
        """
        self.rotation, self.pixels, self.variable, self.sound = 0, '', False, 0
        self.digest = hashlib.sha256()
        self.damage = frames.Damage()
        self._size = (0, 0)
        times: list[int | None] = []
        for frame in packets.every_frame(video, self.damage):
            self._see(frame, first=not times)
            times.append(frame.pts)
            if not full:
                return
        self.variable = _is_variable(times)
        self.sound = self.damage.sound()
        hurt = sum(frame < self.sound for frame in self.damage.hurt)
        if hurt:
            raise UnreadableError(f'is damaged: {hurt} of its {self.damage.frames} frames cannot be shown as they were')

    def _see(self, frame: av.VideoFrame, first: bool) -> None:
        """Takes in a frame."""
        containers.check_size(frame.width, frame.height)
        if first:
            self._size = (frame.width, frame.height)
            self.rotation = round(frame.rotation / 90) % 4 * 90
            self.pixels = frame.format.name
            self.digest.update(f'{frame.width}x{frame.height} {self.rotation}'.encode())
        if (frame.width, frame.height) != self._size:
            raise UnreadableError(
                f'changes its frame size on the way, from {self._size[0]} x {self._size[1]} to '
                f'{frame.width} x {frame.height}'
            )
        self.digest.update(_luma(frame))

    def notes(self, promised: int) -> Iterator[str]:
        """What is odd, continuing a sentence that starts with the path."""
        sound = self.sound
        if sound < self.damage.frames:
            yield f'is damaged at its end: {sound} of its {self.damage.frames} frames are left'
        elif sound < promised:
            yield f'promises {promised} frames, of which {sound} decode'
        if sound == 1:
            yield 'has a single frame'


def _luma(frame: av.VideoFrame) -> bytes:
    """What a frame shows, to hash: h x w bytes of brightness, without the padding of its rows."""
    component = frame.format.components[0]
    if not (frame.format.is_planar and component.bits == 8 and not frame.format.is_rgb):
        frame = frame.reformat(format='gray')
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : frame.width].tobytes()


def _is_variable(times: list[int | None]) -> bool:
    """Whether the steps between presentation times vary by more than half of their median."""
    known = np.sort(np.array([time for time in times if time is not None], np.int64))
    steps = np.diff(known)
    return bool(steps.size and np.abs(steps - np.median(steps)).max() > np.median(steps) / 2)
