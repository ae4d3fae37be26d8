"""One shard of a pack: written by a worker process of `mvdjax data pack`, read back and compared."""

import dataclasses
import errno
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mvdjax.data import pictures, transcode
from mvdjax.data.decode import Blob, DecodeError
from mvdjax.data.media import fetch
from mvdjax.data.packed import Shard
from mvdjax.data.watched import FETCH_SECONDS, Alive
from mvdjax.errors import UserError

_SPARE_BYTES = 4 * 2**20  # of disk space, kept for the descriptions of the shards
_OPTIONS = 'group_size:1,uncompressed'  # one example per chunk: random access; videos do not compress
_SILENT_SECONDS = 300.0  # that a decoder may go without giving a frame


@dataclasses.dataclass(frozen=True)
class Item:
    """A line of the list.

    Attributes:
      source: what to fetch.
      path: as the list has it.
      label: class number.
      line: its number.
      blame: why it must not be touched: what it did to the process that did.
    """

    source: str
    path: str
    label: int
    line: int
    blame: str = ''


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to write.

    Attributes:
      file: where; not its final name.
      note: file that says how far the work is, for `read_note`.
      items: what to pack, in order.
      profile, short_side: see `transcode.pack_video`.
      class_names: see `features`.
      strict: whether an unreadable file is an error.
    """

    file: str
    note: str
    items: tuple[Item, ...]
    profile: str
    short_side: int
    class_names: tuple[str, ...]
    strict: bool


@dataclasses.dataclass(frozen=True)
class Check:
    """A shard to read back: its file, what it should hold, and as in `Job`.

    `pictures` is the file that says where its pictures are, and what `pictures.describe` said of that; None for none.
    """

    file: str
    note: str
    shard: Shard
    class_names: tuple[str, ...]
    pictures: tuple[str, Sequence[int]] | None = None


@dataclasses.dataclass(frozen=True)
class Trouble:
    """Why all work must end: a full disk, a shard that reads back wrong, with `strict` an unreadable file."""

    text: str


class UnreachedError(DecodeError):
    """A file whose bytes were not to be had: they may be another time."""


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


class _Note:
    """Tells the parent, through a file, how many items are done; also that this process is alive."""

    def __init__(self, path: str, alive: Alive) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._parent = os.getppid()
        self.alive = alive
        self.done = -1
        self.next()

    def next(self) -> None:
        """One more item is done."""
        self.done += 1
        os.pwrite(self._file, b'%12d' % self.done, 0)
        self.alive(FETCH_SECONDS)

    def tick(self) -> None:
        """A sign of life. Without a parent there is nothing to live for."""
        if os.getppid() != self._parent:
            os._exit(1)
        self.alive(_SILENT_SECONDS)

    def close(self) -> None:
        """Closes the file and leaves it."""
        os.close(self._file)


def read_note(path: str) -> int:
    """How many items of a job are done; the next one is in work."""
    try:
        with open(path, 'rb') as file:
            return int(file.read() or 0)
    except FileNotFoundError:
        return 0


def at_work(job: Job | Check) -> str:
    """The file that a job is at: a source, or the shard while it is read back."""
    place = read_note(job.note)
    return job.items[place].source if isinstance(job, Job) and place < len(job.items) else job.file


def write_shard(job: Job, alive: Alive) -> Shard | Trouble:
    """Encodes the videos of a shard, writes them and reads them back. `alive`: see `watched`."""
    note = _Note(job.note, alive)
    try:
        shard = _write(job, note)
    except OSError as error:
        return Trouble(f'{job.file} cannot be written ({error.strerror or error}): the pack needs room')
    except UserError as error:
        return Trouble(str(error))
    except Exception as error:  # noqa: BLE001 -- it has to reach the parent with the file's name
        return Trouble(f'{job.items[note.done].source}: {type(error).__name__}: {error}')
    finally:
        note.close()
    damage = find_damage(job.file, shard, job.class_names, note.tick)
    if damage:
        return Trouble(f'{job.file} does not hold what was written: {damage}; check the disk')
    if job.profile == 'intra':
        try:
            pictures.write(pictures_file(job.file), job.file, _read_examples(job.file, job.class_names, note.tick))
        except OSError as error:
            return Trouble(f'{pictures_file(job.file)} cannot be written ({error.strerror or error})')
    return shard


def pictures_file(file: str) -> str:
    """Where a job writes its `pictures.write`; not its final name."""
    return f'{file.removesuffix(".tmp")}.pictures.tmp'


def _read_examples(path: str, class_names: tuple[str, ...], tick: Callable[[], None]) -> Iterator[tuple[bytes, bytes]]:
    """The serialized examples of a shard, and the video of each. `tick` is called before each."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource([path]) as source:
        for i in range(len(source)):
            tick()
            example = source[i]
            yield example, features(class_names).deserialize_example_np(example)['video']


def _write(job: Job, note: _Note) -> Shard:
    from array_record.python.array_record_module import ArrayRecordWriter

    records: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    with _disk_errors(job.file):
        writer = ArrayRecordWriter(job.file, _OPTIONS)
    for item in job.items:
        try:
            record, example = _example(item, job, note)
        except DecodeError as error:
            if job.strict:
                raise UserError(
                    f'{error} (line {item.line} of the list); mend or remove it, or pack without --strict'
                ) from error
            reached = not isinstance(error, UnreachedError)
            bad.append({'path': item.source, 'line': item.line, 'reason': error.reason, 'reached': reached})
        else:
            _check_room(job.file, len(example))
            with _disk_errors(job.file):
                writer.write(example)
            records.append({**record, 'digest': hashlib.sha256(example).hexdigest()})
        note.next()
    with _disk_errors(job.file):
        writer.close()
    with open(job.file, 'rb') as file:
        os.fsync(file.fileno())
    return Shard(tuple(records), tuple(bad), os.path.getsize(job.file))


def check_shard(check: Check, alive: Alive) -> str:
    """What is wrong with a finished shard, or ''. `alive`: see `watched`."""
    note = _Note(check.note, alive)
    try:
        damage = find_damage(check.file, check.shard, check.class_names, note.next)
        if not damage and check.pictures:
            path, described = check.pictures
            frames = [record['frames'] for record in check.shard.records]
            damage = pictures.find_damage(path, check.file, described, frames)
        return damage
    finally:
        note.close()


def _example(item: Item, job: Job, note: _Note) -> tuple[dict[str, Any], bytes]:
    """What `records/*.json` says of a video, and its serialized example. Raises DecodeError."""
    if item.blame:
        raise DecodeError(item.source, item.blame)
    try:
        media = fetch(item.source)
        note.tick()
        source_digest = _source_digest(media)
    except DecodeError as error:
        raise UnreachedError(item.source, error.reason) from error
    packed = transcode.pack_video(media, job.profile, job.short_side, note.tick)
    info = packed.info
    record = {
        'path': item.path,
        'label': item.label,
        'frames': info.frames,
        'width': info.width,
        'height': info.height,
        'fps': info.fps,
        'codec': info.codec,
        'sha256': source_digest,
    }
    return {**record, 'line': item.line, 'size': len(packed.data)}, _serialized(record, packed.data, job.class_names)


def _serialized(record: dict[str, Any], video: bytes, class_names: tuple[str, ...]) -> bytes:
    """A tf.Example, always of the same bytes: tensorflow-datasets' own call leaves the order of fields to chance."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    described = features(class_names)
    serializer = ExampleSerializer(described.get_serialized_info())
    example = serializer.get_tf_example(described.encode_example({**record, 'video': video}))
    return example.SerializeToString(deterministic=True)


def _source_digest(media: str | Blob) -> str:
    if isinstance(media, Blob):
        return hashlib.sha256(media.data).hexdigest()
    try:
        with open(media, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except FileNotFoundError:
        raise DecodeError(media, 'does not exist') from None
    except (OSError, ValueError) as error:
        raise DecodeError(media, f'cannot be opened: {error}') from error


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


def find_damage(path: str, shard: Shard, class_names: tuple[str, ...], tick: Callable[[], None]) -> str:
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
