"""What stands between a run and a decoder that hangs or crashes: who is at work on what, and for how long.

Workers post what they read on a board, a small file that the main process maps too. A thread there (`WorkerWatch`)
ends a worker that has been at one sample for longer than the limit; the signal comes from outside, so it also reaches a
decoder that holds the interpreter's lock. Without workers, `read` leaves the thread that hangs behind and goes on: that
needs a decoder which lets go of the lock (FFmpeg's do), and nothing can help against one that crashes.

Slow storage is no fault of a file: before one is blamed its bytes are brought here (`warm`), however long that takes,
and it gets the whole limit once more.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
import multiprocessing
import os
import pickle
import platform
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mvdjax.data import media
from mvdjax.data.decode import Blob, DecodeError
from mvdjax.errors import UserError

_FIELDS = 4  # serial number of the entry (0: nothing at work), sample number, attempt, record


@dataclasses.dataclass(frozen=True)
class Work:
    """A sample that was being read: its global number, the attempt at it, and the record's place in the list."""

    number: int
    attempt: int
    index: int


class Board:
    """A table in a file: for each worker its process id, and for each of its threads what it is at work on."""

    def __init__(self, path: str, workers: int, threads: int) -> None:
        """Maps the file."""
        self.path, self.workers, self.threads = path, workers, threads
        self._table = np.memmap(path, np.int64, 'r+', shape=(workers, 1 + threads * _FIELDS))

    @classmethod
    def create(cls, workers: int, threads: int) -> 'Board':
        """A new board, in a temporary file."""
        handle, path = tempfile.mkstemp(prefix='mvdjax_board_')
        os.truncate(handle, workers * (1 + threads * _FIELDS) * 8)
        os.close(handle)
        return cls(path, workers, threads)

    def remove(self) -> None:
        """Removes the file; the board stays readable here."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)

    def pid(self, worker: int) -> int:
        """Process id of a worker, 0 before it has started."""
        return int(self._table[worker, 0])

    def sign_on(self, worker: int) -> None:
        """Notes this process as a worker."""
        self._table[worker, 0] = os.getpid()

    def post(self, worker: int, thread: int, serial: int, work: Work) -> None:
        """Notes what a thread begins with. The serial number is written last: it makes the entry count."""
        row = self._table[worker, 1 + thread * _FIELDS : 1 + (thread + 1) * _FIELDS]
        row[1:] = (work.number, work.attempt, work.index)
        row[0] = serial

    def clear(self, worker: int, thread: int) -> None:
        """Notes that a thread has finished."""
        self._table[worker, 1 + thread * _FIELDS] = 0

    def at_work(self, worker: int) -> dict[int, Work]:
        """Serial number -> what the threads of a worker are at work on."""
        rows = np.array(self._table[worker, 1:]).reshape(self.threads, _FIELDS)
        return {int(serial): Work(*map(int, row)) for serial, *row in rows if serial}


class WorkerWatch(threading.Thread):
    """Ends workers that are at one sample for longer than a limit.

    Time is counted in looks at the board, not read from a clock: a machine that was asleep, or a job that was stopped
    and continued, does not make its decoders late.
    """

    def __init__(self, board: Board, limit: float) -> None:
        """`limit` in seconds."""
        super().__init__(daemon=True, name='mvdjax-watch')
        self._board, self._pause = board, min(1.0, limit / 10)
        self._looks = math.ceil(limit / self._pause)
        self._done = threading.Event()
        self.ended: dict[int, list[Work]] = {}  # worker -> what it was at work on

    def run(self) -> None:
        """Looks until told to stop."""
        seen: dict[tuple[int, int], int] = {}
        while not self._done.wait(self._pause):
            posted = {w: self._board.at_work(w) for w in range(self._board.workers) if w not in self.ended}
            seen = {(w, s): seen.get((w, s), 0) + 1 for w, works in posted.items() for s in works}
            for worker in {w for (w, _), looks in seen.items() if looks > self._looks}:
                if _end(self._board.pid(worker)):
                    self.ended[worker] = list(posted[worker].values())

    def stop(self) -> None:
        """Ends the thread."""
        self._done.set()
        self.join()


def _end(pid: int) -> bool:
    """Kills a child process. False if it has ended by itself: its number may be another's by now."""
    for process in multiprocessing.active_children():
        if process.pid == pid:
            process.kill()
            return True
    return False


class _Post:
    """This process's row of a board."""

    def __init__(self, board: Board, worker: int) -> None:
        self.board, self.worker = board, worker
        self.free = collections.deque(range(board.threads))
        self.serial = itertools.count(1)


_post: _Post | None = None  # set in workers only


def sign_on(board: Board, worker: int) -> None:
    """Makes this process a worker whose work is on a board."""
    global _post
    board.sign_on(worker)
    _post = _Post(board, worker)


def read(function: Callable[[], Any], path: str, work: Work, limit: float) -> Any:
    """Calls a function that reads a file, watched.

    Args:
      function: reads and decodes.
      path: of the file, for messages.
      work: what it is for.
      limit: seconds. In a worker the main process holds it to them; here the call is given up, its thread abandoned.

    Raises:
      HungError: without workers, when it takes longer.
      DecodeError, UserError: what the function raises.
      Exception: anything else that it raises, with a note that says where and on what.
    """
    try:
        if _post is None:
            return _limited(function, path, limit)
        with _posted(_post, work):
            return function()
    except (DecodeError, UserError):
        raise
    except Exception as error:
        who = 'main process' if _post is None else f'data worker {_post.worker} (process {os.getpid()})'
        note = f'{who} on {platform.node()}, sample {work.number}, record {work.index}: {path}'
        told = _portable(error, note)
        if told is error:
            raise
        raise told from error


class HungError(DecodeError):
    """A decoder that was given up."""


def hung(path: str, limit: float) -> HungError:
    """The error of a file that takes too long."""
    return HungError(path, f'took longer than data.timeout, {limit:g} s, to read')


@contextlib.contextmanager
def _posted(post: _Post, work: Work) -> Iterator[None]:
    thread = post.free.pop()  # there are as many places as threads
    post.board.post(post.worker, thread, next(post.serial), work)
    try:
        yield
    finally:
        post.board.clear(post.worker, thread)
        post.free.append(thread)


def _limited(function: Callable[[], Any], path: str, limit: float) -> Any:
    """Calls in a thread of its own, and gives up on it after the limit."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            found.append(function())
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller
            failed.append(error)

    thread = threading.Thread(target=call, daemon=True, name='mvdjax-read')
    thread.start()
    if not _ends(thread, limit):
        warm(path)
        if not _ends(thread, limit):
            raise hung(path, limit)
    if failed:
        raise failed[0]
    return found[0]


def _ends(thread: threading.Thread, limit: float) -> bool:
    for _ in range(10):  # in slices, for the reason that `WorkerWatch` counts looks
        thread.join(limit / 10)
        if not thread.is_alive():
            return True
    return False


def warm(path: str) -> None:
    """Reads a file's bytes for nothing: afterwards it is in the machine's memory, or its store is known to answer."""
    with contextlib.suppress(DecodeError, OSError):  # the read that follows says it better
        found = media.fetch(path)
        if not isinstance(found, Blob):
            with open(found, 'rb') as file:
                while file.read(2**20):
                    pass


def _portable(error: Exception, note: str) -> Exception:
    """The error with a note, as one that can be sent to another process: else the receiver would wait for ever."""
    error.add_note(note)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its own code raises
        text = ''.join(traceback.format_exception(error))
        return RuntimeError(f'{type(error).__name__} in {note}\n{text}')
    return error
