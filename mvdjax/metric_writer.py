"""Metrics of a run, written by process 0: `metrics.jsonl` and TensorBoard always, Weights & Biases where asked for.

Each line of `metrics.jsonl` is JSON; a number that is not finite stands there as "NaN", "Infinity" or "-Infinity".
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mvdjax import processes, wandb_run
from mvdjax.errors import UserError
from mvdjax.event_file import EventFile

FILE = 'metrics.jsonl'
_NO_NUMBERS = ('NaN', 'Infinity', '-Infinity')


class MetricWriter:
    """Appends records; a context manager.

    A resumed run takes back what was logged after the checkpoint it starts from, so that every step stands once. A run
    whose `metrics.jsonl` cannot be written stops; without TensorBoard it goes on.
    """

    def __init__(
        self, workdir: str, start_step: int, project: str = '', config: Mapping[str, Any] | None = None
    ) -> None:
        """Opens the files of a workdir for a run that continues after `start_step`.

        Args:
          workdir: the run's.
          start_step: lines of later steps are taken back.
          project: Weights & Biases project to report to as well; '' for none.
          config: what that project shows as the run's configuration.

        Raises:
          UserError: Weights & Biases is not installed, or does not start, or the workdir cannot be written.
        """
        self._active = processes.is_main()
        self._workdir = workdir
        if self._active:
            self._open(start_step)
            self._wandb = wandb_run.start(workdir, project, config or {}, resumed=start_step > 0) if project else None

    def _open(self, start_step: int) -> None:
        path = os.path.join(self._workdir, FILE)
        with self._told():
            kept = [record for record in read_metrics(self._workdir) if record['step'] <= start_step]
            with open(path + '.tmp', 'w', encoding='utf-8') as file:
                file.writelines(_line(record) for record in kept)
            os.replace(path + '.tmp', path)
            self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115 - closed in _close
        self._board = EventFile(self._workdir, start_step)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever goes wrong with `metrics.jsonl`, as a sentence."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f'{os.path.join(self._workdir, FILE)} cannot be written ({error.strerror}); checkpoints are untouched. '
                'Free space or fix the permissions and start the same command again'
            ) from error

    def rewind(self, step: int) -> None:
        """Takes back what was logged after a step: the run goes on from there."""
        if self._active:
            self._close()
            self._open(step)

    def _close(self) -> None:
        self._board.close()
        with self._told():
            self._file.close()

    def __enter__(self) -> 'MetricWriter':
        """Self."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes the files. What goes wrong with that is told, unless something else has before."""
        if self._active:
            try:
                self._close()
            except UserError:
                if kind is None:
                    raise
            finally:
                if self._wandb is not None:
                    self._wandb.finish()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One record: {'step': ..., 'kind': 'train' or an evaluation set, name: number}.

        Raises:
          UserError: it cannot be written.
        """
        if not self._active:
            return
        with self._told():
            self._file.write(_line({'step': step, 'kind': kind, **values}))
            self._file.flush()
        named = {f'{kind}/{name}': value for name, value in values.items()}
        self._board.write(step, named)
        if self._wandb is not None:
            self._wandb.log({'step': step, **named})


def read_metrics(workdir: str) -> list[dict]:
    """The records of a workdir in order; a last line cut short by a crash is dropped."""
    path = os.path.join(workdir, FILE)
    if not os.path.exists(path):
        return []
    records = []
    with open(path, encoding='utf-8') as file:
        for line in file:
            if line.endswith('\n'):
                record = json.loads(line)
                records.append({k: float(v) if v in _NO_NUMBERS else v for k, v in record.items()})
    return records


def _line(record: Mapping[str, Any]) -> str:
    """A record as JSON, which has no word for numbers that are not finite: they are written as strings."""
    finite = {k: v if isinstance(v, str) or math.isfinite(v) else _name(v) for k, v in record.items()}
    return json.dumps(finite, allow_nan=False) + '\n'


def _name(value: float) -> str:
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
