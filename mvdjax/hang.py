"""A run that hangs: found out from outside the thread that hangs, reported with every thread's stack, and ended."""

import faulthandler
import math
import os
import platform
import sys
import threading
from typing import Any

from mvdjax import processes
from mvdjax.errors import TRY_AGAIN


class Watch:
    """Ends the process, with the code that asks to be started again, when no step ends for too long.

    Time is counted in looks, not read from a clock: a machine that was asleep does not make a run late. A thread that
    keeps the interpreter's lock would silence the watch too; for that the C library's timer is wound up at every look.
    """

    def __init__(self, minutes: float) -> None:
        """`minutes` without a step; 0 never to look."""
        self._pause = min(5.0, minutes * 60 / 20)
        self._limit = math.ceil(minutes * 60 / self._pause) if minutes else 0
        self._looks = 0
        self._step = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name='mvdjax-hang')
        self._where: Any = sys.__stderr__

    def __enter__(self) -> 'Watch':
        """Starts to look. A crash in a library is reported with stacks from here on, too."""
        if self._where is not None and not faulthandler.is_enabled():
            faulthandler.enable(self._where)
        if self._limit:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops looking."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self, step: int | None = None) -> None:
        """A sign of life; `step` has ended."""
        self._looks = 0
        self._step = self._step if step is None else step

    def _run(self) -> None:
        while not self._done.wait(self._pause):
            if self._where is not None:
                faulthandler.dump_traceback_later(2 * self._pause * self._limit, exit=True, file=self._where)
            self._looks += 1
            if self._looks > self._limit:
                self._report()

    def _report(self) -> None:
        """Every thread's stack, and the end: nothing in this process can be trusted to end it in good order."""
        text = (
            f'process {processes.index()} on {platform.node()} has ended no step for '
            f'{self._pause * self._limit / 60:g} minutes (run.hang_minutes) since step {self._step}'
        )
        if self._where is not None:
            print(f'error: {text}', file=self._where, flush=True)
        processes.show_stacks()
        processes.abandon(text, TRY_AGAIN, hangs=True)
        os._exit(TRY_AGAIN)  # alone
