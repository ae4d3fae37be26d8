"""Where each picture of an `intra` pack lies in its shard, so that a clip fetches its 16 pictures and not its video.

Beside each shard of the profile `intra` there is `records/00000.pictures`:

    16 bytes                     "mvdjax pictures1"
    int64, int64 (videos + 1,)   number of videos; for each the first of its rows, and the end of the last one's
    rows of 16 bytes             int64 offset, uint32 size and CRC-32 of a picture, in the order of the frames

all little-endian. `pack.json` has each file's length and the CRC-32 of what comes before the rows. An offset counts the
bytes of the shard's contents: ArrayRecord files are made of blocks of 64 KiB, each with a header of 24 bytes that may
lie anywhere within an example (Riegeli's format). Nobody has to believe this: every row was read back when it was
written, a video with which that failed has no rows, and a picture that does not fit its CRC is not used. In all these
cases the whole example is read, which ArrayRecord's own hash protects.
"""

import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvdjax.data import packets
from mvdjax.data.containers import open_video
from mvdjax.data.watchdog import UnreadableError, Watch

_MAGIC = b'mvdjax pictures1'
_ROW = np.dtype([('offset', '<i8'), ('size', '<u4'), ('crc', '<u4')])
_BLOCK, _HEADER = 65536, 24
_INSIDE = _BLOCK - _HEADER


def _place(offset: int) -> int:
    """Where in a shard's file a byte of its contents is."""
    block, at = divmod(offset, _INSIDE)
    return block * _BLOCK + _HEADER + at


def _read(file: int, offset: int, size: int) -> bytes:
    """A piece of a shard's contents, which is short at the end of the file."""
    parts = []
    while size > 0:
        part = os.pread(file, min(size, _INSIDE - offset % _INSIDE), _place(offset))
        if not part:
            break
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b''.join(parts)


# --- writing ---------------------------------------------------------------------------------------------------------


def write(path: str, shard: str, examples: Iterable[tuple[bytes, bytes]]) -> None:
    """Writes the file that says where a shard's pictures lie.

    Args:
      path: of the file.
      shard: the shard's file, finished.
      examples: of each of its videos, in order, the serialized example and the Matroska file in it.

    Raises:
      OSError: it cannot be written.
    """
    found, at = [], 0
    file = os.open(shard, os.O_RDONLY)
    try:
        for example, video in examples:
            place = _read(file, at, len(example) + 2 * _BLOCK).find(example)
            if place < 0:
                found.append(np.empty(0, _ROW))
                continue
            found.append(_rows(file, at + place + example.index(video), video))
            at += place + len(example)
    finally:
        os.close(file)
    starts = np.cumsum([0, *(len(rows) for rows in found)])
    with open(path, 'wb') as target:
        target.write(_MAGIC + np.concatenate([[len(found)], starts]).astype('<i8').tobytes())
        for rows in found:
            target.write(rows.tobytes())
        target.flush()
        os.fsync(target.fileno())


def _rows(file: int, start: int, video: bytes) -> np.ndarray:
    """The rows of a video whose bytes begin at `start`; none where they cannot be proved right."""
    with open_video(video, Watch()) as opened:
        index = packets.read_index(opened)
    rows, at = [], 0
    with open_video(video, Watch()) as opened:
        for packet in packets.stream_packets(opened):
            data = bytes(packet)
            at = video.find(data, at)
            if at < 0 or _read(file, start + at, len(data)) != data:
                return np.empty(0, _ROW)
            rows.append((start + at, len(data), zlib.crc32(data)))
            at += len(data)
    provable = index.exact and index.keyframe.all() and np.array_equal(index.shown, np.arange(len(rows)))
    return np.array(rows if provable else [], _ROW)


def find_damage(path: str, shard: str, described: Sequence[int], frames: Sequence[int]) -> str:
    """What is wrong first with the list of a shard's pictures, or with a picture; or ''.

    Args:
      path: what `write` has written.
      shard: the shard.
      described: what `describe` said of it then.
      frames: how many pictures each of the shard's videos has.
    """
    video = 0
    try:
        opened = Shard(shard, path, described)
        for video, count in enumerate(frames):
            rows = opened.rows(video)
            if len(rows) not in (0, count):
                return f'video {video} has {len(rows)} of {count} pictures in {path}'
            for row in rows:
                opened.read(row[None])
    except (OSError, UnreadableError) as error:
        return f'a picture of video {video}, or {path}, cannot be read ({error})'
    return ''


def describe(path: Path) -> list[int] | None:
    """[length, CRC-32 of the head] of such a file, for `pack.json`; None if there is none."""
    try:
        with open(path, 'rb') as file:
            head = _read_head(file.fileno())
        return [os.path.getsize(path), zlib.crc32(head)]
    except (OSError, UnreadableError):
        return None


def _read_head(file: int) -> bytes:
    """What comes before the rows. Raises UnreadableError, OSError."""
    first = os.pread(file, len(_MAGIC) + 8, 0)
    if first[: len(_MAGIC)] != _MAGIC or len(first) < len(_MAGIC) + 8:
        raise UnreadableError('is no list of pictures')
    length = len(_MAGIC) + 8 * (int(np.frombuffer(first, '<i8', 1, len(_MAGIC))[0]) + 2)
    head = os.pread(file, length, 0) if length <= os.fstat(file).st_size else b''
    if len(head) < length:
        raise UnreadableError('is cut short')
    return head


# --- reading ---------------------------------------------------------------------------------------------------------


class Shard:
    """A shard whose pictures can be read one by one, by any thread. Its files stay open as long as it is there."""

    def __init__(self, shard: str, path: str, described: Sequence[int]) -> None:
        """Opens both files.

        Args:
          shard: the shard.
          path: what `write` has written.
          described: what `describe` said of it then.

        Raises:
          UnreadableError, OSError: it is another file.
        """
        self._files: list[int] = []
        self._files.append(os.open(path, os.O_RDONLY))
        head = _read_head(self._files[0])
        if [os.path.getsize(path), zlib.crc32(head)] != list(described):
            raise UnreadableError('is not what was written')
        self._starts = np.frombuffer(head, '<i8', offset=len(_MAGIC) + 8)
        self._first = len(head)
        self._files.append(os.open(shard, os.O_RDONLY))

    def __del__(self) -> None:
        """Closes both files."""
        for file in self._files:
            os.close(file)

    def rows(self, video: int) -> np.ndarray:
        """Where the pictures of a video lie: (frames,) of offset, size and CRC-32; none if that is not known."""
        first, end = (int(start) for start in self._starts[video : video + 2])
        data = os.pread(self._files[0], (end - first) * _ROW.itemsize, self._first + first * _ROW.itemsize)
        return np.frombuffer(data, _ROW) if len(data) == (end - first) * _ROW.itemsize else np.empty(0, _ROW)

    def read(self, rows: np.ndarray) -> list[bytes]:
        """Pictures.

        Raises:
          UnreadableError, OSError: one is not what was written.
        """
        file, found = self._files[1], []
        if hasattr(os, 'posix_fadvise'):  # slow storage gets all requests at once
            for offset, size, _ in rows.tolist():
                os.posix_fadvise(file, _place(offset), size + _HEADER, os.POSIX_FADV_WILLNEED)
        for offset, size, crc in rows.tolist():
            data = _read(file, offset, size)
            if len(data) != size or zlib.crc32(data) != crc:
                raise UnreadableError('is damaged')
            found.append(data)
        return found


class Pack:
    """The pictures of all shards of a pack that has them; shards are opened when they are first read."""

    def __init__(self, shards: Sequence[tuple[str, str]], videos: Sequence[int], described: Sequence[Any]) -> None:
        """What to open.

        Args:
          shards: of each shard, its file and the one that says where its pictures are.
          videos: how many each holds.
          described: what `describe` said when they were written.
        """
        self._shards, self._described = shards, described
        self._ends = np.cumsum(videos)
        self._starts = self._ends - np.asarray(videos)
        self._open: dict[int, Shard | None] = {}

    def find(self, index: int) -> tuple[Shard, np.ndarray] | None:
        """The shard and the rows of video `index` of the pack; None if its pictures cannot be read one by one."""
        number = int(np.searchsorted(self._ends, index, side='right'))
        if number >= len(self._shards) or self._described[number] is None:
            return None
        if number not in self._open:  # two threads may both open it: the second one's is used and the first one's ends
            self._open[number] = self._opened(number)
        shard = self._open[number]
        if shard is None:
            return None
        rows = shard.rows(index - int(self._starts[number]))
        return (shard, rows) if len(rows) else None

    def _opened(self, number: int) -> Shard | None:
        try:
            return Shard(*self._shards[number], self._described[number])
        except (OSError, UnreadableError):  # whole examples are read instead
            return None
