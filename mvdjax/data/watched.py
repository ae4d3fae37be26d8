"""Work on files that may crash or hang whoever touches them: each job in a worker process that may die of it.

A worker dies by itself when its job shows no sign of life for too long: the kernel ends it with a timer signal, which
also works inside a decoder that never returns to Python. What is left of a dead worker is one sentence; the next job
goes to a new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from mvdjax.errors import UserError

# How the system ends a process, mostly for want of memory; what a decoder does to itself is another signal.
_KILLS = (signal.SIGKILL, signal.SIGBUS)

FETCH_SECONDS = 3600.0  # that a file may take to come from an object store

Alive = Callable[[float], None]  # a sign of life; the argument is how many seconds may pass until the next


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
      reason: continues a sentence that starts with the job's file.
      again: whether something else than the job may be to blame.
      killed: whether the system ended the process, which is no fault of the job's file.
    """

    reason: str
    again: bool = False
    killed: bool = False


class _Worker:
    """A process, the parent's end of its pipe, and the number of the job it works on."""

    def __init__(self, function: Callable[[Any, Alive], Any]) -> None:
        # Spawned, never forked: the caller may hold threads and an accelerator.
        context = multiprocessing.get_context('spawn')
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, function), daemon=True)
        self.process.start()
        child.close()  # or the pipe would not end with the worker
        self.ready = False
        self.job: int | None = None  # None: idle or starting

    def give(self, number: int, job: Any) -> None:
        """Starts a job."""
        self.job = number
        with contextlib.suppress(OSError):  # it has just died: the end of its pipe will tell
            self.pipe.send(job)

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def obituary(self) -> Failure:
        """Why a process whose pipe has ended is dead."""
        self.process.join(10.0)
        code = self.process.exitcode
        if code == -signal.SIGALRM:
            return Failure('hangs: decoding showed no progress for too long', again=True)
        if code is not None and code < 0:
            reason = f'ended the process that decoded it ({signal.Signals(-code).name})'
            return Failure(reason, again=True, killed=-code in _KILLS)
        return Failure(f'ended the process that decoded it (exit code {code})', again=True)


def _serve(pipe: connection.Connection, function: Callable[[Any, Alive], Any]) -> None:
    """A worker's life: jobs in, results out, until the pipe closes (which it also does when the parent dies)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def alive(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    pipe.send(None)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = function(job, alive)
        except Exception as error:  # noqa: BLE001 -- one file's surprise must not stop the others
            result = Failure(f'cannot be checked: {type(error).__name__}: {error}')
        alive(0)
        try:
            pipe.send(result)
        except OSError:
            return


def run_jobs(
    function: Callable[[Any, Alive], Any], jobs: Sequence[Any], workers: int, at_work: Callable[[Any], str] = str
) -> Iterator[tuple[int, Any | Failure]]:
    """Calls `function(job, alive)` for every job, each in one of several processes.

    A job whose worker dies is tried once more, alone: a neighbour may have taken all the memory, or all the storage's
    attention.

    Args:
      function: picklable. It must call `alive` often enough, or the process it runs in ends.
      jobs: picklable.
      workers: processes; 0 means one per core.
      at_work: the file that a job whose process has ended was at.

    Yields:
      (number of the job, result or Failure), in the order in which they end.

    Raises:
      UserError: workers cannot even start, or the system kills one at the same job again.
    """
    suspects: list[int] = []
    for number, answer in _run(function, jobs, workers or len(os.sched_getaffinity(0))):
        if isinstance(answer, Failure) and answer.again:
            suspects.append(number)
        else:
            yield number, answer
    for place, answer in _run(function, [jobs[number] for number in suspects], 1):
        if isinstance(answer, Failure) and answer.killed:
            raise UserError(
                f'{at_work(jobs[suspects[place]])} {answer.reason} twice: most likely the system, for want of memory; '
                'lower --workers or free memory, and start the same command again'
            )
        yield suspects[place], answer


def _run(
    function: Callable[[Any, Alive], Any], jobs: Sequence[Any], workers: int
) -> Iterator[tuple[int, Any | Failure]]:
    pending = deque(range(len(jobs)))
    left = len(jobs)
    pool: dict[Any, _Worker] = {
        worker.pipe: worker for worker in (_Worker(function) for _ in range(min(workers, left)))
    }
    try:
        while left:
            for pipe in connection.wait(list(pool)):
                worker = pool[pipe]
                number, worker.job = worker.job, None
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):
                    answer = worker.obituary()
                    worker.stop()
                    del pool[pipe]
                    if not worker.ready:
                        raise UserError(
                            f'a worker process ended with exit code {worker.process.exitcode} before it could start: '
                            'if memory is short, lower --workers'
                        ) from None
                    worker = _Worker(function)
                    pool[worker.pipe] = worker
                else:
                    worker.ready = True
                    if pending:  # before the answer is handed over: the worker need not wait for whoever takes it
                        next_number = pending.popleft()
                        worker.give(next_number, jobs[next_number])
                if number is not None:
                    left -= 1
                    yield number, answer
    finally:
        for worker in pool.values():
            worker.stop()
