"""`mvdjax data pack`: a list of videos into a pack (see `data.packed`), in parallel, resumable and verified.

The list is cut into shards up front, so who writes which shard when has no influence on the result. A worker writes a
shard under a temporary name, reads it back and compares; this process then gives it its name and writes down what it
holds, which makes it finished. A kill at any moment loses the shards in work. `pack.json` is written last.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from mvdjax import __version__
from mvdjax.data import packed, shards, transcode
from mvdjax.data.packed import Shard
from mvdjax.data.sources import FileList, read_list
from mvdjax.errors import UserError

UNFINISHED = 'pack.unfinished.json'  # the plan, while it is being carried out
BAD = 'bad_videos.jsonl'
DEFAULT_SIZE = 320
# Videos per shard: 0.5 to 1.5 GB of ten-second videos. Each shard is a file that every reader holds open.
_PER_SHARD = {'copy': 1024, 'gop16': 512, 'intra': 256}
_LEAST_SHARDS = 16  # so that small lists keep several processes busy
_LINE_SECONDS = 30.0  # between two lines of progress where no terminal shows a bar


@dataclasses.dataclass(frozen=True)
class PackSpec:
    """What to write.

    Attributes:
      profile: of `transcode.PROFILES`.
      size: largest short side in pixels; 0 keeps every size. 'copy' takes 0 only.
      name: of the data set: lower case letters, digits and underscores, a letter first.
      split: likewise.
      shards: number of files; 0 chooses by the length of the list.
      workers: processes; 0 means one per core. It has no influence on what is written.
      strict: whether an unreadable file is an error.
    """

    profile: str
    size: int
    name: str = 'videos'
    split: str = 'train'
    shards: int = 0
    workers: int = 0
    strict: bool = False


class _StoppedError(Exception):
    """A worker was told to stop."""


_counter: Any = None
_stop: Any = None


def _start_worker(counter: Any, stop: Any) -> None:
    """Runs first in every worker. The main process alone hears of Ctrl-C, and no worker outlives it."""
    global _counter, _stop
    _counter, _stop = counter, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    exit_with_parent()


def _tick() -> None:
    """Counts a video, in a worker."""
    with _counter.get_lock():
        _counter.value += 1
    if _stop.is_set():
        raise _StoppedError


def _run(task: Callable[..., Any], job: Any) -> Any:
    return task(job, _tick)


def _each(
    task: Callable[[Any, Callable[[], None]], Any], jobs: dict[int, Any], workers: int, report: Callable[[int], None]
) -> Iterator[tuple[int, Any]]:
    """Yields (key, task(job, tick)) as the jobs end, calling `report` with the number of ticks of all since before.

    Raises:
      UserError: a worker process died. What `task` raises comes through.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers <= 1:
        for key, job in jobs.items():
            yield key, task(job, functools.partial(report, 1))
        return
    context = multiprocessing.get_context('spawn')  # never forked: the caller may hold threads
    counter, stop, seen = context.Value('q', 0), context.Event(), 0
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (counter, stop)) as pool:
        pending = {pool.submit(_run, task, job): key for key, job in jobs.items()}
        try:
            while pending:
                done, _ = concurrent.futures.wait(pending, 0.5, concurrent.futures.FIRST_COMPLETED)
                count = counter.value
                report(count - seen)
                seen = count
                for future in done:
                    yield pending.pop(future), future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                'a packing process died, most likely for want of memory: start the same command again, with fewer '
                '--workers'
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
