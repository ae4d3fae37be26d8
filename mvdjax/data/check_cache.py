"""What earlier checks found out, so that a second one need not decode a file again: a JSON line per file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import av
import PIL

from mvdjax.data.examine import VERSION, Facts, from_dict


def decoder() -> str:
    """The libraries whose opinion on a file is kept: with others, files are decoded again."""
    codecs = '.'.join(str(part) for part in av.library_versions['libavcodec'])
    return f'PyAV {av.__version__}, libavcodec {codecs}, Pillow {PIL.__version__}'


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A file as it was when examined: unchanged for as long as its size and time are."""

    path: str
    size: int
    mtime: int
    image: bool
    full: bool
    facts: Facts


def _stat(path: str) -> tuple[int, int]:
    """(size, time of the last change in ns) of a local file; (-1, -1) of anything else."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return found.st_size, found.st_mtime_ns


class Cache:
    """Facts by path, size and time, or by content where those have changed. Use it in a with-block."""

    def __init__(self, path: Path, full: bool) -> None:
        """Reads the file `path`, if it is there; `full` is whether every frame has to have been decoded."""
        self._path, self._full = path, full
        self._header = {'mvdjax data check': VERSION, 'decoder': decoder()}
        self._entries: dict[str, _Entry] = {}
        self._by_size: dict[tuple[int, bool], dict[str, Facts]] = defaultdict(dict)
        if path.exists():
            self._read()
        self._write()  # anew: without what is out of date, or cut short
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Cache:
        self._file = self._stack.enter_context(open(self._path, 'a', encoding='utf-8'))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _read(self) -> None:
        with open(self._path, encoding='utf-8') as file:
            with contextlib.suppress(ValueError):
                if json.loads(file.readline()) != self._header:
                    return
            for line in file:
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that a kill cut short
                    values = json.loads(line)
                    self._keep(_Entry(**{**values, 'facts': from_dict(values['facts'])}))

    def _keep(self, entry: _Entry) -> None:
        self._entries[entry.path] = entry
        if entry.full >= self._full:
            self._by_size[entry.size, entry.image][entry.facts.sha256] = entry.facts

    def _write(self) -> None:
        temporary = self._path.with_name(f'.{self._path.name}.tmp')
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write(json.dumps(self._header) + '\n')
            file.writelines(_line(entry) for entry in self._entries.values())
        os.replace(temporary, self._path)

    def get(self, path: str, image: bool) -> Facts | None:
        """The facts of a file that has not changed; None if it has to be looked at."""
        entry = self._entries.get(path)
        if entry is None or entry.image != image or entry.full < self._full or entry.size < 0:
            return None
        return entry.facts if (entry.size, entry.mtime) == _stat(path) else None

    def similar(self, path: str, image: bool) -> dict[str, Facts]:
        """Facts by SHA-256 of files that may have the same content."""
        size, _ = _stat(path)
        if size >= 0:
            return self._by_size.get((size, image), {})
        entry = self._entries.get(path)  # a remote file's content alone tells whether it has changed
        return {entry.facts.sha256: entry.facts} if entry and entry.image == image and entry.full >= self._full else {}

    def add(self, path: str, image: bool, facts: Facts) -> None:
        """Notes a file, at once on the disk. What is not readable at all is not noted: it may be tomorrow."""
        if not facts.sha256:
            return
        entry = _Entry(path, *_stat(path), image, self._full, facts)
        self._keep(entry)
        self._file.write(_line(entry))
        self._file.flush()


def _line(entry: _Entry) -> str:
    values: dict[str, Any] = dataclasses.asdict(entry)
    return json.dumps(values) + '\n'
