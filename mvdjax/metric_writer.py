"""Metrics of a run: `metrics.jsonl` always, TensorBoard beside it, both written by process 0."""

import json
import os
from collections.abc import Mapping

from tensorboardX import SummaryWriter

from mvdjax import processes

FILE = 'metrics.jsonl'


class MetricWriter:
    """Appends records; a context manager.

    A resumed run takes back what was logged after the checkpoint it starts from, so that every step stands once.
    """

    def __init__(self, workdir: str, start_step: int) -> None:
        """Opens the files of a workdir for a run that continues after `start_step`."""
        self._active = processes.is_main()
        self._workdir = workdir
        if self._active:
            self._open(start_step)

    def _open(self, start_step: int) -> None:
        path = os.path.join(self._workdir, FILE)
        kept = [record for record in read_metrics(self._workdir) if record['step'] <= start_step]
        with open(path + '.tmp', 'w', encoding='utf-8') as file:
            file.writelines(json.dumps(record) + '\n' for record in kept)
        os.replace(path + '.tmp', path)
        self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115 - closed in __exit__
        self._board = SummaryWriter(os.path.join(self._workdir, 'tensorboard'), purge_step=start_step + 1)

    def rewind(self, step: int) -> None:
        """Takes back what was logged after a step: the run goes on from there."""
        if self._active:
            self.__exit__()
            self._open(step)

    def __enter__(self) -> 'MetricWriter':
        """Self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the files."""
        if self._active:
            self._file.close()
            self._board.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One record: {'step': ..., 'kind': 'train' or an evaluation set, name: number}."""
        if not self._active:
            return
        self._file.write(json.dumps({'step': step, 'kind': kind, **values}) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f'{kind}/{name}', value, step)


def read_metrics(workdir: str) -> list[dict]:
    """The records of a workdir in order; a last line cut short by a crash is dropped."""
    path = os.path.join(workdir, FILE)
    if not os.path.exists(path):
        return []
    records = []
    with open(path, encoding='utf-8') as file:
        for line in file:
            if line.endswith('\n'):
                records.append(json.loads(line))
    return records
