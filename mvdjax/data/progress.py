"""How far a long piece of work has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_EVERY = 10.0  # seconds between two lines


class Progress:
    """Counts files; to be used in a with-block."""

    def __init__(self, what: str, total: int, shown: bool = True) -> None:
        """`what` is what is done to them, such as 'checked'; nothing is printed unless `shown`."""
        self._what, self._total, self._done, self._note = what, total, 0, ''
        self._start = self._last = time.perf_counter()
        self._lines = shown and not sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit='file', dynamic_ncols=True, disable=not shown or self._lines)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, note: str = '', count: int = 1) -> None:
        """`count` more files are done; `note` is what to say of them all, such as '3 bad'."""
        self._done += count
        if note != self._note:
            self._bar.set_postfix_str(note, refresh=False)
            self._note = note
        self._bar.update(count)
        now = time.perf_counter()
        if self._lines and now - self._last >= _EVERY:
            self._last = now
            rate = self._done / (now - self._start)
            left = (self._total - self._done) / rate
            tail = f', {note}' if note else ''
            print(
                f'{self._what} {self._done} of {self._total} files{tail}; {pace(rate)}, {span(left)} left',
                flush=True,
            )


def pace(rate: float) -> str:
    """'40 a second', '12 a minute' or '3 an hour', of a number a second."""
    if rate >= 1:
        return f'{rate:.0f} a second'
    return f'{rate * 60:.0f} a minute' if rate * 60 >= 1 else f'{rate * 3600:.0f} an hour'


def span(seconds: float) -> str:
    """'40 s', '12 min' or '3.4 h'."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
