"""One run at a time in a workdir: a second start would delete the first one's half-written save.

The lock is a file that names its holder and is touched every few seconds. Locks of the file system are not used: those
of network storage outlive a lost host, and those of a local one are inherited by worker processes, so that a run which
was killed could not be started again at once.
"""

import contextlib
import dataclasses
import json
import os
import threading
import time

from mvdjax import processes
from mvdjax.console import say
from mvdjax.errors import UserError

FILE = '.running'
BEAT = 5.0  # seconds between two signs of life
LIMIT = 120.0  # seconds without one after which a holder elsewhere is given up


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
      host: name of its machine.
      pid: of its process.
      kernel: start of the machine and namespace of process ids: where both are the same, so is the meaning of a pid.
      born: when its process began, in the kernel's ticks; tells it from a later one of the same id.
      since: when it took the lock, UTC.
    """

    host: str = 'an unknown host'
    pid: int = 0
    kernel: str = 'unknown'
    born: str = ''
    since: str = 'unknown'

    @classmethod
    def here(cls) -> 'Holder':
        """This process."""
        pid, now = os.getpid(), time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())
        return cls(os.uname().nodename, pid, _kernel(), (_stat(pid) or ('', ''))[1], now)

    def alive(self) -> bool | None:
        """Whether its process runs; None if that cannot be told from here."""
        if self.kernel != _kernel():
            return None
        if os.path.exists('/proc/self/stat'):
            found = _stat(self.pid)
            return found is not None and found[0] not in 'ZX' and found[1] == self.born
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def __str__(self) -> str:
        """For messages."""
        return f'process {self.pid} on {self.host}, since {self.since} UTC'


class WorkdirLock:
    """Holds a workdir while a run trains in it, on process 0; a context manager. Who only reads needs none."""

    def __init__(self, workdir: str) -> None:
        """`workdir` must be there."""
        self._workdir, self._path = workdir, os.path.join(workdir, FILE)
        self._me = Holder.here()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name='mvdjax-lock')

    def __enter__(self) -> 'WorkdirLock':
        """Takes the lock.

        A holder that may be gone is watched until it gives a sign of life or has given none for `LIMIT` seconds.

        Raises:
          UserError: another run holds it.
        """
        if processes.is_main():
            while not self._take():
                self._wait_for_end()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives it back."""
        if self._thread.is_alive():
            self._done.set()
            self._thread.join()
            if self._read() == self._me:
                self._remove()

    def _take(self) -> bool:
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            with open(handle, 'w', encoding='utf-8') as file:
                json.dump(dataclasses.asdict(self._me), file)
        except OSError:
            self._remove()
            raise
        return True

    def _wait_for_end(self) -> None:
        """Returns when the lock is free."""
        holder, first, told = self._read(), self._touched(), False
        while first is not None:
            alive = holder.alive()
            if alive is False or (alive is None and self._clock() - first > LIMIT):
                self._take_from(holder)
                return
            now = self._touched()
            if now is None:
                return
            if now != first or self._clock() - first > LIMIT:
                raise UserError(
                    f'{self._workdir} is in use by another run ({holder}): stop that one, or give this one a workdir '
                    f'of its own. If it is certain that it has ended, remove {self._path}'
                )
            if alive is None and not told:
                say(f'waiting up to {LIMIT:g} s for a sign of life of the run in {self._workdir} ({holder})')
                told = True
            time.sleep(BEAT / 10)
            holder = self._read()

    def _take_from(self, holder: Holder) -> None:
        """Removes the lock of a run that has ended; of several that try, one succeeds."""
        aside = f'{self._path}_{self._me.host}_{self._me.pid}'
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return
        if self._read(aside) != holder:  # somebody was faster, and has begun
            os.rename(aside, self._path)
            return
        os.remove(aside)
        say(f'note: the last run in {self._workdir} ({holder}) did not come to an orderly end')

    def _read(self, path: str = '') -> Holder:
        try:
            with open(path or self._path, encoding='utf-8') as file:
                return Holder(**json.load(file))
        except (OSError, ValueError, TypeError):  # gone, or just being written
            return Holder()

    def _touched(self) -> float | None:
        """When the holder gave a sign of life, by the clock of the storage; None if the lock is free."""
        try:
            return os.stat(self._path).st_mtime
        except FileNotFoundError:
            return None

    def _clock(self) -> float:
        """Now, by the clock of the storage: those of hosts differ."""
        path = f'{self._path}_now_{self._me.host}_{self._me.pid}'
        with open(path, 'w', encoding='utf-8') as file:
            file.write('x')
        now = os.stat(path).st_mtime
        os.remove(path)
        return now

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            if self._read() not in (self._me, Holder()):
                say(f'WARNING: another run has taken {self._workdir} over from this one, which seemed dead: stop one')
                return
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._path)


def _kernel() -> str:
    """What tells this machine since it was started, and this container, from others."""
    try:
        with open('/proc/sys/kernel/random/boot_id', encoding='utf-8') as file:
            return f'{file.read().strip()} {os.readlink("/proc/self/ns/pid")}'
    except OSError:
        return os.uname().nodename


def _stat(pid: int) -> tuple[str, str] | None:
    """(state, time of birth in ticks) of a process, or None if there is none."""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as file:
            fields = file.read().rpartition(')')[2].split()
    except OSError:
        return None
    return fields[0], fields[19]
