"""`mvdjax ckpt verify`: everything of a checkpoint is read and compared with what was saved."""

import argparse

from etils import epath

from mvdjax import integrity
from mvdjax.checkpoints import FOLDER, step_numbers
from mvdjax.console import say
from mvdjax.errors import UserError


def step_folders(path: str) -> list[epath.Path]:
    """The checkpoints that a path means: one step, or all of a workdir or checkpoint folder.

    Raises:
      UserError: there are none.
    """
    root = epath.Path(path)
    if root.name.isdigit() and root.is_dir() and not (root / FOLDER).is_dir():
        return [root]
    for folder in (root / FOLDER, root):
        if steps := step_numbers(folder):
            return [folder / str(step) for step in steps]
    raise UserError(f'no checkpoint in {path}: give a workdir, or one of its {FOLDER}/<step>')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax ckpt verify`."""
    parser.add_argument('path', help='a workdir, or one of its checkpoints/<step>; local or in an object store')


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax ckpt verify`."""
    damaged = 0
    folders = step_folders(args.path)
    for folder in folders:
        if problem := integrity.check_thoroughly(folder):
            damaged += 1
            say(f'{folder}: DAMAGED, {problem}')
            continue
        record, expected = integrity.read_record(folder), integrity.stored_fingerprints(folder)
        files = f'{len(record["files"])} files as they were written' if record else 'no sums of its files'
        arrays = sum(len(leaves) for leaves in (expected or {}).values())
        values = f'{arrays} arrays as they were saved' if expected else 'all arrays can be read, none can be compared'
        say(f'{folder}: whole, {files}, {values}')
    if damaged:
        say(f'{damaged} of {len(folders)} damaged')
    return int(damaged > 0)
