"""Checkpoints on disk: where they are and what is in them.

A step directory holds the items `params`, `ema` (if the run has one), `train` (step, skipped, optimizer state), `meta`
(JSON: config, input shape, class names, schema version, data position, where the weights come from and under what
licence) and `fingerprints` (see mvdjax/fingerprints.py), and `verified.json` (see mvdjax/integrity.py). A later stage
reads `params` or `ema` alone. How a run writes and keeps them is in mvdjax/saving.py; docs/checkpoints.md is the user's
side of it.
"""

import contextlib
import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mvdjax import processes, trees
from mvdjax.errors import UserError

SCHEMA_VERSION = 1
FOLDER = 'checkpoints'


def stored_shapes(item: epath.Path) -> dict[str, tuple[int, ...]]:
    """{path: shape} of an item of a checkpoint; reads no array."""
    with alone_reader() as reader:
        tree = reader.metadata(item).item_metadata.tree
    return {name: tuple(leaf.shape) for name, leaf in trees.flatten(tree).items()}


def alone_reader() -> ocp.Checkpointer:
    """Reads for this process alone: Orbax else waits until all processes read the same."""
    me = processes.index()
    alone = ocp.options.MultiprocessingOptions(me, {me}, f'reader_{me}')
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return str(error).strip().split('\n', 1)[0][:300]


def step_numbers(folder: epath.Path) -> list[int]:
    """The steps in a checkpoint folder, in order; those of a save under way and those set aside are not among them."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


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
            self.shapes = stored_shapes(self._item)
        self._names = dict.fromkeys(self.shapes)

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads a parameter."""
        if name not in self._names:
            raise KeyError(name)
        wanted = trees.unflatten({name: np.empty(0)})  # only its place in the tree counts
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        with _explained(self._item), alone_reader() as reader:
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
        raise UserError(f'{item} cannot be read ({first_line(error)}): the checkpoint is damaged or incomplete') from (
            error
        )


def read_params(path: str, use_ema: bool = False) -> dict[str, np.ndarray]:
    """All parameters of a checkpoint as {'a/b/c': NumPy array}, whatever devices wrote it.

    Raises:
      UserError: no checkpoint there, no EMA in it, or a damaged one.
    """
    item = _params_item(path, use_ema)
    with _explained(item), alone_reader() as reader:
        tree = reader.metadata(item).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return trees.flatten(reader.restore(item, args=ocp.args.PyTreeRestore(restore_args=args)))
