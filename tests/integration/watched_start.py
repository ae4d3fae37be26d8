"""One start of a run, seen from outside: what it does and what it has done since, for a hand that wants to kill it."""

import contextlib
import ctypes
import os
import select
import time

from mvdjax import checkpoints, saving
from mvdjax.metric_writer import read_metrics
from mvdjax.settings import Run

PATIENCE = 900.0  # seconds for anything that should happen soon
MOVED_TO = 0x80  # inotify: a name appeared by a rename


class FinishedError(Exception):
    """The run came to its end before it could be killed."""


class Renames:
    """Names that appear in a folder by a rename, heard of as it happens; a context manager. Linux only.

    The files of a small checkpoint are deleted in a few milliseconds: whoever looks now and then comes too late.
    """

    def __init__(self, folder):
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(os.O_NONBLOCK)
        if self._events < 0 or libc.inotify_add_watch(self._events, os.fsencode(folder), MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._events)

    def came(self, prefix, seconds=0.05):
        """Whether a name with this beginning has come, now or within so many seconds."""
        ready, _, _ = select.select([self._events], [], [], seconds)
        # A record is 16 bytes and then the name.
        return bool(ready) and prefix.encode() in os.read(self._events, 4096)


class Start:
    """One start of the run, and what it has done itself: what earlier ones left behind does not count.

    Attributes:
      first: seconds until its first new step, or None; by then it has cleaned up what it found.
      saved: the steps whose checkpoints it has finished, and when.
    """

    def __init__(self, workdir, children, newest):
        self.workdir, self.folder, self.children = workdir, workdir / checkpoints.FOLDER, children
        self.first, self.saved = None, {}
        self._begin, self._newest = time.time(), newest

    def look(self):
        """Looks again.

        Raises:
          FinishedError: it has come to the end of the run.
        """
        if self.first is None and self._written() and self.last_step() > self._newest:
            self.first = time.time() - self._begin
        self.saved = {step: time.time() for step in self._steps() if step > self._newest} | self.saved
        codes = [child.poll() for child in self.children]
        if any(code is not None for code in codes):
            if all(code in (0, None) for code in codes):
                raise FinishedError
            raise SystemExit(f'it ended by itself with {codes}; see the logs beside {self.workdir}')

    def wait(self, condition=lambda: False, seconds=PATIENCE, pause=0.01):
        """Until something holds, or for so many seconds."""
        until = time.monotonic() + seconds
        self.look()
        while not condition() and time.monotonic() < until:
            time.sleep(pause)
            self.look()

    def saving(self):
        """Whether it has a half-written checkpoint."""
        return bool(self.first) and any(saving.TEMPORARY in name for name in self._names())

    def deleting(self):
        """Whether it has a half-deleted one."""
        return bool(self.first) and any(name.startswith(saving.DELETED) for name in self._names())

    def will_delete(self):
        """Whether its next saves delete a checkpoint."""
        return len(self._steps()) >= Run.keep

    def doing(self):
        if self.deleting():
            return 'deleting'
        return 'saving' if self.saving() else 'training' if self.first else 'starting'

    def last_step(self):
        records = read_metrics(str(self.workdir)) if self.workdir.exists() else []
        return records[-1]['step'] if records else 0

    def _names(self):
        return os.listdir(self.folder) if self.folder.exists() else []

    def _steps(self):
        return [int(name) for name in self._names() if name.isdigit()]

    def _written(self):
        """Whether it has written metrics: those of an earlier start stay until it has got going."""
        with contextlib.suppress(FileNotFoundError):
            return (self.workdir / 'metrics.jsonl').stat().st_mtime > self._begin
        return False
