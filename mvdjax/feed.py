"""What a run trains on: its stream or streams of batches, the budget of unreadable files, and the wait for data."""

import dataclasses
import os
from collections.abc import Callable, Generator, Mapping
from typing import Any

import ml_collections
from jax.sharding import Mesh

from mvdjax import config as configs
from mvdjax import processes, topology
from mvdjax.data.mixing import parts_of
from mvdjax.data.pipeline import BadFiles, Data, Stream, merge_bad_files, train_batches, train_streams
from mvdjax.data.schema import SUBSTITUTED, Sample
from mvdjax.data.sources import FileList, fingerprint
from mvdjax.errors import UserError
from mvdjax.place import Place
from mvdjax.settings import Run
from mvdjax.window import Window

BAD_FILES = 'bad_videos.jsonl'
ENOUGH = 100  # files tried before their share of unreadable ones means anything


def read_streams(
    config: ml_collections.ConfigDict, run: Run, read: Callable[[Data], FileList] = Data.read
) -> dict[str, Stream]:
    """The streams of a config by name, lists read: `data`, in which epochs are counted, first, then those beside it.

    Args:
      config: a loaded config.
      run: its run section.
      read: how to read a list; a plan needs none.

    Raises:
      UserError: as reading a list does, or two streams of one name.
    """
    data: Data = configs.build(Data, configs.section(config, 'data'), 'data')
    streams = {run.stream: Stream(data, read(data), run.global_batch)}
    for name, section in configs.side_streams(config).items():
        if name in streams:
            raise UserError(f'config.streams.{name} has the name of config.data: change it, or run.stream')
        beside: Data = configs.build(Data, section.data, f'streams.{name}.data')
        streams[name] = Stream(beside, read(beside), section.batch)
    return streams


def list_marks(streams: Mapping[str, Stream]) -> dict[str, dict[str, Any]]:
    """What tells the lists of a run from others, as JSON: of each stream, or of each source 'stream/source'."""
    marks = {}
    for name, stream in streams.items():
        for part in parts_of(stream.files):
            records = stream.files.records[part.start : part.stop]
            key = f'{name}/{part.name}' if part.name else name
            marks[key] = {'records': len(records), 'hash': fingerprint(records)}
    return marks


def check_same_lists(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], workdir: str
) -> None:
    """Refuses to resume a run on other lists: what comes when is a function of their length and order.

    Args:
      before: `list_marks` when the checkpoint was written; {} if it is older than these.
      now: those of the config.
      workdir: the run's, for the message.

    Raises:
      UserError: a list differs.
    """
    for name, mark in now.items():
        old = before.get(name, mark)
        if old != mark:
            how = (
                ', but other ones, or in another order or with other labels'
                if old['records'] == mark['records']
                else ''
            )
            raise UserError(
                f'the run in {workdir} cannot be resumed: its list {name} had {old["records"]} files and has '
                f'{mark["records"]} now{how}; restore the list, or start a new workdir'
            )


def rows_per_record(streams: Mapping[str, Stream]) -> Any:
    """Rows that each record gives: a number, or {stream: number} where batches have sub-dicts."""
    found = {name: stream.data.make().views for name, stream in streams.items()}
    return found if len(found) > 1 else next(iter(found.values()))


def main_part(batch: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The part of a batch in which epochs are counted: its sub-dict of that name, or all of a flat batch."""
    return batch[name] if isinstance(batch.get(name), Mapping) else batch


@dataclasses.dataclass
class Budget:
    """The unreadable files of a stream.

    Attributes:
      views: rows per record.
      limit: share of unreadable files tried above which training stops.
      files: the list, for the message.
      bad_file: the record, likewise.
      tried: files so far.
      failed: unreadable ones among them.
    """

    views: int
    limit: float
    files: str
    bad_file: str
    tried: int = 0
    failed: int = 0

    def count(self, batch: Sample) -> int:
        """Counts a batch, and removes its count from it.

        Returns:
          How many files could not be read.

        Raises:
          UserError: too many by now.
        """
        failed = int(batch.pop(SUBSTITUTED).sum())
        self.failed += failed
        self.tried += failed + len(next(iter(batch.values()))) // self.views
        if self.tried >= ENOUGH and self.failed > self.limit * self.tried:
            raise UserError(
                f'{self.failed} of {self.tried} files tried from {self.files} could not be read, more than '
                f'data.max_bad_fraction {self.limit:g}; see {self.bad_file}, repair the files or raise the limit'
            )
        return failed


class Feed:
    """The training batches, with the budgets of bad files and the time spent waiting for data."""

    def __init__(
        self,
        batches: Generator[Any, None, None],
        budgets: Mapping[str, Budget],
        open_at: Callable[[int, int], Generator[Any, None, None]] | None = None,
    ) -> None:
        """`budgets` by stream; batches of one stream are flat. `open_at(start, steps)` makes other batches."""
        self._batches, self._budgets, self._open_at = batches, budgets, open_at
        self._base = self._before = self.counts()

    def __call__(self, window: Window) -> Any:
        """The next batch, counted in `window`."""
        with window.losing('data'):
            batch = next(self._batches)
        self._before = self.counts()
        parts = batch if len(self._budgets) > 1 else dict.fromkeys(self._budgets, batch)
        for name, budget in self._budgets.items():
            window.substituted += budget.count(parts[name])
        return batch

    def seek(self, place: Place, steps: int) -> None:
        """Goes on with the batches from another place to the run's last step."""
        assert self._open_at is not None
        self.close()
        self._batches = self._open_at(place.step + place.offset, steps + place.offset)

    def close(self) -> None:
        """Ends the workers, which would else live on as long as the process, and complain when it ends."""
        self._batches.close()

    def totals(self, ahead: bool = False) -> dict[str, list[int]]:
        """`counts` over all processes, all of which must call it."""
        now = self.counts(ahead)
        mine = {name: [n - b for n, b in zip(now[name], base, strict=True)] for name, base in self._base.items()}
        found = processes.exchange('files read', mine)
        return {
            name: [b + sum(part[name][i] for part in found) for i, b in enumerate(base)]
            for name, base in self._base.items()
        }

    def counts(self, ahead: bool = False) -> dict[str, list[int]]:
        """{stream: [files tried, files that could not be read]}; `ahead`: without the newest batch."""
        return self._before if ahead else {name: [b.tried, b.failed] for name, b in self._budgets.items()}


def open_feed(streams: Mapping[str, Stream], run: Run, workdir: str, place: Place, steps: int, mesh: Mesh) -> Feed:
    """This process's feed of a run from a place on.

    Args:
      streams: see `read_streams`.
      run: the run section.
      workdir: where unreadable files are recorded.
      place: where the run stands.
      steps: the run's last step.
      mesh: that the batches go to.
    """
    parts, of = topology.batch_parts(mesh, processes.index())
    bad_file = os.path.join(workdir, BAD_FILES)
    if processes.is_main():
        merge_bad_files(bad_file)
    processes.barrier('bad files')
    where: dict[str, Any] = {
        'seed': run.seed,
        'bad': BadFiles(bad_file, processes.index()),
        'parts': parts,
        'of': of,
    }

    def open_at(start: int, steps: int) -> Generator[Any, None, None]:
        if len(streams) > 1:
            return train_streams(streams, start_step=start, steps=steps, **where)
        (only,) = streams.values()
        return train_batches(only.data, only.files, global_batch=only.batch, start_step=start, steps=steps, **where)

    budgets = {
        name: Budget(
            s.data.make().views, s.data.max_bad_fraction, s.files.path, bad_file, *place.files.get(name, (0, 0))
        )
        for name, s in streams.items()
    }
    return Feed(open_at(place.step + place.offset, steps + place.offset), budgets, open_at)
