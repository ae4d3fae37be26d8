"""A bound on what reading one file may cost, kept within the read itself.

Damaged files make decoders loop. `Watch.check`, called between packets and at every read, ends that. A decoder that
never comes back from a call, or crashes, can only be dealt with from outside its process: see `guard`.
"""

import time
from collections.abc import Callable

MAX_SECONDS = 300.0


class UnreadableError(Exception):
    """Why a file cannot be used; the text continues a sentence that starts with its path."""


class Watch:
    """One read under way.

    A file that has used more than `MAX_SECONDS` of its thread's processor time is unreadable. Waiting costs no such
    time: slow storage or a busy machine refuses nothing.
    """

    def __init__(self) -> None:
        """Starts now, in this thread."""
        self._until = time.thread_time() + MAX_SECONDS

    def check(self) -> None:
        """A sign of life.

        Raises:
            UnreadableError: the file has cost too much.
        """
        if time.thread_time() > self._until:
            raise UnreadableError(f'takes more than {MAX_SECONDS:g} s of processor time to read')


class Heartbeat(Watch):
    """Passes signs of life on and sets no limit: reading all of a long video takes what it takes."""

    def __init__(self, alive: Callable[[], object]) -> None:
        """`alive` is called at every sign of life."""
        super().__init__()
        self._alive = alive

    def check(self) -> None:
        """A sign of life."""
        self._alive()
