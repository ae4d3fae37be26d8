"""`mvdjax ckpt copy`: checkpoints elsewhere, whole or not at all.

A copy is compared with its source byte for byte, by reading it back, and only then becomes a checkpoint: by a rename on
a local disk; in an object store, which has none, by writing last the two small files without which it is not one
(ours, and the mark that Orbax looks for there, without which a copy would count as unfinished and be cleaned away).
"""

import argparse
import os
import uuid
import zlib
from typing import Any

import fsspec
from etils import epath

from mvdjax import integrity
from mvdjax.checkpoints import FOLDER
from mvdjax.ckpt.verifying import step_folders
from mvdjax.console import progress_bar, say
from mvdjax.data import media
from mvdjax.errors import UserError

LAST = ('meta/metadata', 'commit_success.txt')
LEFT_OUT = (FOLDER, 'compile_cache')  # of a workdir's other files
_CHUNK = 16 * 2**20


class Store:
    """A folder, local or in an object store."""

    def __init__(self, path: str) -> None:
        """Raises UserError if there is no driver for it."""
        try:
            self._system, self._root = fsspec.core.url_to_fs(path)
        except (ImportError, ValueError) as error:
            raise UserError(f'{path} cannot be opened ({error})') from error
        self.path, self.local = path, not media.scheme(path)

    def files(self) -> list[str]:
        """Every file, relative, sorted; [] if there is no such folder."""
        root = self._root.rstrip('/') + '/'
        return sorted(name.removeprefix(root) for name in self._system.find(self._root))

    def open(self, name: str, mode: str) -> Any:
        """A file, with the folders that it needs."""
        path = f'{self._root.rstrip("/")}/{name}'
        if 'w' in mode:
            self._system.makedirs(path.rpartition('/')[0], exist_ok=True)
        return self._system.open(path, mode)

    def below(self, name: str) -> 'Store':
        """A folder in it."""
        return Store(f'{self.path.rstrip("/")}/{name}')

    def remove(self) -> None:
        """Removes the folder with all it holds."""
        if self._system.exists(self._root):
            self._system.rm(self._root, recursive=True)


def _transfer(source: Store, target: Store, name: str) -> list[int]:
    """Copies a file and reads the copy back. Returns [bytes, CRC-32].

    Raises:
      UserError: the copy is not like its source.
    """
    size = checksum = 0
    with source.open(name, 'rb') as reader, target.open(name, 'wb') as writer:
        while part := reader.read(_CHUNK):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
            writer.write(part)
        if target.local:
            writer.flush()
            os.fsync(writer.fileno())
    found = [0, 0]
    with target.open(name, 'rb') as reader:
        while part := reader.read(_CHUNK):
            found = [found[0] + len(part), zlib.crc32(part, found[1])]
    if found != [size, checksum]:
        raise UserError(f'{name} arrived in {target.path} with other bytes than it left {source.path}: try again')
    return found


def copy_step(source: str, target: str) -> str:
    """Copies one checkpoint.

    Args:
      source: folder of a step.
      target: folder that it becomes.

    Returns:
      'copied', or 'was there already'.

    Raises:
      UserError: the source is damaged, another checkpoint is there, or the copy failed; nothing is left of it then.
    """
    record = integrity.read_record(epath.Path(source)) if not media.scheme(source) else None
    if not media.scheme(source) and (problem := integrity.check(epath.Path(source))):
        raise UserError(f'{source} is damaged ({problem}) and is not copied; see mvdjax ckpt verify')
    here, there = Store(source), Store(target)
    names = here.files()
    if there.files():
        same = names == there.files() and all(_bytes(here, n) == _bytes(there, n) for n in (integrity.RECORD, *LAST))
        if same:
            return 'was there already'
        raise UserError(f'{target} exists and is another checkpoint, or half of one: remove it, or copy to elsewhere')
    names = [n for n in names if n not in LAST] + [n for n in LAST if n in names]
    part = Store(f'{target}.copy-{uuid.uuid4().hex[:8]}') if there.local else there
    try:
        with progress_bar(len(names), 0, 'file') as bar:
            for name in names:
                found = _transfer(here, part, name)
                if record and record['files'].get(name, found) != found:
                    raise UserError(f'{source}/{name} changed while it was copied, or is damaged: try again')
                bar.update(1)
        if 'commit_success.txt' not in names:
            with part.open('commit_success.txt', 'wb') as file:
                file.write(b'copied')
        if there.local:
            os.rename(part.path, target)
    except BaseException:
        part.remove()
        raise
    return 'copied'


def _bytes(store: Store, name: str) -> bytes | None:
    try:
        with store.open(name, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        return None


def copy(source: str, target: str) -> None:
    """Copies a workdir, or one of its checkpoints, into a workdir.

    Raises:
      UserError: see `copy_step`.
    """
    steps = [str(folder) for folder in step_folders(source)]
    place = f'{target.rstrip("/")}/{FOLDER}'
    for folder in steps:
        step = folder.rpartition('/')[2]
        say(f'checkpoint {step}: {copy_step(folder, f"{place}/{step}")}')
    if source.rpartition('/')[2].isdigit() and len(steps) == 1:
        return
    here, there = Store(source), Store(target)
    for name in here.files():
        if name.split('/')[0] not in LEFT_OUT and not name.startswith('.'):
            _transfer(here, there, name)
            say(f'{name}: copied')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax ckpt copy`."""
    parser.add_argument('source', help='a workdir, or one of its checkpoints/<step>; local or in an object store')
    parser.add_argument('target', help='the workdir to copy into: a checkpoint becomes checkpoints/<step> there')


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax ckpt copy`."""
    copy(args.source.rstrip('/'), args.target)
    return 0
