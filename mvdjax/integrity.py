"""Whether a checkpoint holds what was saved: every file by size and checksum, every array by shape, dtype and content.

A checkpoint is verified while it is still nameless: its files are forced to the disk and summed, its arrays read back
and compared with the fingerprints taken on the devices. The sums stay with it as `verified.json`, so that a later
start, or a copy, needs no more than to read the files once. This module runs in one process and knows no devices.
"""

import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mvdjax import checkpoints, trees

RECORD = 'verified.json'
FINGERPRINTS = 'fingerprints'  # an item of a checkpoint, see mvdjax/fingerprints.py
GROUP = 2**30  # bytes of arrays that are read back at once
UNSUMMED = (RECORD, '_CHECKPOINT_METADATA')  # the latter, Orbax's times of saving, changes once more at the end
_CHUNK = 2**20


def fingerprint(array: np.ndarray) -> int:
    """The number that `fingerprints.table` computes on a device, of an array of the host."""
    array = np.ascontiguousarray(array)
    kind = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
    words = array.reshape(-1).view(kind)
    weights = 2 * np.arange(_CHUNK, dtype=np.uint32) + np.uint32(1)
    total = 0
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK].astype(np.uint32)
        weighted = int(np.sum(part * weights[: len(part)], dtype=np.uint32))
        total += weighted + 2 * start * int(np.sum(part, dtype=np.uint32))
    return total % 2**32


def _checksum(file: epath.Path, force: bool) -> list[int]:
    """[bytes, CRC-32] of a file; `force`: after it has been forced to the disk."""
    size = checksum = 0
    with file.open('rb') as stream:
        if force and os.path.exists(file):  # a local one: a store has committed what it holds
            os.fsync(stream.fileno())
        while part := stream.read(16 * _CHUNK):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
    return [size, checksum]


def files_of(folder: epath.Path) -> list[str]:
    """Every file under a folder, relative to it, sorted."""
    found = []
    for place, _, names in epath.Path(folder).walk():
        found += [str((epath.Path(place) / name).relative_to(folder)) for name in names]
    return sorted(found)


def write_record(folder: epath.Path) -> None:
    """Sums up every file of a checkpoint that has just been found whole, and leaves the sums with it."""
    sums = {name: _checksum(folder / name, force=True) for name in files_of(folder) if name not in UNSUMMED}
    record = {'version': 1, 'verified': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()), 'files': sums}
    (folder / RECORD).write_text(json.dumps(record))


def read_record(folder: epath.Path) -> dict[str, Any] | None:
    """The record of a checkpoint; None if it has none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text())
        return record if isinstance(record.get('files'), dict) else None
    except (OSError, ValueError, AttributeError):
        return None


def check_files(folder: epath.Path, record: Mapping[str, Any]) -> str | None:
    """What is wrong with the files of a checkpoint, by its record: a phrase, or None. Reads all of them.

    Files that came later, such as the answers of `mvdjax selfcheck`, are no fault.
    """
    for name, (size, checksum) in record['files'].items():
        file = folder / name
        try:
            if (found := file.stat().length) != size:
                return f'{name} has {found} bytes instead of {size}'
        except OSError:
            return f'{name} is missing'
        try:
            if _checksum(file, force=False)[1] != checksum:
                return f'{name} has changed since it was written'
        except OSError as error:
            return f'{name} cannot be read ({error.strerror or error})'
    return None


def stored_fingerprints(folder: epath.Path) -> dict[str, dict[str, list[Any]]] | None:
    """The fingerprints that travel in a checkpoint; None if it is older than these.

    Raises:
      OSError, ValueError: they cannot be read.
    """
    file = folder / FINGERPRINTS / 'metadata'
    return json.loads(file.read_text()) if file.exists() else None


def check_arrays(folder: epath.Path, expected: Mapping[str, Mapping[str, list[Any]]]) -> str | None:
    """What is wrong with the arrays of a checkpoint, a phrase, or None. Reads all of them, a gigabyte at a time.

    Args:
      folder: of a step.
      expected: {item: {path: [shape, dtype, fingerprint]}}.
    """
    for item, leaves in expected.items():
        try:
            seen = set()
            for path, array in read_arrays(folder / item):
                seen.add(path)
                found = [list(array.shape), str(array.dtype), fingerprint(array)]
                if path not in leaves:
                    return f'{item}/{path} is there, but was not saved'
                if found[:2] != leaves[path][:2]:
                    return f'{item}/{path} is {found[1]} {found[0]} instead of {leaves[path][1]} {leaves[path][0]}'
                if found[2] != leaves[path][2]:
                    return f'{item}/{path} holds other values than were saved'
        except Exception as error:  # noqa: BLE001 - Orbax raises all kinds of things on a damaged item
            return f'{item} cannot be read ({checkpoints.first_line(error)})'
        if missing := sorted(leaves.keys() - seen):
            return f'{item}/{missing[0]} is missing'
    return None


def read_arrays(item: epath.Path, group: int = GROUP) -> Iterator[tuple[str, np.ndarray]]:
    """(path, array) of every leaf of an item, read in groups of about so many bytes, by this process alone."""
    with checkpoints.alone_reader() as reader:
        leaves, structure = jax.tree.flatten(reader.metadata(item).item_metadata.tree)
        arguments = structure.unflatten([ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves))
        for wanted in _groups(leaves, group):
            chosen = [leaf if i in wanted else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
            restore = ocp.args.PyTreeRestore(item=structure.unflatten(chosen), restore_args=arguments)
            for path, array in trees.flatten(reader.restore(item, args=restore)).items():
                if array is not ocp.PLACEHOLDER:
                    yield path, array


def _groups(leaves: list[Any], limit: int) -> Iterator[set[int]]:
    """Numbers of neighbouring leaves, in groups of about so many bytes."""
    group: set[int] = set()
    size = 0
    for i, leaf in enumerate(leaves):
        group.add(i)
        size += int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        if size >= limit:
            yield group
            group, size = set(), 0
    if group:
        yield group


def check(folder: epath.Path) -> str | None:
    """What is wrong with a checkpoint, as cheaply as that can be told: by its record, else by reading its arrays."""
    record = read_record(folder)
    return check_thoroughly(folder) if record is None else check_files(folder, record)


def check_thoroughly(folder: epath.Path) -> str | None:
    """What is wrong with a checkpoint: every file by its record, if it has one, and every array."""
    if not (folder / 'meta' / 'metadata').exists():
        return 'meta is missing'
    record = read_record(folder)
    if record is not None and (problem := check_files(folder, record)):
        return problem
    try:
        json.loads((folder / 'meta' / 'metadata').read_text())
        expected = stored_fingerprints(folder)
    except (OSError, ValueError) as error:
        return f'meta or {FINGERPRINTS} cannot be read ({checkpoints.first_line(error)})'
    if expected is not None:
        return check_arrays(folder, expected)
    return _readable(folder)


def _readable(folder: epath.Path) -> str | None:
    """What cannot be read of a checkpoint without fingerprints: a converted one, or one of an earlier version."""
    items = [name for name in ('params', 'ema', 'train') if (folder / name).exists()]
    if 'params' not in items:
        return 'params is missing'
    for item in items:
        try:
            for _ in read_arrays(folder / item):
                pass
        except Exception as error:  # noqa: BLE001 - as above
            return f'{item} cannot be read ({checkpoints.first_line(error)})'
    return None
