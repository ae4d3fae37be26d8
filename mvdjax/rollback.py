"""Steps that are not finite: counted, and after too many in a row undone, with the data that led there passed over."""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mvdjax import processes
from mvdjax.console import say
from mvdjax.data.pipeline import Stream, records_of_step
from mvdjax.errors import UserError
from mvdjax.feed import Feed
from mvdjax.metric_writer import MetricWriter
from mvdjax.place import Place
from mvdjax.saving import Checkpoints
from mvdjax.settings import Run

FILE = 'skipped_data.jsonl'
REMEMBERED = 20_000  # steps; more than lie between two checkpoints that are kept
CAUSES = ('loss', 'gradient', 'update')  # bits 0, 1, 2 of the step's metric 'not_finite'


@dataclasses.dataclass(frozen=True)
class Taken:
    """A step that was taken.

    Attributes:
      step: its number.
      data_step: the number, from 0, that its batch has in the order of the data.
      loss: mean over the batch; NaN if the step was skipped.
      grad_norm: likewise.
      causes: what was not finite; () if the step counts.
    """

    step: int
    data_step: int
    loss: float
    grad_norm: float
    causes: tuple[str, ...]


class Health:
    """What a run's last steps were like. The same on every process: all is read from what the devices agree on."""

    def __init__(self, workdir: str, run: Run, streams: Mapping[str, Stream], place: Place) -> None:
        """`place` is where the run starts."""
        self._file, self._run, self._streams = os.path.join(workdir, FILE), run, streams
        self.place = place
        self.streak = place.streak
        self._taken: collections.deque[Taken] = collections.deque(maxlen=REMEMBERED)
        self._bad = (0, 0)  # first and last step of a streak that was too long
        self._returned: int | None = None  # the checkpoint that was last gone back to

    def diverged(self, last: int, fetched: Sequence[Mapping[str, Any]]) -> bool:
        """Takes note of steps up to `last`, by their metrics. Returns whether too many in a row were not finite."""
        found = False
        for step, values in zip(range(last - len(fetched) + 1, last + 1), fetched, strict=True):
            causes = tuple(c for i, c in enumerate(CAUSES) if int(values['not_finite'][0]) >> i & 1)
            loss, norm = (float(s) / float(c) if c else math.nan for s, c in (values['loss'], values['grad_norm']))
            self._taken.append(Taken(step, step + self.place.offset - 1, loss, norm, causes))
            self.streak = self.streak + 1 if causes else 0
            if self.streak >= self._run.max_skipped:
                found, self._bad = True, (step - self.streak + 1, step)
        return found

    def here(self, step: int, files: Mapping[str, Any], owes_evaluation: bool) -> Place:
        """The place after a step that `diverged` has taken note of, see `Place`."""
        return Place(step, self.place.offset, self.place.rollbacks, self.streak, files, owes_evaluation)

    def go_back(self, saved: Checkpoints, feed: Feed, writer: MetricWriter, steps: int) -> Place:
        """Where to go on from: an earlier checkpoint, past the data of all the steps since.

        Steps that are not finite change nothing, so as many in a row mean that the parameters, not these batches, are
        beyond help. Therefore the checkpoint is older than the first of them, a second time than the one before, and
        no batch since is seen again.

        Args:
          saved: the run's checkpoints; later ones are set aside.
          feed: of the run, which goes on with later data.
          writer: of the run, which takes back what was written since.
          steps: the run's last step.

        Raises:
          UserError: it was done `run.max_rollbacks` times; the message is the report.
        """
        first, last_bad = self._bad
        number = self.place.rollbacks + 1
        if processes.is_main():
            earlier = [s for s in saved.steps() if s < first]
            if earlier and earlier[-1] == self._returned:
                earlier.pop()
            target = earlier[-1] if earlier else 0
        else:
            target = 0
        target = processes.broadcast(target, 'rollback')
        if processes.is_main():
            self._write(number, target)
        bad = [taken for taken in self._taken if first <= taken.step <= last_bad]
        names = ', '.join(c for c in CAUSES if any(c in taken.causes for taken in bad))
        what = f'{last_bad - first + 1} steps in a row, {first} to {last_bad}, were not finite ({names})'
        if number > self._run.max_rollbacks:
            before = [f'{t.grad_norm:.3g}' for t in self._taken if t.step < first and not t.causes][-5:]
            raise UserError(
                f'{what}, after {self.place.rollbacks} rollbacks (run.max_rollbacks); gradient norms before: '
                f'{", ".join(before) or "none"}; the files of these steps are in {self._file}. Lower the rate, clip '
                'gradients (optim.clip_norm) or compute in float32, and start again from an earlier checkpoint'
            )
        last = self._taken[-1].step
        saved.set_aside(after=target)
        say(
            f'WARNING: {what}: back to step {target}, and on with other data (rollback {number} of at most '
            f'{self._run.max_rollbacks}); what is passed over is listed in {self._file}'
        )
        self._returned = target
        self.streak = 0
        self.place = Place(target, last + self.place.offset - target, number, 0, feed.totals())
        while self._taken and self._taken[-1].step > target:
            self._taken.pop()
        feed.seek(self.place, steps)
        writer.rewind(target)
        return self.place

    def _write(self, number: int, target: int) -> None:
        """One line for each step whose data is passed over; those that a resumed run writes again stand once."""
        kept = []
        if os.path.exists(self._file):
            with open(self._file, encoding='utf-8') as file:
                kept = [line for line in file if line.endswith('}\n') and json.loads(line)['rollback'] < number]
        with open(self._file + '.tmp', 'w', encoding='utf-8') as file:
            file.writelines(kept)
            file.writelines(json.dumps(line) + '\n' for line in self._lines(number, target))
        os.replace(self._file + '.tmp', self._file)

    def _lines(self, number: int, target: int) -> Iterator[dict[str, Any]]:
        for taken in self._taken:
            if taken.step <= target:
                continue
            records = records_of_step(self._streams, seed=self._run.seed, step=taken.data_step)
            yield {
                'rollback': number,
                'step': taken.step,
                'data_step': taken.data_step,
                'not_finite': list(taken.causes),
                'loss': None if taken.causes else taken.loss,
                'grad_norm': None if taken.causes else taken.grad_norm,
                'lines': {name: [r.line for r in found] for name, found in records.items()},
                **({'files': {n: [r.path for r in f] for n, f in records.items()}} if taken.causes else {}),
            }
