"""When the devices finished a step: the loop runs ahead of them and cannot tell."""

import contextlib
import queue
import threading
import time
from typing import Any

import jax


class StepClock:
    """A thread that waits for each step's results; a context manager that ends it."""

    def __init__(self) -> None:
        """Starts the thread."""
        self._steps: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = self._finished = 0
        self._at = time.perf_counter()
        threading.Thread(target=self._wait, name='step clock', daemon=True).start()

    def __enter__(self) -> 'StepClock':
        """Self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the thread, once it has no step to wait for."""
        self._steps.put(None)

    def started(self, values: Any) -> None:
        """A step was handed to the devices; `values` are arrays that it computes and that are not donated."""
        with self._lock:
            self._started += 1
        self._steps.put(values)

    def idle_since(self) -> float | None:
        """`time.perf_counter()` when the devices finished the last step started; None while they are busy."""
        with self._lock:
            return self._at if self._finished == self._started else None

    def _wait(self) -> None:
        while (values := self._steps.get()) is not None:
            with contextlib.suppress(Exception):  # a step that fails tells the loop itself
                jax.block_until_ready(values)
            del values
            with self._lock:
                self._finished += 1
                self._at = time.perf_counter()
