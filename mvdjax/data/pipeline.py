"""From a config's data section to batches.

The pieces: `sources` reads lists and `mixing` joins them, `order` says which sample comes when, `samples` makes sample
n, `workers` runs that in threads and processes, `guard` and `bad_files` deal with files that cannot be read.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from mvdjax.data import guard, mixing, workers
from mvdjax.data.bad_files import BadFiles, filter_bad_files, merge_bad_files, read_bad_files, remove_bad_files
from mvdjax.data.decode import DecodeError
from mvdjax.data.guard import Work
from mvdjax.data.order import Numbers, named_seed
from mvdjax.data.recipes import make_recipe, recipe_class
from mvdjax.data.samples import TIMEOUT, EvalSamples, TrainSamples
from mvdjax.data.schema import Recipe, Record, Sample
from mvdjax.data.sources import FileList, read_list
from mvdjax.errors import UserError

Batches = Generator[Sample, None, None]

__all__ = [
    'BadFiles',
    'Data',
    'EvalSamples',
    'Numbers',
    'Stream',
    'TrainSamples',
    'empty_sample',
    'eval_batches',
    'filter_bad_files',
    'make_recipe',
    'merge_bad_files',
    'read_bad_files',
    'recipe_class',
    'records_of_step',
    'remove_bad_files',
    'train_batches',
    'train_streams',
]


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set as a config's `data` section states it: one list, or a mixture of several.

    Attributes:
      recipe: name of a module in `data/recipes`.
      options: arguments of its `Recipe`.
      files: the list, see `sources.read_list`; '' with a mixture.
      root: folder of relative paths; '' is the list's own.
      class_file: class names, one per line, or ''.
      num_classes: labels must be below it; None takes the class names' number.
      mixture: several lists instead of `files`: name -> section of `mixing.Source`.
      labels: how the labels of a mixture belong together: 'same' classes, or 'joined' one source after the other; None
        if the recipe makes no labels.
      workers: decoding processes; 0 decodes in threads of this one.
      threads: decoding threads of this process or of each worker.
      prefetch: batches held ready, over all workers.
      timeout: seconds that reading a file may take; one that takes longer is noted and never opened again.
      max_bad_fraction: training stops when more than this share of the files tried could not be read.
    """

    recipe: str
    options: Mapping[str, Any]
    files: str = ''
    root: str = ''
    class_file: str = ''
    num_classes: int | None = None
    mixture: Mapping[str, Any] | None = None
    labels: str | None = None
    workers: int = 0
    threads: int = 2
    prefetch: int = 2
    timeout: float = TIMEOUT
    max_bad_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Refuses counts that cannot be."""
        if self.workers < 0 or self.threads < 1 or self.prefetch < 1:
            raise UserError('data.workers must be >= 0, data.threads and data.prefetch >= 1')
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f'data.max_bad_fraction is a share, from 0 to 1, not {self.max_bad_fraction}')
        if not 0 < self.timeout < float('inf'):
            raise UserError(f'data.timeout must be above 0 seconds, not {self.timeout}')

    def read(self) -> FileList:
        """The list, or the lists of the mixture as one."""
        alone = [name for name in ('files', 'root', 'class_file', 'num_classes') if getattr(self, name)]
        if self.mixture and alone:
            raise UserError(
                f'data has a mixture and {" and ".join(alone)} beside it: state these in data.mixture.<source>'
            )
        if self.mixture:
            return mixing.read_mixture(self.mixture, self.labels)
        if not self.files:
            raise UserError('data names no list of files: set data.files, or data.mixture for several')
        if self.labels:
            raise UserError(f'data.labels is {self.labels!r}, which says something of a mixture only: leave it out')
        return read_list(self.files, self.root, self.num_classes, self.class_file)

    def make(self) -> Recipe:
        """The recipe."""
        return make_recipe(self.recipe, self.options)

    def samples(self, files: FileList, seed: int, bad: BadFiles) -> TrainSamples:
        """Sample n of the training stream over the list that `read` gave, as a function.

        Raises:
          UserError: sources whose recipes make different numbers of views.
        """
        recipe, parts = self.make(), mixing.parts_of(files)
        own = parts if any(part.options for part in parts) else ()
        recipes = tuple(make_recipe(self.recipe, {**self.options, **(part.options or {})}) for part in own)
        views = sorted({recipe.views, *(r.views for r in recipes)})
        if len(views) > 1:
            raise UserError(f'the sources of data.mixture make {views} views of a file: give them the same number')
        return TrainSamples(files, recipe, seed, bad, self.timeout, recipes)

    def batches(self, samples: TrainSamples | EvalSamples, numbers: Numbers, flatten: bool) -> Batches:
        """Batches of samples, made by this section's workers and threads."""
        return workers.batches(
            samples,
            numbers,
            numbers.local,
            workers=self.workers,
            threads=self.threads,
            prefetch=self.prefetch,
            flatten=flatten,
        )


def train_batches(
    data: Data,
    files: FileList,
    *,
    seed: int,
    global_batch: int,
    start_step: int,
    steps: int,
    bad: BadFiles,
    parts: tuple[int, ...] = (0,),
    of: int = 1,
) -> Batches:
    """This process's batches of steps `start_step` to `steps` - 1.

    Args:
      data: the data section.
      files: its list.
      seed: of the order and of all augmentation.
      global_batch: records per step over all processes; each gives the recipe's number of views.
      start_step: the step to start from.
      steps: the run's last step.
      bad: where unreadable files are noted.
      parts: those of every batch that this process reads, in order.
      of: equal parts that a batch is cut into; they must divide `global_batch`.

    Returns:
      A generator of dicts of (rows, ...) arrays. Closing it ends its workers.
    """
    numbers = Numbers(global_batch, start_step, steps, parts, of)
    samples = data.samples(files, seed, bad)
    return data.batches(samples, numbers, flatten=samples.recipe.views > 1)


@dataclasses.dataclass(frozen=True)
class Stream:
    """One of several streams that are trained on side by side.

    Attributes:
      data: its data section.
      files: its list.
      batch: records per step over all processes.
    """

    data: Data
    files: FileList
    batch: int


def train_streams(
    streams: Mapping[str, Stream],
    *,
    seed: int,
    start_step: int,
    steps: int,
    bad: BadFiles,
    parts: tuple[int, ...] = (0,),
    of: int = 1,
) -> Generator[dict[str, Sample], None, None]:
    """This process's batches of several streams: one batch of each in every step, in a sub-dict of its name.

    Each stream goes through its own list, with a seed that depends on its name and not on the other streams, and is as
    deterministic and as easily resumed as one alone.

    Args:
      streams: by name.
      seed: as in `train_batches`, and so are the rest.
      start_step: the step to start from.
      steps: the run's last step.
      bad: where unreadable files are noted.
      parts: those of every batch that this process reads, in order.
      of: equal parts that a batch is cut into; they must divide each stream's batch.
    """
    iterators = {
        name: train_batches(
            stream.data,
            stream.files,
            seed=named_seed(seed, name),
            global_batch=stream.batch,
            start_step=start_step,
            steps=steps,
            bad=bad,
            parts=parts,
            of=of,
        )
        for name, stream in streams.items()
    }
    with contextlib.ExitStack() as stack:
        for iterator in iterators.values():
            stack.enter_context(contextlib.closing(iterator))
        for _ in range(start_step, steps):
            yield {name: next(iterator) for name, iterator in iterators.items()}


def records_of_step(streams: Mapping[str, Stream], *, seed: int, step: int) -> dict[str, list[Record]]:
    """{stream: records} that all processes together read for step `step`, counted from 0, in the order of the batch.

    Args:
      streams: by name; one alone has the seed of `train_batches`, several those of `train_streams`.
      seed: of the order.
      step: counted as the order counts, from 0.
    """
    found = {}
    for name, stream in streams.items():
        own = seed if len(streams) == 1 else named_seed(seed, name)
        samples = stream.data.samples(stream.files, own, BadFiles(None))
        found[name] = [samples.record(n) for n in range(step * stream.batch, (step + 1) * stream.batch)]
    return found


def eval_batches(
    data: Data,
    files: FileList,
    *,
    batch: int,
    empty: Sample,
    bad: BadFiles,
    parts: tuple[int, ...] = (0,),
    of: int = 1,
    start_step: int = 0,
) -> Batches:
    """This process's rows of every evaluation batch, in list order, the last one padded.

    Args:
      data: the data section.
      files: its list.
      batch: records per step over all processes.
      empty: a sample of zeros with the recipe's shapes, for padding and unreadable files.
      bad: where unreadable files are noted.
      parts: those of every batch that this process reads, in order.
      of: equal parts that a batch is cut into; they must divide `batch`.
      start_step: the batch to start from.
    """
    numbers = Numbers(batch, start_step, -(-len(files.records) // batch), parts, of)
    return data.batches(EvalSamples(files, data.make(), bad, empty, data.timeout), numbers, flatten=False)


def empty_sample(data: Data, files: FileList) -> Sample:
    """Zeros with the shapes of one sample of the recipe, learnt from a file that can be read.

    Shapes do not depend on the file. Files are tried from all over the list, so that it takes a list with next to
    nothing readable to make this slow.

    Raises:
      UserError: no file of the list can be read.
    """
    recipe, error = data.make(), None
    count = len(files.records)
    stride = next(s for s in range(max(1, int(count * 0.618)), count + 1) if np.gcd(s, count) == 1)
    for i in range(count):
        index = i * stride % count
        record = files.records[index]
        try:
            sample = guard.read(
                functools.partial(recipe, record, np.random.default_rng(0)),
                record.path,
                Work(index, 0, index),
                data.timeout,
            )
        except DecodeError as found:
            error = found
            continue
        return {name: np.zeros_like(value) for name, value in sample.items()}
    raise UserError(f'no file of {files.path} can be read, the last one tried: {error}; check data.root and the files')
