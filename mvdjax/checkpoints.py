"""Checkpoints: Orbax on disk, a strict loader between stages, and one place that decides where a run starts.

A step directory holds the items `params`, `ema` (if the run has one), `train` (step, skipped, optimizer state) and
`meta` (JSON: config, input shape, class names, schema version, data position, where the weights come from and under
what licence). A later stage reads `params` or `ema` alone.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from mvdjax import processes, sharding, trees
from mvdjax.errors import UserError
from mvdjax.train_state import TrainState

SCHEMA_VERSION = 1
FOLDER = 'checkpoints'


class Checkpoints:
    """The checkpoints of one run, saved asynchronously; a context manager that waits for the last save."""

    def __init__(self, workdir: str, keep: int) -> None:
        """Opens (and makes) the checkpoint folder of a workdir; keeps the newest `keep`."""
        self._manager = ocp.CheckpointManager(
            epath.Path(workdir).resolve() / FOLDER,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.LatestN(keep), cleanup_tmp_directories=True
            ),
        )

    def __enter__(self) -> 'Checkpoints':
        """Self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the last save and closes."""
        self._manager.close()

    def latest(self) -> int | None:
        """The newest committed step, or None.

        Raises:
          UserError: the checkpoint is a converted one, which no run can go on from.
        """
        step = self._manager.latest_step()
        if step == 0:
            raise UserError(
                f'{self._manager.directory} holds converted weights, not a run: give their workdir as init.checkpoint '
                'and the run a workdir of its own'
            )
        return step

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts saving; returns once the state may be donated. A step that is already there is left alone.

        Raises:
          UserError: an earlier save failed, or the disk is full.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items: dict[str, Any] = {
            'params': ocp.args.StandardSave(state.params),
            'train': ocp.args.StandardSave(_train_item(state)),
            'meta': ocp.args.JsonSave(dict(meta)),
        }
        if state.ema is not None:
            items['ema'] = ocp.args.StandardSave(state.ema)
        try:
            self._manager.check_for_errors()
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f'saving step {step} to {self._manager.directory} failed ({error}); earlier checkpoints are untouched. '
                'Free space or fix the permissions and start the same command again'
            ) from error

    def wait(self) -> None:
        """Blocks until every save is committed."""
        self._manager.wait_until_finished()

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
        items = {
            'params': ocp.args.StandardRestore(placed.params),
            'train': ocp.args.StandardRestore(_train_item(placed)),
        }
        if abstract.ema is not None:
            items['ema'] = ocp.args.StandardRestore(placed.ema)
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise UserError(
                f'step {step} in {self._manager.directory} cannot be resumed with this config '
                f'({_first_line(error)}); restore the config that wrote it, or use a new workdir'
            ) from error
        train = found['train']
        ema = found['ema'] if abstract.ema is not None else None
        return TrainState(train['step'], train['skipped'], found['params'], train['opt_state'], ema)

    def _check_fits(self, step: int, params: Any) -> None:
        """Refuses another model before Orbax reads: a read that fails half-way leaves tracebacks on stderr."""
        stored = _stored_shapes(epath.Path(self._manager.directory) / str(step) / 'params')
        wanted = {name: tuple(leaf.shape) for name, leaf in trees.flatten(params).items()}
        names = [name for name in sorted(stored.keys() | wanted.keys()) if stored.get(name) != wanted.get(name)]
        if names:
            shown = [f'{n} is {stored.get(n, "missing")}, expected {wanted.get(n, "nothing")}' for n in names[:3]]
            raise UserError(
                f'step {step} in {self._manager.directory} cannot be resumed with this config: {"; ".join(shown)}'
                f'{" ..." if len(names) > 3 else ""}; restore the config that wrote it, or use a new workdir'
            )


def _stored_shapes(item: epath.Path) -> dict[str, tuple[int, ...]]:
    with _reader() as reader:
        tree = reader.metadata(item).item_metadata.tree
    return {name: tuple(leaf.shape) for name, leaf in trees.flatten(tree).items()}


def _train_item(state: TrainState) -> dict[str, Any]:
    return {'step': state.step, 'skipped': state.skipped, 'opt_state': state.opt_state}


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n', 1)[0][:300]


def _reader() -> ocp.Checkpointer:
    """Reads for this process alone: Orbax else waits until all processes read the same."""
    me = processes.index()
    alone = ocp.options.MultiprocessingOptions(me, {me}, f'reader_{me}')
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def find_step_folder(path: str) -> epath.Path:
    """The step directory that `path` means: itself, the newest step of a checkpoint folder, or of a workdir.

    Raises:
      UserError: there is no checkpoint there.
    """
    root = epath.Path(path)
    for folder in (root, root / FOLDER):
        if (folder / 'params').exists():
            return folder.resolve()
        steps = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
        steps = [p for p in steps if (p / 'params').exists()]
        if steps:
            return max(steps, key=lambda p: int(p.name)).resolve()
    raise UserError(f'no checkpoint in {path}: give a workdir of a finished stage, or one of its checkpoints/<step>')


def workdir_of(path: str) -> str:
    """The workdir that a checkpoint path belongs to: the folder above `checkpoints`, or the path itself."""
    step = find_step_folder(path)
    return str(step.parent.parent if step.parent.name == FOLDER else step.parent)


def read_meta(path: str) -> dict[str, Any]:
    """The `meta` item of a checkpoint.

    Raises:
      UserError: no checkpoint there, or one written by a newer version of this project.
    """
    folder = find_step_folder(path)
    meta = json.loads((folder / 'meta' / 'metadata').read_text())
    if meta['schema_version'] > SCHEMA_VERSION:
        raise UserError(
            f'{folder} has schema version {meta["schema_version"]}, this program reads up to {SCHEMA_VERSION}: '
            'update mvdjax'
        )
    return meta


class StoredParams(MutableMapping[str, np.ndarray]):
    """Parameters of a checkpoint by path, {'a/b/c': array}, each read when it is asked for.

    Removing a name only forgets it here. For models that should not lie in memory whole; `read_params` reads all at
    once, which is faster.
    """

    def __init__(self, path: str, use_ema: bool = False) -> None:
        """Reads the names and shapes.

        Raises:
          UserError: no checkpoint, no EMA in it, or a damaged one.
        """
        self._item = _params_item(path, use_ema)
        with _explained(self._item):
            self.shapes = _stored_shapes(self._item)
        self._names = dict.fromkeys(self.shapes)

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads a parameter."""
        if name not in self._names:
            raise KeyError(name)
        wanted = trees.unflatten({name: np.empty(0)})  # only its place in the tree counts
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        with _explained(self._item), _reader() as reader:
            restore = ocp.args.PyTreeRestore(wanted, restore_args=args, partial_restore=True)
            return trees.flatten(reader.restore(self._item, args=restore))[name]

    def __contains__(self, name: object) -> bool:
        """Whether a name is left; reads nothing."""
        return name in self._names

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        """Not possible."""
        raise TypeError('a checkpoint is not written this way')

    def __delitem__(self, name: str) -> None:
        """Forgets a name."""
        del self._names[name]

    def __iter__(self) -> Iterator[str]:
        """The names that are left."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many are left."""
        return len(self._names)


def _params_item(path: str, use_ema: bool) -> epath.Path:
    folder = find_step_folder(path)
    item = folder / ('ema' if use_ema else 'params')
    if not item.exists():
        raise UserError(f'{folder} has no {item.name}: that run kept no moving average (run.ema_decay)')
    return item


@contextlib.contextmanager
def _explained(item: epath.Path) -> Iterator[None]:
    """Whatever Orbax raises on a damaged item, as a sentence."""
    try:
        yield
    except Exception as error:
        raise UserError(f'{item} cannot be read ({_first_line(error)}): the checkpoint is damaged or incomplete') from (
            error
        )


def read_params(path: str, use_ema: bool = False) -> dict[str, np.ndarray]:
    """All parameters of a checkpoint as {'a/b/c': NumPy array}, whatever devices wrote it.

    Raises:
      UserError: no checkpoint there, no EMA in it, or a damaged one.
    """
    item = _params_item(path, use_ema)
    with _explained(item), _reader() as reader:
        tree = reader.metadata(item).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return trees.flatten(reader.restore(item, args=ocp.args.PyTreeRestore(restore_args=args)))
