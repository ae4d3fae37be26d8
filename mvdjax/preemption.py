"""Being told to stop, by a scheduler's SIGTERM or by Ctrl-C: the run saves, and ends with a code that says so."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from mvdjax import processes
from mvdjax.errors import INTERRUPTED, TRY_AGAIN, Stopped


class Notice:
    """Listens for signals; a context manager.

    With several processes JAX's preemption service carries a notice that any one of them gets (SIGTERM, or what the
    cloud sends) to all, and names a step at which they stop together; it brings a SIGTERM handler of its own. A first
    Ctrl-C is treated the same, a second one ends the process at once.
    """

    def __init__(self) -> None:
        """Does nothing yet."""
        self._signal: int | None = None
        self._steps = 0
        self._before: dict[int, Any] = {}
        self._service = False
        self._reached = False

    def __enter__(self) -> 'Notice':
        """Takes the signals over, where that is possible: in the main thread."""
        self._service = jax.distributed.is_initialized() and bool(jax.config.jax_enable_preemption_service)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._service else (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            os.write(2, b'\nstopped at once; what was saved before is whole\n')
            os._exit(INTERRUPTED)
        first = self._signal is None
        self._signal = number
        if number == signal.SIGINT and first:
            os.write(2, b'\nsaving, then stopping; press Ctrl-C again to stop at once\n')
            if self._service:
                os.kill(os.getpid(), signal.SIGTERM)  # so that the other processes hear of it

    def reached(self) -> bool:
        """Whether to save and stop now; to be asked by every process, after every step and every batch evaluated.

        Once it is so it stays so: JAX's service names one question of them all, and says yes to no later one.
        """
        self._steps += 1
        if self._reached:
            return True
        if self._service:
            self._reached = multihost_utils.reached_preemption_sync_point(self._steps)
        else:
            self._reached = any(processes.exchange('notice', self._signal is not None))  # slower, but none stops alone
        return self._reached

    def stopped(self, done: str) -> Stopped:
        """What to raise once all is saved; `done` is what, such as 'after step 3, which is saved'."""
        sys.stdout.flush()
        code = INTERRUPTED if self._signal == signal.SIGINT else TRY_AGAIN
        return Stopped(f'stopped {done}; start the same command again to go on', code)
