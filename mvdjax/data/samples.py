"""Sample number n as a function: of a training stream, where broken files are replaced, and of an evaluation."""

import dataclasses
import functools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from mvdjax.data import guard, mixing, order
from mvdjax.data.bad_files import BadFiles
from mvdjax.data.decode import DecodeError
from mvdjax.data.guard import HungError, Work
from mvdjax.data.schema import SUBSTITUTED, FileList, Recipe, Record, Sample
from mvdjax.errors import UserError

MAX_SUBSTITUTIONS = 20  # consecutive unreadable files before a sample is given up
TIMEOUT = 120.0  # seconds that reading a file may take, unless `data.timeout` says otherwise


def _generator(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def _read(recipe: Recipe, record: Record, rng: np.random.Generator, bad: BadFiles, work: Work, limit: float) -> Sample:
    """A sample of a record. Raises DecodeError once the file stands in the record of bad files."""
    try:
        bad.check(record)
        return guard.read(lambda: recipe(record, rng), record.path, work, limit)
    except HungError as error:
        bad.skip(record, error.reason)
        raise
    except DecodeError as error:
        bad.add(record, error)
        raise


@dataclasses.dataclass(frozen=True)
class TrainSamples:
    """Sample n of the training stream. Picklable: workers get a copy.

    Attributes:
      files: a list or a mixture of lists.
      recipe: makes samples.
      seed: of the order and of all that is drawn.
      bad: where unreadable files are noted.
      limit: seconds that reading a file may take.
      recipes: of a mixture whose sources have options of their own, one for each.
    """

    files: FileList
    recipe: Recipe
    seed: int
    bad: BadFiles
    limit: float = TIMEOUT
    recipes: tuple[Recipe, ...] = ()

    @functools.cached_property
    def _shares(self) -> tuple[Fraction, ...]:
        return order.shares([part.weight for part in mixing.parts_of(self.files)])

    @functools.cached_property
    def _walks(self) -> list[Any]:
        """For each part, the endless order of its own records: a source does not notice what it is mixed with."""
        parts = mixing.parts_of(self.files)
        seeds = [order.named_seed(self.seed, part.name) if part.name else self.seed for part in parts]
        return [order.epochs(part.stop - part.start, seed) for part, seed in zip(parts, seeds, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """Without the walks, which each process makes for itself."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def _draw(self, number: int, attempt: int) -> tuple[int, int, np.random.Generator]:
        """(part, record, generator) of an attempt at a sample: functions of (seed, number, attempt) alone."""
        which, place = order.mixed(number, self._shares, self.seed)
        part = mixing.parts_of(self.files)[which]
        rng = _generator(self.seed, number, attempt)
        offset = self._walks[which][place] if attempt == 0 else int(rng.integers(part.stop - part.start))
        return which, part.start + int(offset), rng

    def record(self, number: int) -> Record:
        """The record that sample `number` is made of, if it can be read."""
        return self.files.records[self._draw(number, 0)[1]]

    def _recipe(self, part: int) -> Recipe:
        return self.recipes[part] if self.recipes else self.recipe

    def __call__(self, number: int) -> Sample:
        """The sample, or the first readable one of a chain of substitutes from the same source."""
        for attempt in range(MAX_SUBSTITUTIONS):
            part, index, rng = self._draw(number, attempt)
            record, recipe = self.files.records[index], self._recipe(part)
            try:
                sample = _read(recipe, record, rng, self.bad, Work(number, attempt, index), self.limit)
            except DecodeError:
                continue
            if isinstance(self.files, mixing.MixedList) and 'label' in sample and not self.files.labels:
                raise UserError(
                    f'the samples of {self.files.path} have labels: say in data.labels whether the sources of the '
                    "mixture have the 'same' classes or are to be 'joined', each with classes of its own"
                )
            rows = recipe.views
            sample[SUBSTITUTED] = np.int32(attempt) if rows == 1 else np.array([attempt] + [0] * (rows - 1), np.int32)
            return sample
        raise UserError(
            f'{MAX_SUBSTITUTIONS} files of {self.files.path} in a row could not be read, the last one '
            f'{record.path}; check data.root and the files'
        )

    def alone(self, work: Work) -> Sample:
        """Reads for one attempt again, unguarded."""
        part, index, rng = self._draw(work.number, work.attempt)
        return self._recipe(part)(self.files.records[index], rng)


@dataclasses.dataclass(frozen=True)
class EvalSamples:
    """Sample n of an evaluation set. A file that cannot be read is never replaced: it comes as `valid` = False."""

    files: FileList
    recipe: Recipe
    bad: BadFiles
    empty: Mapping[str, Any]
    limit: float = TIMEOUT

    def __call__(self, number: int) -> Sample:
        """The sample; numbers past the end are padding."""
        index = np.int32(number)
        if number >= len(self.files.records):
            return {**self.empty, 'index': index, 'valid': np.False_}
        # Masks of pretraining losses are drawn here too: the same for every evaluation.
        record, rng, work = self.files.records[number], _generator(0, number), Work(number, 0, number)
        try:
            sample = _read(self.recipe, record, rng, self.bad, work, self.limit)
            return {**sample, 'index': index, 'valid': np.True_}
        except DecodeError:
            return {**self.empty, 'index': index, 'valid': np.False_}

    def alone(self, work: Work) -> Sample:
        """Reads a record again, unguarded."""
        return self.recipe(self.files.records[work.index], _generator(0, work.number))
