"""How a run saves, keeps and restores its checkpoints: none is lost, whatever happens at whatever moment."""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from mvdjax import checkpoints, fingerprints, integrity, processes, sharding, trees
from mvdjax.console import say
from mvdjax.errors import UserError
from mvdjax.saves import SaveLog
from mvdjax.train_state import TrainState

DAMAGED, ABANDONED = 'damaged-', 'abandoned-'  # what a step is renamed to that is not used any more
DELETED = 'deleted-'  # and one of which files are being removed
TEMPORARY = '.orbax-checkpoint-tmp'
SAVE_LIMIT = 3600  # seconds that writing and reading back may take
_NONE, _ALL_DAMAGED = -1, -2


class Checkpoints:
    """The checkpoints of one run, saved asynchronously; a context manager that waits for the last save.

    A save is written under a temporary name, read back and compared with what the devices hold, and only then given
    its name: a step that can be seen is a step that can be restored.
    """

    def __init__(self, workdir: str, keep: int, keep_every: int = 0) -> None:
        """Opens (and makes) the checkpoint folder of a workdir.

        Args:
          workdir: of the run.
          keep: newest checkpoints kept; older ones are deleted if this run has made them.
          keep_every: those whose step divides by it are kept for good; 0 for none.
        """
        self.folder = epath.Path(workdir).resolve() / checkpoints.FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep, self._keep_every = keep, keep_every
        self._made = SaveLog(workdir)
        self._newest: int | None = None  # that was found or saved here
        self._searched = False
        self._expected: tuple[int, fingerprints.Table] | None = None  # step and fingerprints of the save under way
        options = ocp.options.AsyncOptions(timeout_secs=SAVE_LIMIT, post_finalization_callback=self._before_commit)
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

    def __enter__(self) -> 'Checkpoints':
        """Self."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the last save and closes. What went wrong with it is told, unless something else has before."""
        try:
            self.wait()
        except UserError:
            if kind is None:
                raise
        finally:
            with contextlib.suppress(Exception):  # it waits once more, for what has just been told
                self._writer.close()

    def latest(self) -> int | None:
        """The newest step that is whole, or None. What is damaged is set aside, loudly.

        Process 0 looks and the others are told: a file that only one of them cannot read must not part them.

        Raises:
          UserError: the checkpoint is a converted one, which no run can go on from, or all there are are damaged.
        """
        if not self._searched:
            found = int(processes.broadcast(self._search() if processes.is_main() else 0, 'newest checkpoint'))
            if found == _ALL_DAMAGED:
                raise UserError(
                    f'every checkpoint in {self.folder} is damaged, and none is left to resume from: put back a copy '
                    f'of one (mvdjax ckpt copy), or remove {self.folder}/{DAMAGED}* to start from scratch'
                )
            self._newest = None if found == _NONE else found
            self._searched = True
        if self._newest == 0:
            raise UserError(
                f'{self.folder} holds converted weights, not a run: give their workdir as init.checkpoint '
                'and the run a workdir of its own'
            )
        return self._newest

    def latest_meta(self) -> dict[str, Any] | None:
        """The meta of the newest step that is whole, or None."""
        step = self.latest()
        return None if step is None else checkpoints.read_meta(str(self.folder / str(step)))

    def _search(self) -> int:
        """The newest step that is whole, on process 0."""
        for half in self.folder.glob(f'*{TEMPORARY}*'):
            if half.name.split('.')[0].isdigit() and int(half.name.split('.')[0]) in self._made:
                half.rmtree()  # of a save that was cut short; others' are not ours to judge
        self._remove_deleted()
        for step in sorted(self.steps(), reverse=True):
            problem = integrity.check(self.folder / str(step))
            if problem is None:
                return step
            aside = self._rename(step, DAMAGED)
            say(f'WARNING: checkpoint {self.folder / str(step)} is damaged ({problem}): set aside as {aside.name}')
        return _ALL_DAMAGED if any(self.folder.glob(f'{DAMAGED}*')) else _NONE

    def steps(self) -> list[int]:
        """The steps there are, in order."""
        return checkpoints.step_numbers(self.folder)

    def set_aside(self, after: int) -> None:
        """Renames the checkpoints of later steps, which a run that goes back will not pass in the same way."""
        self.wait()
        if processes.is_main():
            for step in self.steps():
                if step > after:
                    say(f'checkpoint {step} is set aside as {self._rename(step, ABANDONED).name}')
        processes.barrier('checkpoints set aside')
        self._newest = after or None

    def _rename(self, step: int, prefix: str) -> epath.Path:
        number = 1
        while (target := self.folder / f'{prefix}{step}{f"-{number}" if number > 1 else ""}').exists():
            number += 1
        return (self.folder / str(step)).rename(target)

    def rehearse(self, state: TrainState) -> None:
        """Compiles what a save computes, so that nothing compiles once the run has started."""
        fingerprints.table(_arrays(state))

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts saving; returns once the state may be donated. The step that was saved last is left alone.

        Raises:
          UserError: an earlier save failed, or the disk is full.
        """
        step = int(state.step)
        if step == self._newest:
            return
        arrays = _arrays(state)
        with self._told(step):
            self._writer.wait_until_finished()
            self._expected = step, fingerprints.table(arrays)
            if processes.is_main():
                self._made.begin(step)
            items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
            items['meta'] = ocp.args.JsonSave(dict(meta))
            items[integrity.FINGERPRINTS] = ocp.args.JsonSave(self._expected[1])
            self._writer.save(self.folder / str(step), args=ocp.args.Composite(**items))
            self._newest = step

    def check(self) -> None:
        """Says if a save has failed since.

        Raises:
          UserError: it has; the run must not go on as if it could be resumed.
        """
        with self._told(self._newest):
            self._writer.check_for_errors()

    def wait(self) -> None:
        """Blocks until every save is committed, and deletes what need not be kept.

        Raises:
          UserError: a save has failed.
        """
        with self._told(self._newest):
            self._writer.wait_until_finished()
            if processes.is_main():
                self._delete_old()

    @contextlib.contextmanager
    def _told(self, step: int | None) -> Iterator[None]:
        """Whatever goes wrong with a save, as a sentence; its files are removed, since the disk may be full."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # the devices, or another process that is gone: nothing that storage has to do with
        except Exception as error:
            if isinstance(error.__cause__, jax.errors.JaxRuntimeError):  # Orbax calls a lost process a time-out
                raise error.__cause__ from error
            if processes.is_main():
                for _ in range(20):  # a writing thread of Orbax's may still be adding to it
                    halves = list(self.folder.glob(f'{step}{TEMPORARY}*'))
                    for half in halves:
                        shutil.rmtree(half, ignore_errors=True)
                    if not halves:
                        break
                    time.sleep(0.1)
            raise UserError(
                f'saving step {step} to {self.folder} failed ({checkpoints.first_line(error)}); earlier checkpoints '
                'are untouched. Free space or fix the permissions and start the same command again'
            ) from error

    def _before_commit(self) -> None:
        """On process 0, in the background: reads back what was written, before it gets its name.

        Raises:
          OSError: it is not what was saved.
        """
        assert self._expected is not None
        step, expected = self._expected
        self._delete_old()  # all that is named is whole, so there are `keep` beside the one that is on its way
        (folder,) = self.folder.glob(f'{step}{TEMPORARY}*')
        if problem := integrity.check_arrays(folder, expected):
            raise OSError(f'what was read back is not what was saved: {problem}')
        integrity.write_record(folder)

    def _delete_old(self) -> None:
        for step in self.steps()[: -self._keep]:
            kept = self._keep_every and step % self._keep_every == 0
            if step in self._made and not kept:
                with contextlib.suppress(OSError):  # another time
                    self._rename(step, DELETED)  # a kill amid its files must not leave half a step with a name
        self._remove_deleted()

    def _remove_deleted(self) -> None:
        for gone in self.folder.glob(f'{DELETED}*'):
            number = gone.name.removeprefix(DELETED).split('-')[0]
            if number.isdigit() and int(number) in self._made:
                with contextlib.suppress(OSError):
                    gone.rmtree()

    def restore(self, step: int, abstract: TrainState, mesh: Mesh) -> TrainState:
        """The state of a step, placed on `mesh` whatever mesh saved it.

        Raises:
          UserError: the checkpoint is of another model or optimizer, or damaged.
        """
        self._check_fits(step, abstract.params)
        placed = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            abstract,
            sharding.tree_sharding(abstract, mesh),
        )
        items = {name: ocp.args.StandardRestore(tree) for name, tree in _arrays(placed).items()}
        try:
            found = self._writer.restore(self.folder / str(step), args=ocp.args.Composite(**items))
        except Exception as error:
            raise UserError(
                f'step {step} in {self.folder} cannot be resumed with this config '
                f'({checkpoints.first_line(error)}); restore the config that wrote it, or use a new workdir'
            ) from error
        self._compare(step, found)
        train = found['train']
        ema = found['ema'] if abstract.ema is not None else None
        return TrainState(train['step'], train['skipped'], found['params'], train['opt_state'], ema)

    def _compare(self, step: int, found: Mapping[str, Any]) -> None:
        """Refuses arrays that are not what was saved, wherever on their way that happened."""
        stored = integrity.stored_fingerprints(self.folder / str(step))
        if stored is None:
            return
        restored = fingerprints.table(found)
        wrong = [f'{n}/{k}' for n, leaves in restored.items() for k, x in leaves.items() if stored[n].get(k) != x]
        if wrong:
            raise UserError(
                f'step {step} in {self.folder} was restored with other values than were saved ({wrong[0]}'
                f'{f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""}), though its files are whole: suspect the '
                'memory of this machine, and start the same command again'
            )

    def _check_fits(self, step: int, params: Any) -> None:
        """Refuses another model before Orbax reads: a read that fails half-way leaves tracebacks on stderr."""
        stored = checkpoints.stored_shapes(self.folder / str(step) / 'params')
        wanted = {name: tuple(leaf.shape) for name, leaf in trees.flatten(params).items()}
        names = [name for name in sorted(stored.keys() | wanted.keys()) if stored.get(name) != wanted.get(name)]
        if names:
            shown = [f'{n} is {stored.get(n, "missing")}, expected {wanted.get(n, "nothing")}' for n in names[:3]]
            raise UserError(
                f'step {step} in {self.folder} cannot be resumed with this config: {"; ".join(shown)}'
                f'{" ..." if len(names) > 3 else ""}; restore the config that wrote it, or use a new workdir'
            )


def _arrays(state: TrainState) -> dict[str, Any]:
    """The items of a state's checkpoint that hold arrays."""
    train = {'step': state.step, 'skipped': state.skipped, 'opt_state': state.opt_state}
    items = {'params': state.params, 'train': train, 'ema': state.ema}
    return {name: tree for name, tree in items.items() if tree is not None}


class SaveTimer:
    """Saves by the clock."""

    def __init__(self, minutes: float) -> None:
        """`minutes` between two saves; 0 for none by the clock."""
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """A checkpoint is saved now."""
        self._start = time.monotonic()

    def due(self, ask: bool) -> bool:
        """Whether it is time.

        Args:
          ask: with several processes, process 0's clock counts, and the others are told only when this is set: at
            lines of metrics, where all wait for each other anyway.
        """
        late = 0 < self._seconds <= time.monotonic() - self._start
        if processes.count() == 1:
            return late
        return bool(self._seconds and ask and processes.broadcast(late, 'time to save'))
