"""Candidates side by side: each in a process of its own, one batch in turn, so that a noisy minute hits them all.

A process each, because what is compared would meet in one: two builds of FFmpeg, one allocator, one peak of memory.
CPU time is the process's own, user and system, all threads: it hardly depends on what else the machine does.
"""

import dataclasses
import importlib
import multiprocessing
import os
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from mvdjax.errors import UserError

# Where ways to use a core are compared, everything runs on one thread.
ONE_THREAD: Mapping[str, str] = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one batch took.

    Attributes:
        clips: in the batch.
        cpu: seconds of CPU time.
        wall: seconds.
        memory: what a candidate wants to report, in MiB.
    """

    clips: int
    cpu: float
    wall: float
    memory: Mapping[str, float] = dataclasses.field(default_factory=dict)


# Makes batch i. Returns the number of clips, or their cost where not all of the call is to be counted.
Make = Callable[[int], int | Cost]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to do a job.

    Attributes:
        name: unique, in reports.
        factory: 'module:function'; called in the child with `arguments`, it returns a `Make`.
        arguments: picklable keyword arguments.
    """

    name: str
    factory: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a candidate took.

    Attributes:
        name: the candidate's.
        clips: per batch.
        cpu_ms: CPU time per clip of each measured batch, in milliseconds.
        wall_ms: likewise, elapsed.
        memory: largest value of what it reported, in MiB; 'peak_rss_mib' of its own process always.
    """

    name: str
    clips: int
    cpu_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]
    memory: Mapping[str, float]

    @property
    def cpu(self) -> float:
        """Median CPU milliseconds per clip."""
        return statistics.median(self.cpu_ms)

    @property
    def wall(self) -> float:
        """Median elapsed milliseconds per clip."""
        return statistics.median(self.wall_ms)


def serve(candidate: Candidate, connection: Connection) -> None:
    """The child: makes the candidate's function, then runs the batches it is told to, and answers with their cost.

    Its first answer is None, or a string that says why it cannot run.
    """
    try:
        module, function = candidate.factory.split(':')
        make: Make = getattr(importlib.import_module(module), function)(**candidate.arguments)
        connection.send(None)
        while (batch := connection.recv()) is not None:
            wall, cpu = time.perf_counter(), time.process_time()
            made = make(batch)
            cost = made if isinstance(made, Cost) else Cost(made, time.process_time() - cpu, time.perf_counter() - wall)
            peak = {'peak_rss_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
            connection.send(dataclasses.replace(cost, memory={**cost.memory, **peak}))
    except UserError as error:
        connection.send(str(error))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except BaseException:  # whatever it is, the parent is waiting for it  # noqa: BLE001
        with suppress(BrokenPipeError):
            connection.send(f'{candidate.name} failed: {traceback.format_exc()}')


@contextmanager
def _children(candidates: Sequence[Candidate], environment: Mapping[str, str]) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context('spawn')
    saved = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # read when the children's libraries start
    connections, processes = [], []
    try:
        for candidate in candidates:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(candidate, theirs))
            process.start()
            theirs.close()
            connections.append(ours)
            processes.append(process)
        yield connections
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()


def _answer(connection: Connection, name: str) -> Any:
    try:
        answer = connection.recv()
    except EOFError:
        raise UserError(f'the process that measures {name} died, most likely for want of memory') from None
    if isinstance(answer, str):
        raise UserError(answer)
    return answer


def interleaved(
    candidates: Sequence[Candidate],
    repeats: int,
    progress: Callable[[str, int], None] = lambda name, batch: None,
    environment: Mapping[str, str] = ONE_THREAD,
    settle: bool = False,
) -> dict[str, Result]:
    """Runs batch 0 of every candidate to warm it up, then batches 1 to `repeats`, all candidates within each round.

    Args:
        candidates: what to compare; batch i is the same clips for all that are told to make the same ones.
        repeats: measured rounds.
        progress: told the name and the batch that is about to run.
        environment: variables of the children.
        settle: open each turn with a batch that is not measured: a process that has waited has lost the caches and, on
            virtual machines, the memory that it gave back to the system, which a running job would not have.

    Returns:
        Results by name.

    Raises:
        UserError: a candidate could not run.
    """
    costs: dict[str, list[Cost]] = {c.name: [] for c in candidates}
    with _children(candidates, environment) as connections:
        pairs = list(zip(candidates, connections, strict=True))
        for candidate, connection in pairs:
            _answer(connection, candidate.name)
        for batch in range(repeats + 1):
            for candidate, connection in pairs:
                progress(candidate.name, batch)
                if settle and batch:
                    connection.send(batch)
                    _answer(connection, candidate.name)
                connection.send(batch)
                costs[candidate.name].append(_answer(connection, candidate.name))
    return {name: result(name, rounds) for name, rounds in costs.items()}


def result(name: str, rounds: Sequence[Cost]) -> Result:
    """Sums up the costs of a candidate's batches, of which the first was the warm-up."""
    measured = rounds[1:]
    return Result(
        name=name,
        clips=measured[0].clips,
        cpu_ms=tuple(1000 * cost.cpu / cost.clips for cost in measured),
        wall_ms=tuple(1000 * cost.wall / cost.clips for cost in measured),
        memory={key: max(cost.memory[key] for cost in rounds) for key in measured[0].memory},
    )
