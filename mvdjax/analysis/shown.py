"""The samples that training or an evaluation makes of a config, each with the file it is of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from mvdjax import config as configs
from mvdjax.data.order import named_seed
from mvdjax.data.pipeline import BadFiles, Data, TrainSamples, empty_sample, eval_batches, train_batches
from mvdjax.data.schema import SUBSTITUTED, FileList, Recipe, Record, Sample
from mvdjax.errors import UserError
from mvdjax.evaluate import EvalSet, eval_set
from mvdjax.settings import Run

TRAIN = 'train'
_RECORD = 'record'  # of a sample: the record it was made of
_RECORD_BYTES = 65536  # twelve, as JSON may need, for each of the 4096 that a path may have, and some


@dataclasses.dataclass(frozen=True)
class Shown:
    """A row of a batch.

    Attributes:
      record: what it shows; None of padding and of a file that cannot be read.
      view: which view of that file, from 0.
      arrays: the row, by the names of `data.schema`.
    """

    record: Record | None
    view: int
    arrays: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ShownSet:
    """Rows of a batch of a config.

    Attributes:
      data: the data section.
      files: its list.
      rows: in their order in the batch.
      batch: files in the whole batch.
      seed: of the stream's order and draws; None of an evaluation, which draws the same every time.
    """

    data: Data
    files: FileList
    rows: tuple[Shown, ...]
    batch: int
    seed: int | None


@dataclasses.dataclass(frozen=True)
class _NamingRecipe:
    """Another recipe, whose samples also say what they are of."""

    recipe: Recipe

    @property
    def views(self) -> int:
        """The other's."""
        return self.recipe.views

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """The other's sample with `record`, uint8 (_RECORD_BYTES,): JSON, padded with zeros."""
        name = json.dumps([record.path, record.label, record.line])
        if len(name.encode()) > _RECORD_BYTES:
            raise UserError(f'line {record.line} of the list has a path of {len(record.path)} characters, too long')
        return self._named(self.recipe(record, rng), name)

    def blank(self) -> Sample:
        """The other's, of no file."""
        return self._named(self.recipe.blank(), '')

    def _named(self, sample: Sample, name: str) -> Sample:
        text = np.frombuffer(name.encode(), np.uint8)
        row = np.zeros(_RECORD_BYTES, np.uint8)
        row[: len(text)] = text
        return {**sample, _RECORD: row if self.views == 1 else np.stack([row] * self.views)}


@dataclasses.dataclass(frozen=True)
class _NamingData(Data):
    """A data section like any other, but for its recipes."""

    def make(self) -> Recipe:
        """The recipe."""
        return _NamingRecipe(super().make())

    def samples(self, files: FileList, seed: int, bad: BadFiles) -> TrainSamples:
        """The training stream."""
        samples = super().samples(files, seed, bad)
        return dataclasses.replace(samples, recipes=tuple(_NamingRecipe(recipe) for recipe in samples.recipes))


def read_rows(config: ml_collections.ConfigDict, name: str, count: int, step: int) -> ShownSet:
    """The first rows of a batch, from the pipeline that training or evaluation reads.

    Only these rows are made: a process of a run on many hosts would make no others.

    Args:
      config: a locked config.
      name: 'train' (config.data), or a name in config.streams or config.evals.
      count: files to show, each with all its views; as many as a batch has, if it has fewer.
      step: which training step (from 0: the first); of an evaluation, which group of `count` files.

    Raises:
      UserError: no such set, no such step, or data that cannot be read.
    """
    if count < 1 or step < 0:
        raise UserError(f'--count must be at least 1 and --step at least 0, not {count} and {step}')
    run: Run = configs.build(Run, configs.section(config, 'run'), 'run')
    beside = configs.side_streams(config)
    if name in (TRAIN, *beside):
        section = beside[name].data if name in beside else configs.section(config, 'data')
        data = _naming(configs.build(Data, section, 'data'))
        batch = beside[name].batch if name in beside else run.global_batch
        stream = name if name in beside else run.stream
        seed = named_seed(run.seed, stream) if beside else run.seed  # as `pipeline.train_streams`
        return _train_rows(data, batch, seed, count, step)
    return _eval_rows(eval_set(config, name), count, step)


def _train_rows(data: Data, batch: int, seed: int, count: int, step: int) -> ShownSet:
    """Rows of a training step."""
    files = data.read()
    count = min(count, batch)
    local = next(rows for rows in range(count, batch + 1) if batch % rows == 0)
    batches = train_batches(
        data,
        files,
        seed=seed,
        global_batch=batch,
        start_step=step,
        steps=step + 1,
        bad=BadFiles(None),
        of=batch // local,
    )
    views = data.make().views
    return ShownSet(data, files, tuple(_rows(next(batches), views))[: count * views], batch, seed)


def _eval_rows(spec: EvalSet, count: int, step: int) -> ShownSet:
    """Rows of an evaluation."""
    data = _naming(spec.make_data())
    files = data.read()
    if step * count >= len(files.records):
        raise UserError(f'{files.path} has {len(files.records)} files, no group {step} of {count}: lower --step')
    batches = eval_batches(
        data,
        files,
        batch=count * (step + 1),
        empty=empty_sample(data, files),
        bad=BadFiles(None),
        parts=(step,),
        of=step + 1,
    )
    rows = tuple(_rows(next(batches), 1))
    return ShownSet(data, files, rows[: len(files.records) - step * count], spec.batch, None)


def _naming(data: Data) -> Data:
    """The section with naming recipes; read by threads of this process, which changes no sample."""
    values = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return _NamingData(**{**values, 'workers': 0})


def _rows(batch: Sample, views: int) -> Iterator[Shown]:
    """A batch, row by row."""
    for number in range(len(batch[_RECORD])):
        row = {name: np.asarray(values[number]) for name, values in batch.items()}
        text = row.pop(_RECORD).tobytes().rstrip(b'\0')
        yield Shown(Record(*json.loads(text)) if text else None, number % views, row)


def describe(shown: Shown, files: FileList) -> dict[str, Any]:
    """What there is to say of a row: path, line, label, class name, what was substituted, erased and masked."""
    record, arrays = shown.record, shown.arrays
    names = files.class_names
    values: dict[str, Any] = {'view': shown.view}
    if record is None:
        return {**values, 'path': None, 'index': int(arrays['index'])}
    values |= {'path': record.path, 'line': record.line, 'label': record.label}
    if 0 <= record.label < len(names):
        values['class'] = names[record.label]
    if SUBSTITUTED in arrays:
        values['substituted'] = int(arrays[SUBSTITUTED])
    if 'erase' in arrays:
        values['erase'] = arrays['erase'].tolist()
    if 'mask' in arrays:
        values |= {'masked': int(arrays['mask'].sum()), 'tokens': int(arrays['mask'].size)}
    return values
