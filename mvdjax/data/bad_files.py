"""The record of files that cannot be read: one JSON line each in `bad_videos.jsonl`.

Each process of a run appends to a file of its own, `bad_videos.3.jsonl`: storage that several hosts share often knows
no locks. They are read as one, and made one when a run starts or an evaluation ends.
"""

import contextlib
import fcntl
import glob
import json
import os
from collections.abc import Callable
from typing import Any

from mvdjax.data.decode import DecodeError
from mvdjax.data.schema import Record


class BadFiles:
    """Writes the record, and remembers the files that must never be opened again.

    A file that is merely broken is tried again each time it comes up: that costs little, and a repaired file comes
    back. One whose decoder hung or took its process with it is marked with `"skip": true` and never opened again, in
    this run or in one that resumes it, until its line is removed from the record.
    """

    def __init__(self, path: str | None, process: int = 0) -> None:
        """`path` is the file, or None to keep no record; `process` is this process's number."""
        self._path = _part(path, process) if path else None
        self._seen: set[str] = set()
        self._skipped = {
            entry['path']: entry['reason'] for entry in (read_bad_files(path) if path else ()) if entry.get('skip')
        }

    def add(self, record: Record, error: DecodeError) -> None:
        """Notes a file, unless it is there already. Threads, workers and hosts may share the record."""
        if self._path is None or record.path in self._seen or record.path in self._skipped:
            return
        self._write({'path': record.path, 'line': record.line, 'reason': error.reason})
        self._seen.add(record.path)  # once it stands there: another thread must not go on, and fail, before it does

    def skip(self, record: Record, reason: str) -> None:
        """Notes a file that is never to be opened again."""
        if self._path is not None and record.path not in self._skipped:
            self._write({'path': record.path, 'line': record.line, 'reason': reason, 'skip': True})
        self._skipped[record.path] = reason

    def check(self, record: Record) -> None:
        """Raises DecodeError, as reading a broken file does, for a file that is never to be opened again."""
        if record.path in self._skipped:
            raise DecodeError(record.path, self._skipped[record.path])

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._path is not None
        line = json.dumps(entry) + '\n'
        with open(self._path, 'a+', encoding='utf-8') as file:
            with contextlib.suppress(OSError):  # a file system without locks: a file may be listed twice
                fcntl.flock(file, fcntl.LOCK_EX)
            known = {e['path']: e for e in _entries(self._path)}.get(entry['path'])
            if known is None or (entry.get('skip', False) and not known.get('skip', False)):
                file.seek(0)
                text = file.read()  # a kill may have cut the last line short
                file.write(line if not text or text.endswith('\n') else '\n' + line)


def read_bad_files(path: str) -> list[dict[str, Any]]:
    """The entries of a `bad_videos.jsonl`, of all processes, one per file, its last; none if there is no such file."""
    found: dict[str, dict[str, Any]] = {}
    for entry in (entry for part in _parts(path) for entry in _entries(part)):
        if entry.get('skip') or not found.get(entry['path'], {}).get('skip'):
            found[entry['path']] = entry
    return list(found.values())


def remove_bad_files(path: str) -> None:
    """Forgets the entries of all processes."""
    for part in _parts(path):
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def merge_bad_files(path: str) -> None:
    """Makes one file of those of all processes, none of which may be writing."""
    if any(part != path for part in _parts(path)):
        filter_bad_files(path, lambda entry: True)


def filter_bad_files(path: str, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Makes one file of those of all processes, of the entries to keep; none, if there are none of these."""
    entries = [entry for entry in read_bad_files(path) if keep(entry)]
    if not entries:
        remove_bad_files(path)
        return
    with open(path + '.tmp', 'w', encoding='utf-8') as file:
        file.writelines(json.dumps(entry) + '\n' for entry in entries)
    os.replace(path + '.tmp', path)
    for part in _parts(path):
        if part != path:
            os.remove(part)


def _part(path: str, process: int) -> str:
    """The file of one process."""
    root, extension = os.path.splitext(path)
    return path if process == 0 else f'{root}.{process}{extension}'


def _parts(path: str) -> list[str]:
    """The files of all processes that are there."""
    root, extension = (glob.escape(piece) for piece in os.path.splitext(path))
    return sorted([*glob.glob(glob.escape(path)), *glob.glob(f'{root}.[0-9]*{extension}')])


def _entries(path: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    if not os.path.exists(path):
        return entries
    with open(path, encoding='utf-8') as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut short
                entries.append(json.loads(line))
    return entries
