"""One shard of a pack: written by a worker process of `mvdjax data pack`, read back and compared."""

import dataclasses
import errno
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mvdjax.data import transcode
from mvdjax.data.decode import Blob, DecodeError
from mvdjax.data.media import fetch
from mvdjax.data.packed import Shard
from mvdjax.errors import UserError

_SPARE_BYTES = 4 * 2**20  # of disk space, kept for the descriptions of the shards
_OPTIONS = 'group_size:1,uncompressed'  # one example per chunk: random access; videos do not compress


@dataclasses.dataclass(frozen=True)
class Item:
    """A line of the list: what to fetch, the path as listed, the label and the line's number."""

    source: str
    path: str
    label: int
    line: int


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to write.

    Attributes:
      file: where; not its final name.
      items: what to pack, in order.
      profile, short_side: see `transcode.pack_video`.
      class_names: see `features`.
      strict: whether an unreadable file is an error.
    """

    file: str
    items: tuple[Item, ...]
    profile: str
    short_side: int
    class_names: tuple[str, ...]
    strict: bool


@functools.cache
def features(class_names: tuple[str, ...]) -> Any:
    """The `tfds.features.FeaturesDict` of an example."""
    import tensorflow_datasets as tfds

    number, text = functools.partial(tfds.features.Scalar, dtype=np.int64), tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            'video': tfds.features.Scalar(dtype=np.object_),  # bytes
            'path': text(),
            'label': tfds.features.ClassLabel(names=class_names) if class_names else number(),
            'frames': number(),
            'width': number(),
            'height': number(),
            'fps': tfds.features.Scalar(dtype=np.float32),
            'codec': text(),
            'sha256': text(),
        }
    )


def write_shard(job: Job, tick: Callable[[], None]) -> Shard:
    """Encodes the videos of a shard and writes them, then reads them back.

    Args:
      job: the shard.
      tick: called after every video. What it raises ends the work.

    Raises:
      OSError: the disk is full, or `job.file` cannot be written.
      UserError: the shard reads back wrong, or with `strict` a file cannot be read.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    records: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    with _disk_errors(job.file):
        writer = ArrayRecordWriter(job.file, _OPTIONS)
    for item in job.items:
        try:
            record, example = _example(item, job)
        except DecodeError as error:
            if job.strict:
                raise UserError(
                    f'{error} (line {item.line} of the list); mend or remove it, or pack without --strict'
                ) from error
            bad.append({'path': item.source, 'line': item.line, 'reason': error.reason})
        else:
            _check_room(job.file, len(example))
            with _disk_errors(job.file):
                writer.write(example)
            records.append({**record, 'digest': hashlib.sha256(example).hexdigest()})
        tick()
    with _disk_errors(job.file):
        writer.close()
    with open(job.file, 'rb') as file:
        os.fsync(file.fileno())
    shard = Shard(tuple(records), tuple(bad), os.path.getsize(job.file))
    if problem := find_damage(job.file, shard, job.class_names):
        raise UserError(f'{job.file} does not hold what was written: {problem}; check the disk')
    return shard


def _example(item: Item, job: Job) -> tuple[dict[str, Any], bytes]:
    """What `records/*.json` says of a video, and its serialized example. Raises DecodeError."""
    media = fetch(item.source)
    packed = transcode.pack_video(media, job.profile, job.short_side)
    info = packed.info
    record = {
        'path': item.path,
        'label': item.label,
        'frames': info.frames,
        'width': info.width,
        'height': info.height,
        'fps': info.fps,
        'codec': info.codec,
        'sha256': _source_digest(media),
    }
    example = features(job.class_names).serialize_example({**record, 'video': packed.data})
    return {**record, 'line': item.line, 'size': len(packed.data)}, example


def _source_digest(media: str | Blob) -> str:
    if isinstance(media, Blob):
        return hashlib.sha256(media.data).hexdigest()
    with open(media, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@contextmanager
def _disk_errors(path: str) -> Iterator[None]:
    """array_record's errors as OSError: "write() failed: No space left on device; writing ..."."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).removeprefix('write() failed: ').split(';')[0]
        raise OSError(errno.EIO, text, path) from error


def _check_room(path: str, size: int) -> None:
    """Raises OSError before the disk is full: array_record writes in the background and tells only at the end."""
    if shutil.disk_usage(os.path.dirname(path)).free < size + _SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def find_damage(path: str, shard: Shard, class_names: tuple[str, ...], tick: Callable[[], None] = lambda: None) -> str:
    """Reads a shard: the number of examples, the hash of each, and its first and last frame.

    Args:
      path: the shard's file.
      shard: what it should hold.
      class_names: see `features`.
      tick: called after every example.

    Returns:
      What is wrong first, or ''.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    where = 'the file'
    try:
        if os.path.getsize(path) != shard.size:
            return f'{os.path.getsize(path)} bytes instead of {shard.size}'
        with ArrayRecordDataSource([path]) as source:
            if len(source) != len(shard.records):
                return f'{len(source)} videos instead of {len(shard.records)}'
            for i, record in enumerate(shard.records):
                where = f'video {i} ({record["path"]})'
                example = source[i]
                if hashlib.sha256(example).hexdigest() != record['digest']:
                    return f'{where} has another hash'
                video = features(class_names).deserialize_example_np(example)['video']
                shape = transcode.first_and_last(Blob(record['path'], video)).shape
                if shape != (2, record['height'], record['width'], 3):
                    return f'{where} has frames of {shape[2]} x {shape[1]}'
                tick()
    except (OSError, RuntimeError, DecodeError) as error:
        return f'{where} cannot be read ({" ".join(str(error).split())})'
    return ''
