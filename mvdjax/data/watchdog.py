"""A bound on what one file may cost: time, and the process that reads it.

Decoders of damaged files loop, wait for ever or crash. Three nets, from the mildest on:

1. `Watch.check`, called between packets and at every read: a file that has used more than `MAX_SECONDS` of its
   thread's processor time is unreadable. Waiting costs no such time: slow storage or a busy machine refuses nothing.
2. A thread in every worker process: if a decode has given no sign of life for `seconds` (and is not waiting for
   storage), it writes the file's name to the record, safely on disk, and ends the process with exit code `HUNG`.
   Nothing less stops a thread that is inside a C library.
3. A journal in shared memory of what is being read: when a worker crashed, the main process learns from it which
   files to blame.

A file in the record is never opened again: reading it fails at once with the reason of the time before, in this and
in every later process, so that a restart does not run into the same wall.

Interface for the pipeline
    start(record, journal, seconds)   in every process that decodes, before it does. `record` is a JSON-lines file (may
                                      be shared by hosts), `journal` a folder of this machine (one per run).
    watch(name)                       around one decode; `decode.py` does that, nobody else needs to.
    condemn(record, journal, code)    in the main process when a worker has died with exit code `code`, before it is
                                      started again: writes down the files to blame and returns their entries. None
                                      (say, the machine was out of memory): the death was no file's fault.
A decode is given up only in processes that called `start`; elsewhere only the first net is there.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HUNG = 86
MAX_SECONDS = 300.0
_CRASHES = {-int(getattr(signal, name)) for name in ('SIGSEGV', 'SIGBUS', 'SIGABRT', 'SIGFPE', 'SIGILL')}
_SLOT = 4096  # bytes of the journal for one decode
_SLOTS = 64


class UnreadableError(Exception):
    """Why a file cannot be used; the text continues a sentence that starts with its path."""


class Watch:
    """One decode under way.

    Attributes:
        name: of the file.
        beats: signs of life so far.
        in_storage: whether it waits for storage: however long that takes, the file is not to blame.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.beats = 0
        self.in_storage = False
        self._until = time.thread_time() + MAX_SECONDS

    def check(self) -> None:
        """A sign of life.

        Raises:
            UnreadableError: the file has cost too much.
        """
        self.beats += 1
        if time.thread_time() > self._until:
            raise UnreadableError(f'takes more than {MAX_SECONDS:g} s of processor time to read')


class _Journal:
    """Names of the files being read, where they outlive a crash of this process: in a mapped file."""

    def __init__(self, folder: str) -> None:
        path = Path(folder) / f'{os.getpid()}.reading'
        path.write_bytes(bytes(_SLOT * _SLOTS))
        with path.open('r+b') as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._free = list(range(_SLOTS))

    def enter(self, name: str) -> int | None:
        try:
            slot = self._free.pop()
        except IndexError:  # more threads than slots: this one goes unrecorded
            return None
        data = os.fsencode(name)[: _SLOT - 1]
        self._memory[slot * _SLOT : slot * _SLOT + len(data) + 1] = data + b'\0'
        return slot

    def leave(self, slot: int | None) -> None:
        if slot is not None:
            self._memory[slot * _SLOT] = 0
            self._free.append(slot)


class _Guard:
    """This process's watchdog."""

    def __init__(self, record: str | None, journal: str, seconds: float) -> None:
        self.pid = os.getpid()
        self.record = record
        self.seconds = seconds
        self.known = {entry['path']: entry['reason'] for entry in read_record(record)}
        self.journal = _Journal(journal)
        self.watches: set[Watch] = set()
        self.lock = threading.Lock()
        threading.Thread(target=self._patrol, name='decode watchdog', daemon=True).start()

    def _patrol(self) -> None:
        # Time is counted in rounds of this loop: a process that was stopped and continued must not look like a hang.
        period = min(1.0, self.seconds / 4)
        quiet: dict[Watch, tuple[int, int]] = {}  # beats seen, rounds since
        while True:
            time.sleep(period)
            with self.lock:
                watches = list(self.watches)
            rounds = {}
            for watch in watches:
                beats, since = quiet.get(watch, (-1, 0))
                calm = watch.beats == beats and not watch.in_storage
                rounds[watch] = (watch.beats, since + 1 if calm else 0)
                if rounds[watch][1] * period >= self.seconds:
                    self._kill(watch)
            quiet = rounds

    def _kill(self, watch: Watch) -> None:
        reason = f'stopped the decoder for {self.seconds:g} s without a sign of life'
        try:
            add(self.record, watch.name, reason)
            sys.stderr.write(f'{watch.name} {reason}: ending process {self.pid}\n')
            sys.stderr.flush()
        finally:
            os._exit(HUNG)


_guard: _Guard | None = None


def start(record: str | None, journal: str, seconds: float = 60.0) -> None:
    """Sets the watchdog of this process, which it will end if a decode gets stuck.

    Args:
        record: the JSON-lines file of files that hung or crashed a decoder; None keeps none.
        journal: an existing folder of this machine.
        seconds: how long a decode may go without a sign of life.
    """
    global _guard
    _guard = _Guard(record, journal, seconds)


def started() -> bool:
    """Whether this process (not its parent before a fork) has a watchdog."""
    return _guard is not None and _guard.pid == os.getpid()


@contextlib.contextmanager
def watch(name: str) -> Iterator[Watch]:
    """Watches one decode.

    Raises:
        UnreadableError: the file is on record.
    """
    guard = _guard
    if guard is None or guard.pid != os.getpid():
        yield Watch(name)
        return
    if name in guard.known:
        raise UnreadableError(f'{guard.known[name]} (an earlier time; it is on record in {guard.record})')
    watch = Watch(name)
    with guard.lock:
        guard.watches.add(watch)
        slot = guard.journal.enter(name)
    try:
        yield watch
    finally:
        with guard.lock:
            guard.journal.leave(slot)
            guard.watches.remove(watch)


def read_record(path: str | None) -> list[dict[str, Any]]:
    """The entries {'path', 'reason'} of a record; none if there is no such file."""
    if path is None or not os.path.exists(path):
        return []
    entries = []
    for line in Path(path).read_text(encoding='utf-8', errors='surrogateescape').splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut short
            entries.append(json.loads(line))
    return entries


def add(record: str | None, name: str, reason: str) -> None:
    """Writes a file down, safely on disk before this returns."""
    if record is None:
        return
    line = '\n' + json.dumps({'path': name, 'reason': reason}) + '\n'  # ends a line that a kill cut short
    descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def condemn(record: str | None, journal: str, code: int) -> list[dict[str, Any]]:
    """Finds out which files a worker's death is to be blamed on.

    A hang has been written down by the worker itself. Of a crash, all files that the dead worker was reading are
    blamed, since which of its threads crashed is not known: at most as many as it has threads.

    Args:
        record: as for `start`.
        journal: likewise.
        code: the worker's exit code, negative for a signal, as `multiprocessing` gives it.

    Returns:
        The new entries; none if no file is to blame.
    """
    names = []
    for path in sorted(Path(journal).glob('*.reading')):
        if not _alive(int(path.stem)):
            data = path.read_bytes()
            names += [os.fsdecode(data[slot : slot + _SLOT].split(b'\0')[0]) for slot in range(0, len(data), _SLOT)]
            path.unlink()
    names = sorted({name for name in names if name})
    known = {entry['path']: entry for entry in read_record(record)}
    if code == HUNG:
        return [known[name] for name in names if name in known]
    if code not in _CRASHES:
        return []
    reason = f'was being read when a data worker crashed ({signal.Signals(-code).name})'
    for name in names:
        add(record, name, reason)
    return [{'path': name, 'reason': reason} for name in names]
