"""From a list of files to batches, on Grain. Which sample comes when is arithmetic, so nothing needs saving.

Sample i of step k has the global number n = k * batch + i. The record it shows, and the random generator that crops
and masks it, are functions of (seed, n) alone: the number of workers, threads, hosts or restarts does not enter.
"""

import contextlib
import dataclasses
import fcntl
import functools
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from mvdjax import keywords
from mvdjax.data import recipes, worker_settings
from mvdjax.data.decode import DecodeError
from mvdjax.data.schema import SUBSTITUTED, Recipe, Record, Sample
from mvdjax.data.sources import FileList, read_list
from mvdjax.errors import UserError

MAX_SUBSTITUTIONS = 20  # consecutive unreadable files before a sample is given up


def recipe_class(name: str) -> Any:
    """`mvdjax.data.recipes.<name>.Recipe`.

    Raises:
      UserError: no such recipe.
    """
    module = f'mvdjax.data.recipes.{name}'
    try:
        return importlib.import_module(module).Recipe
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        names = [found.name for found in pkgutil.iter_modules(recipes.__path__)]
        raise UserError(
            f'there is no data recipe {name!r}; {keywords.nearest(name, names)}choose one of {names}'
        ) from (error)


def make_recipe(name: str, options: Mapping[str, Any]) -> Recipe:
    """A recipe with its options.

    Raises:
      UserError: no such recipe, or an option that it does not have or take.
    """
    return keywords.build(recipe_class(name), options, f'data recipe {name!r}')


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set as a config's `data` section states it.

    Attributes:
      files: the list, see `sources.read_list`.
      recipe: name of a module in `data/recipes`.
      options: arguments of its `Recipe`.
      root: folder of relative paths; '' is the list's own.
      class_file: class names, one per line, or ''.
      num_classes: labels must be below it; None takes the class names' number.
      workers: decoding processes; 0 decodes in threads of this one.
      threads: decoding threads of this process or of each worker.
      prefetch: batches held ready, over all workers.
      max_bad_fraction: training stops when more than this share of the files tried could not be read.
    """

    files: str
    recipe: str
    options: Mapping[str, Any]
    root: str = ''
    class_file: str = ''
    num_classes: int | None = None
    workers: int = 0
    threads: int = 2
    prefetch: int = 2
    max_bad_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Refuses counts that cannot be."""
        if self.workers < 0 or self.threads < 1 or self.prefetch < 1:
            raise UserError('data.workers must be >= 0, data.threads and data.prefetch >= 1')
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f'data.max_bad_fraction is a share, from 0 to 1, not {self.max_bad_fraction}')

    def read(self) -> FileList:
        """The list."""
        return read_list(self.files, self.root, self.num_classes, self.class_file)

    def make(self) -> Recipe:
        """The recipe."""
        return make_recipe(self.recipe, self.options)


class BadFiles:
    """The record of unreadable files: one JSON line each in `bad_videos.jsonl`, whichever process met it first."""

    def __init__(self, path: str | None) -> None:
        """`path` is the file, or None to keep no record."""
        self._path = path
        self._seen: set[str] = set()

    def add(self, record: Record, error: DecodeError) -> None:
        """Notes a file, unless it is there already. Threads, workers and hosts may share the record."""
        if self._path is None or record.path in self._seen:
            return
        line = json.dumps({'path': record.path, 'line': record.line, 'reason': error.reason}) + '\n'
        with open(self._path, 'a+', encoding='utf-8') as file:
            with contextlib.suppress(OSError):  # a file system without locks: a file may be listed twice
                fcntl.flock(file, fcntl.LOCK_EX)
            if record.path not in {entry['path'] for entry in read_bad_files(self._path)}:
                file.seek(0)
                text = file.read()  # a kill may have cut the last line short
                file.write(line if not text or text.endswith('\n') else '\n' + line)
        self._seen.add(record.path)  # once it stands there: another thread must not go on, and fail, before it does


def read_bad_files(path: str) -> list[dict[str, Any]]:
    """The entries of a `bad_videos.jsonl`, one per file; none if there is no such file."""
    if not os.path.exists(path):
        return []
    entries = []
    with open(path, encoding='utf-8') as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut short
                entries.append(json.loads(line))
    return list({entry['path']: entry for entry in entries}.values())


@dataclasses.dataclass(frozen=True)
class TrainSamples:
    """Sample n of the training stream, as a function. Picklable: workers get a copy."""

    files: FileList
    recipe: Recipe
    seed: int
    bad: BadFiles

    @functools.cached_property
    def _order(self) -> Any:
        # Each epoch is a new permutation, computed by index: no list is ever shuffled or stored.
        return grain.MapDataset.range(len(self.files.records)).shuffle(seed=self.seed).repeat()

    def __getstate__(self) -> dict[str, Any]:
        """Without the order, which each process makes for itself."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __call__(self, number: int) -> Sample:
        """The sample, or the first readable one of a chain of substitutes that depends on (seed, number) alone."""
        records = self.files.records
        for attempt in range(MAX_SUBSTITUTIONS):
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, number, attempt])))
            index = self._order[number] if attempt == 0 else int(rng.integers(len(records)))
            try:
                sample = self.recipe(records[index], rng)
            except DecodeError as error:
                self.bad.add(records[index], error)
                continue
            rows = self.recipe.views
            sample[SUBSTITUTED] = np.int32(attempt) if rows == 1 else np.array([attempt] + [0] * (rows - 1), np.int32)
            return sample
        raise UserError(
            f'{MAX_SUBSTITUTIONS} files of {self.files.path} in a row could not be read, the last one '
            f'{records[index].path}; check data.root and the files'
        )


@dataclasses.dataclass(frozen=True)
class EvalSamples:
    """Sample n of an evaluation set. A file that cannot be read is never replaced: it comes as `valid` = False."""

    files: FileList
    recipe: Recipe
    bad: BadFiles
    empty: Sample

    def __call__(self, number: int) -> Sample:
        """The sample; numbers past the end are padding."""
        index = np.int32(number)
        if number >= len(self.files.records):
            return {**self.empty, 'index': index, 'valid': np.False_}
        record = self.files.records[number]
        # Masks of pretraining losses are drawn here too: the same for every evaluation.
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([0, number])))
        try:
            return {**self.recipe(record, rng), 'index': index, 'valid': np.True_}
        except DecodeError as error:
            self.bad.add(record, error)
            return {**self.empty, 'index': index, 'valid': np.False_}


def _flatten_views(batch: Sample) -> Sample:
    """(b, views, ...) -> (b * views, ...), sample-major: the views of a video stay neighbours."""
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in batch.items()}


def start_worker(index: int, count: int) -> None:
    """Runs first in every worker: no JAX backend may start there, and no orphan may outlive the main process."""
    del index, count
    os.environ['JAX_PLATFORMS'] = 'cpu'
    worker_settings.tune()
    parent = multiprocessing.parent_process()
    assert parent is not None
    pid = parent.pid  # asked of multiprocessing: a parent that is dead by now shows too

    def watch() -> None:
        while os.getppid() == pid:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _iterate(samples: Any, numbers: Any, batch: int, data: Data, flatten: bool) -> Iterator[Sample]:
    # Threads and workers make single samples, batched afterwards in this process: a batch is ready as soon as its
    # samples are, the memory held is `prefetch` batches in all, and the order does not depend on who made what.
    ahead = -(-data.prefetch * batch // max(1, data.workers))
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=max(data.threads, ahead))
    iterable = grain.MapDataset.source(numbers).map(lambda n: int(n)).map(samples).to_iter_dataset(options)
    if data.workers:
        if not flags.FLAGS.is_parsed():  # Grain's worker start-up reads absl flags
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=ahead),
            worker_init_fn=start_worker,
        )
    iterable = iterable.batch(batch)
    if flatten:
        iterable = iterable.map(_flatten_views)
    return _explained(iter(iterable))


def _explained(batches: Iterator[Sample]) -> Iterator[Sample]:
    """The same batches; a worker that was killed is a sentence."""
    try:
        yield from batches
    except RuntimeError as error:
        if 'terminated unexpectedly' not in str(error):
            raise
        code = ''.join(re.findall(r'exit code (-?\d+)', str(error)))
        raise UserError(
            f'a data worker died (exit code {code}), most likely for want of memory: lower data.workers or '
            'data.prefetch, or set data.workers to 0 to read in this process'
        ) from error


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The global sample numbers that this process reads, from `start_step` on: its contiguous rows of every batch."""

    records_per_batch: int
    start_step: int
    steps: int
    process: int
    processes: int

    def __len__(self) -> int:
        """Records this process reads."""
        return (self.steps - self.start_step) * (self.records_per_batch // self.processes)

    def __getitem__(self, position: int) -> int:
        """Global number of the record at this position."""
        if not 0 <= position < len(self):
            raise IndexError(position)  # or iteration would never end
        local = self.records_per_batch // self.processes
        step, row = divmod(position, local)
        return (self.start_step + step) * self.records_per_batch + self.process * local + row


def train_batches(
    data: Data,
    files: FileList,
    *,
    seed: int,
    global_batch: int,
    start_step: int,
    steps: int,
    bad: BadFiles,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Sample]:
    """This process's batches of steps `start_step` to `steps` - 1.

    Args:
      data: the data section.
      files: its list.
      seed: of the order and of all augmentation.
      global_batch: records per step over all processes; each gives the recipe's number of views.
      start_step: the step to start from.
      steps: the run's last step.
      bad: where unreadable files are noted.
      process: this process's number.
      processes: how many there are; they must divide `global_batch`.

    Returns:
      An iterator of dicts of (rows, ...) arrays.
    """
    recipe = data.make()
    numbers = Numbers(global_batch, start_step, steps, process, processes)
    samples = TrainSamples(files, recipe, seed, bad)
    return _iterate(samples, numbers, global_batch // processes, data, flatten=recipe.views > 1)


def eval_batches(
    data: Data, files: FileList, *, batch: int, empty: Sample, bad: BadFiles, process: int = 0, processes: int = 1
) -> Iterator[Sample]:
    """This process's rows of every evaluation batch, in list order, the last one padded.

    Args:
      data: the data section.
      files: its list.
      batch: records per step over all processes.
      empty: a sample of zeros with the recipe's shapes, for padding and unreadable files.
      bad: where unreadable files are noted.
      process: this process's number.
      processes: how many there are; they must divide `batch`.
    """
    steps = -(-len(files.records) // batch)
    numbers = Numbers(batch, 0, steps, process, processes)
    return _iterate(EvalSamples(files, data.make(), bad, empty), numbers, batch // processes, data, flatten=False)


def empty_sample(data: Data, files: FileList) -> Sample:
    """Zeros with the shapes of one sample of the recipe, learnt from the first readable file.

    Raises:
      UserError: none of the first files can be read.
    """
    recipe = data.make()
    error: DecodeError | None = None
    for record in files.records[:MAX_SUBSTITUTIONS]:
        try:
            sample = recipe(record, np.random.default_rng(0))
        except DecodeError as found:
            error = found
            continue
        return {name: np.zeros_like(value) for name, value in sample.items()}
    raise UserError(f'none of the first files of {files.path} can be read, the last one: {error}')
