"""A run as its folder tells it: metrics, the newest checkpoint's description, test results. Nothing is computed."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mvdjax import checkpoints
from mvdjax.errors import UserError
from mvdjax.metric_writer import FILE, read_metrics

TRAIN = 'train'


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What is known of a run.

    Attributes:
      name: for titles and file names; different for every run of a report.
      workdir: its folder.
      records: the lines of metrics.jsonl.
      meta: the newest checkpoint's `meta`, or None before the first checkpoint.
      results: results.json, or None.
    """

    name: str
    workdir: str
    records: Sequence[Mapping[str, Any]]
    meta: Mapping[str, Any] | None
    results: Mapping[str, Any] | None

    @property
    def task(self) -> str:
        """The task's name, or '' before the first checkpoint."""
        return self.meta['config']['task_name'] if self.meta else ''

    @property
    def step(self) -> int:
        """The last step that metrics or checkpoint tell of."""
        last = [r['step'] for r in self.records[-1:]] + ([self.meta['step']] if self.meta else [])
        return max(last)

    @property
    def progress(self) -> str:
        """'step 1000 (epoch 20 of 40)', as far as it is known."""
        text = f'step {self.step}'
        epochs = self.meta['config']['run']['epochs'] if self.meta else None
        trained = self.last(TRAIN)
        if trained:
            text += f' (epoch {trained["epoch"]:.4g}' + (f' of {epochs:g})' if epochs else ')')
        return text

    @property
    def sets(self) -> list[str]:
        """The evaluation sets that have records, in order of appearance."""
        return [kind for kind in dict.fromkeys(r['kind'] for r in self.records) if kind != TRAIN]

    def series(self, kind: str, metric: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a metric, without the values that are not finite."""
        pairs = [(r['step'], r[metric]) for r in self.records if r['kind'] == kind and metric in r]
        finite = [(step, value) for step, value in pairs if math.isfinite(value)]
        return [step for step, _ in finite], [value for _, value in finite]

    def last(self, kind: str) -> dict[str, float]:
        """The last record of a kind without its kind, or {}."""
        found = [r for r in self.records if r['kind'] == kind]
        return {k: v for k, v in found[-1].items() if k != 'kind'} if found else {}


def read_runs(workdirs: Sequence[str]) -> list[TrainedRun]:
    """Reads run folders; each run is named after its folder, repeated names get a number.

    Raises:
      UserError: a folder that holds no run, or a damaged file in one.
    """
    runs: list[TrainedRun] = []
    for workdir in workdirs:
        base = os.path.basename(os.path.abspath(workdir))
        taken = {run.name for run in runs}
        name = next(n for n in (base, *(f'{base}-{i}' for i in range(2, len(runs) + 3))) if n not in taken)
        runs.append(_read_run(workdir, name))
    return runs


def _read_run(workdir: str, name: str) -> TrainedRun:
    try:
        records = read_metrics(workdir)
    except ValueError as error:
        raise UserError(f'{os.path.join(workdir, FILE)} is damaged ({error}): repair or remove the line') from error
    try:
        meta = checkpoints.read_meta(workdir)
    except UserError:
        if os.path.isdir(workdir) and records:
            meta = None  # a run that has not saved yet
        else:
            raise UserError(
                f'{workdir} holds neither metrics nor checkpoints: give the --workdir of a `mvdjax train` run'
            ) from None
    return TrainedRun(name, workdir, records, meta, _read_results(os.path.join(workdir, 'results.json')))


def _read_results(path: str) -> dict[str, Any] | None:
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}): run `mvdjax evaluate` again') from error
