"""Samples to batches: Grain's threads and processes, started again where a decoder has hung or crashed one of them."""

import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Generator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import cloudpickle
import grain
import numpy as np
from absl import flags

from mvdjax.data import guard, slots, worker_settings
from mvdjax.data.bad_files import BadFiles
from mvdjax.data.guard import Board, Work, WorkerWatch
from mvdjax.data.order import Numbers
from mvdjax.data.schema import FileList, Sample
from mvdjax.errors import UserError

SHARED = '/dev/shm'  # where Linux keeps shared memory
WORKER_NAME = 'grain-process-prefetch'
# How a decoder ends a process. SIGKILL is not among them: that is the kernel, out of memory, or a person.
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
MAX_RESTARTS = 3  # in a row at the same batch without a file to blame
LINGER = 30.0  # seconds that a worker goes on after it was told to end: as long as schedulers usually wait
STORAGE_LIMIT = 900.0  # seconds that the storage may take to hand over one file

log = logging.getLogger(__name__)


class Samples(Protocol):
    """Sample n as a function, see `data.samples`."""

    @property
    def files(self) -> FileList:
        """The list."""

    @property
    def bad(self) -> BadFiles:
        """Where unreadable files are noted."""

    @property
    def limit(self) -> float:
        """Seconds that reading a file may take."""

    def __call__(self, number: int) -> Sample:
        """The sample."""

    def alone(self, work: Work) -> Sample:
        """Reads again what a worker was at, unguarded."""


def batches(
    samples: Samples, numbers: Numbers, batch: int, *, workers: int, threads: int, prefetch: int, flatten: bool
) -> Generator[Sample, None, None]:
    """Batches of the samples with these numbers, in their order, whoever made them.

    Threads and workers make single samples, batched afterwards in this process: a batch is ready as soon as its
    samples are, and the order does not depend on who made what. When a worker dies of a file, the file is marked and
    the workers are started again from the batch that was being made, so that the stream is the one that a run has
    where the file is simply broken.

    Args:
      samples: sample n as a function.
      numbers: of the samples.
      batch: rows of a batch.
      workers: processes; 0 for none.
      threads: of this process or of each worker.
      prefetch: batches held ready, over all workers.
      flatten: samples have a leading axis of views, which becomes rows.

    Raises:
      UserError: workers die again and again; the message names the files that were at work.
    """
    ahead = -(-prefetch * batch // max(1, workers))
    done = restarts = 0
    while True:
        board = Board.create(workers, threads) if workers else None
        memory = slots.memory(workers, shared_rows(1, ahead, -(-batch // workers))) if workers else None
        watch = WorkerWatch(board, samples.limit) if board else None
        rest = numbers.after(done)
        stream = iter(_dataset(samples, rest, batch, workers, threads, ahead, board, memory, flatten))
        try:
            if watch:
                watch.start()
            for one in stream:
                yield one
                done, restarts = done + 1, 0
            return
        except RuntimeError as error:
            found = re.search(r'terminated unexpectedly with exit code (-?\d+)', str(error))
            if not found:
                raise
            assert board is not None
            assert watch is not None
            watch.stop()
            blamed = _blame(int(found[1]), samples, board, watch)
            restarts = 0 if blamed else restarts + 1
            if restarts > MAX_RESTARTS:
                raise UserError(_hopeless(int(found[1]), _names(samples, board))) from error
            if not blamed:
                log.warning('a data worker died (exit code %s); all are started again', found[1])
        finally:
            if watch:
                watch.stop()
            stream.close()
            if board:
                board.remove()
                del stream
                gc.collect()  # Grain's iterators are cycles that hold on to shared memory
            if memory:
                memory.close()


def _dataset(
    samples: Samples,
    numbers: Numbers,
    batch: int,
    workers: int,
    threads: int,
    ahead: int,
    board: Board | None,
    memory: slots.Memory | None,
    flatten: bool,
) -> Any:
    # A worker holds only what its threads need to keep going; what is ready waits in shared memory.
    buffer = min(ahead, 2 * threads) if workers else ahead
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, buffer))
    dataset = grain.MapDataset.source(numbers).map(lambda n: int(n)).map(samples).to_iter_dataset(options)
    if board:
        if not flags.FLAGS.is_parsed():  # Grain's worker start-up reads absl flags
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.map(_store)
        places = memory.places if memory else ()
        small = grain.experimental.DatasetOptions(min_shm_size=slots.LEAST_BYTES)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, small)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead),
            worker_init_fn=functools.partial(
                start_worker, board_path=board.path, threads=threads, places=places, room=memory.slots if memory else 0
            ),
        )
    rows = shared_rows(workers, ahead, batch)
    return dataset.batch(batch, batch_fn=_Batch(samples.files.path, memory, rows, flatten))


class _Batch:
    """Samples to a batch."""

    def __init__(self, path: str, memory: slots.Memory | None, rows: int, flatten: bool) -> None:
        """`path` is of the list; `rows` samples may be on their way."""
        self._path, self._memory, self._rows, self._flatten = path, memory, rows, flatten
        self._first: dict[str, Any] = {}

    def __call__(self, samples: Sequence[Sample]) -> Sample:
        """All samples as one, or UserError where one is shaped otherwise than the first."""
        for sample in samples:
            self._check(sample)
        stack = self._memory.stack if self._memory else np.stack
        batch = {name: stack([sample[name] for sample in samples]) for name in samples[0]}
        if self._memory:
            for sample in samples:
                self._memory.free(sample)
        if self._flatten:  # (b, views, ...) -> (b * views, ...), sample-major: the views of a video stay neighbours
            batch = {name: value.reshape(-1, *value.shape[2:]) for name, value in batch.items()}
        return batch

    def _check(self, sample: Sample) -> None:
        found = {name: slots.kind(value) for name, value in sample.items()}
        if not self._first:
            if not any(isinstance(value, slots.Stored) for value in sample.values()):  # Grain passes them on
                check_shared_memory(self._rows * slots.large_bytes(sample))
            self._first = found
        if found != self._first:
            name = next(n for n in sorted(found.keys() | self._first.keys()) if found.get(n) != self._first.get(n))
            shown = ['missing' if x is None else f'{x[1]} {x[0]}' for x in (found.get(name), self._first.get(name))]
            raise UserError(
                f'the samples of {self._path} do not fit together: {name} is {shown[0]} in one and {shown[1]} in '
                'another; give the sources of data.mixture options that make the same shapes'
            )


def shared_rows(workers: int, ahead: int, batch: int) -> int:
    """Samples that can be in shared memory at once: each worker's queue, its twin in this process, one in each hand;
    and those of the batch that is being put together.
    """
    return workers * (2 * ahead + 2) + batch if workers else 0


def check_shared_memory(need: int) -> None:
    """Refuses workers whose samples do not fit into shared memory: they would die of a bus error.

    Args:
      need: bytes.

    Raises:
      UserError: the message has the numbers and the remedy.
    """
    if need and os.path.isdir(SHARED):
        stat = os.statvfs(SHARED)
        size = stat.f_blocks * stat.f_frsize
        if need > size:
            raise UserError(
                f'the data workers need up to {need / 2**20:.0f} MiB of shared memory, {SHARED} has '
                f'{size / 2**20:.0f}: give the container more (docker run --shm-size={need / 2**30 + 1:.0f}g), lower '
                'data.prefetch or data.workers, or set data.workers to 0'
            )


_writer: slots.Writer | None = None  # set in workers only


def _store(sample: Sample) -> Sample:
    return _writer.put(sample) if _writer else sample


def start_worker(
    index: int, count: int, board_path: str, threads: int, places: Sequence[slots.Place], room: int
) -> None:
    """Runs first in every worker: no JAX backend may start there, and no orphan may outlive the main process."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    # Who stops a run by signal often tells all of its processes; the main one still needs batches to end in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(LINGER, os._exit, (1,)).start())
    worker_settings.tune()
    _end_with_parent()
    guard.sign_on(Board(board_path, count, threads), index)
    if places:
        global _writer
        with contextlib.suppress(OSError):  # Grain passes the samples on, and `_Batch` checks its memory
            _writer = slots.Writer(places[index], index, room)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    pid = parent.pid  # asked of multiprocessing: a parent that is dead by now shows too

    def watch() -> None:
        while os.getppid() == pid:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _names(samples: Samples, board: Board) -> str:
    """The files at work in the workers that are gone."""
    found = [work for worker in _gone(board) for work in board.at_work(worker).values()]
    records = [samples.files.records[work.index] for work in found]
    return ', '.join(f'{record.path} (line {record.line})' for record in records) or 'nothing yet'


def _gone(board: Board) -> list[int]:
    alive = {process.pid for process in multiprocessing.active_children()}
    return [w for w in range(board.workers) if board.pid(w) not in alive]


def _blame(code: int, samples: Samples, board: Board, watch: WorkerWatch) -> bool:
    """Marks the files that a worker died of.

    Args:
      code: the exit code.
      samples: with the record of bad files.
      board: what was at work.
      watch: who was ended for being late.

    Returns:
      Whether any file was marked: none where no decoder ends a process like that.
    """
    crashed = -code in CRASHES
    # One of a worker's threads may have held up or taken with it the others: each file is tried by itself.
    suspects = [work for works in watch.ended.values() for work in works]
    if crashed:
        suspects += [work for w in _gone(board) if w not in watch.ended for work in board.at_work(w).values()]
    guilty = _try_alone(samples, suspects)
    for index, reason in guilty.items():
        record = samples.files.records[index]
        samples.bad.skip(record, reason)
        log.warning('%s (line %d) %s; it will not be opened again', record.path, record.line, reason)
    return bool(guilty)


def _hopeless(code: int, names: str) -> str:
    """Why starting workers again is given up."""
    remedy = 'move these files out of the list, or set data.workers to 0 to see the error itself'
    if -code in CRASHES:
        return f'the data workers die again and again at the same batch, reading {names}: {remedy}'
    reason, remedy = 'most likely for want of memory', 'lower data.workers or data.prefetch'
    if code == -signal.SIGBUS:
        reason = f'most likely because {SHARED} is full'
        remedy = f'give the container more shared memory (docker run --shm-size), {remedy}'
    return (
        f'data workers die again and again (exit code {code}), {reason}, while reading {names}: {remedy}, or set '
        'data.workers to 0 to read in this process'
    )


def _try_alone(samples: Samples, works: list[Work]) -> dict[int, str]:
    """Reads each file again in a process of its own, as it was being read. Returns record -> how that went wrong.

    One after the other: the clock runs while a file is read, and many at once would make each other late.
    """
    context = multiprocessing.get_context('spawn')
    pickled = cloudpickle.dumps(samples)
    found = {}
    for work in works:
        ready = context.Event()
        process = context.Process(target=_read_alone, args=(pickled, work, ready), daemon=True)
        process.start()
        started = time.monotonic()
        while not ready.wait(0.1) and process.is_alive():
            if time.monotonic() > started + STORAGE_LIMIT:
                process.kill()
                raise UserError(
                    f'{samples.files.records[work.index].path} could not be read from its storage in '
                    f'{STORAGE_LIMIT:g} s: start the run again when that answers'
                )
        process.join(samples.limit)
        if process.is_alive():
            process.kill()
            found[work.index] = guard.hung('', samples.limit).reason
        elif -(process.exitcode or 0) in CRASHES:
            found[work.index] = f'makes the decoder crash ({signal.Signals(-(process.exitcode or 0)).name})'
        process.join()
    return found


def _read_alone(pickled: bytes, work: Work, ready: Any) -> None:
    """In a process of its own: reads, whatever comes of it."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    _end_with_parent()
    samples = cloudpickle.loads(pickled)
    guard.warm(samples.files.records[work.index].path)
    ready.set()
    with contextlib.suppress(Exception):  # broken is not guilty: the stream replaces it as ever
        samples.alone(work)
    os._exit(0)  # at once: the clock runs until this process has ended


def worker_processes() -> list[BaseProcess]:
    """The data workers of this process that run."""
    return [p for p in multiprocessing.active_children() if p.name.startswith(WORKER_NAME)]


def memory() -> dict[str, float]:
    """Resident memory in MiB: {'memory_mib': of this process, 'worker_memory_mib': of its largest data worker}.

    Both count what is shared with others, such as loaded libraries, in full. {} where there is no /proc.
    """
    if not os.path.exists('/proc/self/statm'):
        return {}
    workers = [_resident(p.pid) for p in worker_processes() if p.pid]
    return {'memory_mib': _resident(os.getpid())} | ({'worker_memory_mib': max(workers)} if workers else {})


def _resident(pid: int) -> float:
    try:
        with open(f'/proc/{pid}/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20
    except OSError:  # it has just ended
        return 0.0
