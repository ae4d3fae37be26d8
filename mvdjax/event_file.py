"""TensorBoard's event file of a run, written in the thread that calls: an error is seen where it happens.

tensorboardX's own writer hands events to a thread through a queue. A write error ends that thread without a word, and
whoever fills the queue then waits for good.
"""

import contextlib
import itertools
import os
import platform
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from mvdjax.console import say

FOLDER = 'tensorboard'
FLUSH_SECONDS = 30.0
_numbers = itertools.count()  # of the files of this process: names tell no two of one second apart


class EventFile:
    """One event file. It is given up, with a warning, at the first error: `metrics.jsonl` has the same numbers."""

    def __init__(self, workdir: str, start_step: int) -> None:
        """Makes a file in which TensorBoard finds that what was logged after `start_step` is void."""
        self._folder = os.path.join(workdir, FOLDER)
        self._writer: RecordWriter | None = None
        self._flushed = time.monotonic()
        try:
            os.makedirs(self._folder, exist_ok=True)
            name = f'events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}.{next(_numbers)}'
            self._writer = RecordWriter(os.path.join(self._folder, name))
            for what in ({'file_version': 'brain.Event:2'}, {'session_log': SessionLog(status=SessionLog.START)}):
                self._add(self._writer, start_step + 1, **what)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of a step. What is written may be seen `FLUSH_SECONDS` later."""
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                self._add(self._writer, step, summary=scalar(name, value))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is None:
            return
        try:
            self._writer.flush()
            self._writer.close()
        except OSError as error:
            self._give_up(error)
        self._writer = None

    @staticmethod
    def _add(writer: RecordWriter, step: int, **what: Any) -> None:
        writer.write(Event(wall_time=time.time(), step=step, **what).SerializeToString())

    def _give_up(self, error: OSError) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # what it holds back cannot be written either
                self._writer.close()
        self._writer = None
        say(
            f'WARNING: no more events for TensorBoard: {self._folder} cannot be written ({error.strerror}); the run '
            'goes on, and metrics.jsonl has all numbers'
        )
