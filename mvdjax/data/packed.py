"""Packs: encoded videos in ArrayRecord shards, written by `mvdjax data pack`, read through tensorflow-datasets.

A pack is a folder:

    pack.json                               what it is: profile, list, counts, class names, shards; written last
    NAME-SPLIT.array_record-00000-of-00016  examples, in the order of the list
    records/00000.json                      what each shard holds and what was left out, without the videos
    records/00000.pictures                  profile intra: where each picture lies in the shard, see `data.pictures`
    dataset_info.json, features.json        with which tensorflow-datasets knows it: `builder_from_directory(FOLDER)`
    bad_videos.jsonl                        files that could not be read, if any

An example holds `video` (encoded bytes), `path` (as listed), `label`, `frames`, `width`, `height`, `fps`, `codec` and
`sha256` (of the source file). TensorFlow is not needed.
"""

import dataclasses
import functools
import json
import os
import re
import resource
import threading
from pathlib import Path
from typing import Any

from mvdjax.data import pictures
from mvdjax.data.decode import Blob, DecodeError, Pictures
from mvdjax.data.schema import FileList, Record
from mvdjax.errors import UserError

SUMMARY = 'pack.json'
FORMAT = 1  # of the folder's layout
_ADDRESS = re.compile(r'pack://(.+)/([^/#]+)#(\d+)', re.DOTALL)
_SPARE_FILES = 256  # that a process may hold open besides shards


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard as `records/*.json` describes it.

    Attributes:
      records: one dict per example, in order: its fields but the video; `line` of the list; `digest`, the SHA-256 of
        the serialized example; `size` of the video in bytes.
      bad: one dict per file left out: `path`, `line`, `reason`, `reached` (whether its bytes could be had).
      size: of the shard's file, in bytes.
    """

    records: tuple[dict[str, Any], ...]
    bad: tuple[dict[str, Any], ...]
    size: int


def shard_name(summary: dict[str, Any], shard: int) -> str:
    """File name of a shard, as tensorflow-datasets expects it."""
    return f'{summary["name"]}-{summary["split"]}.array_record-{shard:05d}-of-{summary["shards"]:05d}'


def records_name(shard: int) -> str:
    """Name, within the pack, of the file that describes a shard."""
    return f'records/{shard:05d}.json'


def pictures_name(shard: int) -> str:
    """Name, within the pack, of the file that says where the pictures of a shard are."""
    return f'records/{shard:05d}.pictures'


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The contents of `pack.json`.

    Raises:
      UserError: there is none, or it is of another version.
    """
    file = Path(folder) / SUMMARY
    try:
        summary = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f'{folder} is no finished pack ({SUMMARY} is missing); start the `mvdjax data pack` that wrote it again, '
            'or copy the whole folder'
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f'{file} cannot be read ({error}); pack again, or copy the folder again') from error
    if summary.get('format') != FORMAT:
        raise UserError(f'{file} is of format {summary.get("format")}, this version reads {FORMAT}; pack again')
    return summary


def read_shard(folder: str | Path, shard: int) -> Shard | None:
    """What a shard holds, or None if it is not finished."""
    try:
        content = json.loads((Path(folder) / records_name(shard)).read_text())
        return Shard(tuple(content['records']), tuple(content['bad']), content['size'])
    except (OSError, ValueError, KeyError):  # missing, or cut short by a full disk
        return None


def read_pack(path: str) -> FileList:
    """The records of a pack, in the order of the list it was made from, without the files left out.

    Args:
      path: the folder.

    Returns:
      A list whose paths are `pack://FOLDER/SPLIT#INDEX`, with the labels, class names and line numbers of the original.

    Raises:
      UserError: unfinished, or a shard is missing or of another size than was written.
    """
    if '://' in path:
        raise UserError(f'{path}: a pack is read from a local or mounted folder; copy or mount it')
    summary, folder = read_summary(path), os.path.abspath(path)
    records: list[Record] = []
    for shard, size in enumerate(summary['shard_bytes']):
        _check_size(os.path.join(folder, shard_name(summary, shard)), size)
        described = summary.get('pictures', {}).get(str(shard))
        if described:
            _check_size(os.path.join(folder, pictures_name(shard)), described[0])
        content = read_shard(folder, shard)
        if content is None:
            raise UserError(f'{os.path.join(folder, records_name(shard))} cannot be read; copy the folder again')
        for entry in content.records:
            address = f'pack://{folder}/{summary["split"]}#{len(records)}'
            records.append(Record(address, entry['label'], entry['line']))
    if len(records) != summary['counts']['videos']:
        raise UserError(
            f'{folder} holds {len(records)} videos, {summary["counts"]["videos"]} were written; copy the folder again'
        )
    return FileList(path, tuple(records), tuple(summary['class_names']))


def _check_size(file: str, size: int) -> None:
    """Refuses a file that is not as long as it was with UserError."""
    found = os.path.getsize(file) if os.path.exists(file) else None
    if found != size:
        state = 'is missing' if found is None else f'has {found} bytes'
        raise UserError(f'{file} {state}, {size} bytes were written; copy the folder again')


def read_pictures(path: str) -> Pictures | None:
    """The pictures of the video at `pack://FOLDER/SPLIT#INDEX`, if they can be read one by one: profile `intra`."""
    found = _ADDRESS.fullmatch(path)
    pack = _pictures(found[1], found[2]) if found else None
    known = pack.find(int(found[3])) if found and pack else None
    if known is None:
        return None
    shard, rows = known
    return Pictures(len(rows), lambda frames: shard.read(rows[frames]), lambda: read_blob(path))


@functools.cache
def _pictures(folder: str, split: str) -> pictures.Pack | None:
    """The pictures of a pack; None if it has none. (What else is wrong with the pack `read_blob` says.)"""
    try:
        summary = read_summary(folder)
    except UserError:
        return None
    described = summary.get('pictures')
    if not described or split != summary['split']:
        return None
    _allow_open_files(3 * summary['shards'] + _SPARE_FILES)
    numbers, place = range(summary['shards']), functools.partial(os.path.join, folder)
    files = [(place(shard_name(summary, i)), place(pictures_name(i))) for i in numbers]
    return pictures.Pack(files, summary['shard_videos'], [described.get(str(i)) for i in numbers])


def read_blob(path: str) -> Blob:
    """The encoded video at `pack://FOLDER/SPLIT#INDEX`; from any thread or process.

    Raises:
      DecodeError: no such example, or it is damaged.
    """
    found = _ADDRESS.fullmatch(path)
    if found is None:
        raise DecodeError(path, 'is no address in a pack: pack://FOLDER/SPLIT#INDEX')
    try:
        source = _source(found[1], found[2])
        if int(found[3]) >= len(source):
            raise DecodeError(path, f'does not exist: the pack holds {len(source)} videos')
        example = source[int(found[3])]
    except (OSError, ValueError, RuntimeError, UserError) as error:  # array_record raises RuntimeError for damage
        raise DecodeError(path, f'cannot be read: {" ".join(str(error).split())}') from error
    return Blob(f'{path} ({example["path"].decode()})', example['video'])


# Both by process: a child must not use the files and locks that its parent had at the fork.
_sources: dict[tuple[int, str, str], Any] = {}
_locks: dict[int, threading.Lock] = {}


def _source(folder: str, split: str) -> Any:
    """The data source of a pack, opened once per process, by the first thread that comes."""
    key = (os.getpid(), folder, split)
    if key not in _sources:
        with _locks.setdefault(os.getpid(), threading.Lock()):
            if key not in _sources:
                source = open_source(folder, split)
                source[0]  # imports what tensorflow-datasets leaves for later, while no other thread does
                _sources[key] = source
    return _sources[key]


def open_source(folder: str | Path, split: str) -> Any:
    """What `tfds.data_source` gives for a pack: a sequence of dicts with random access.

    Raises:
      UserError: no finished pack, or it has no such split.
    """
    import tensorflow_datasets as tfds

    summary = read_summary(folder)
    if split != summary['split']:
        raise UserError(f'{folder} has no split {split!r}, only {summary["split"]!r}')
    _allow_open_files(summary['shards'] + _SPARE_FILES)
    return tfds.builder_from_directory(folder).as_data_source(split)


def _allow_open_files(count: int) -> None:
    """Raises this process's limit of open files where it may: array_record keeps one open per shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard)
        )
