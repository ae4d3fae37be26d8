"""`mvdjax ckpt list`: what checkpoints a workdir has, at a glance; only `mvdjax ckpt verify` reads them."""

import argparse
import datetime
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from mvdjax import integrity
from mvdjax.checkpoints import FOLDER, step_numbers
from mvdjax.console import say
from mvdjax.errors import UserError
from mvdjax.metric_writer import read_metrics
from mvdjax.saving import ABANDONED, DAMAGED, DELETED

SHOWN = 3  # metrics per line
UNINTERESTING = ('epoch', 'skipped', 'substituted', 'data_wait', 'clips_per_second', 'learning_rate', 'weight_decay')


def rows(workdir: str) -> list[tuple[str, str, str, str, str]]:
    """(name, size, time of saving, metrics, state) of everything in the checkpoint folder, steps first.

    Raises:
      UserError: there is no such folder.
    """
    folder = epath.Path(workdir) / FOLDER
    if not folder.is_dir():
        raise UserError(f'{workdir} has no folder {FOLDER}: give the workdir of a run')
    metrics: dict[int, dict[str, Any]] = {}
    for record in read_metrics(workdir) if os.path.isdir(workdir) else ():
        prefix = '' if record['kind'] == 'train' else record['kind'] + ' '
        found = metrics.setdefault(record['step'], {})
        found |= {prefix + k: v for k, v in record.items() if k not in ('step', 'kind', *UNINTERESTING)}
    steps = step_numbers(folder)
    others = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.isdigit())
    return [_row(folder / str(step), metrics.get(step, {})) for step in steps] + [
        _row(folder / name, {}) for name in others
    ]


def _row(folder: epath.Path, metrics: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    sizes = {name: (folder / name).stat().length for name in integrity.files_of(folder)}
    shown = ', '.join(f'{k} {v:.4g}' for k, v in list(metrics.items())[:SHOWN])
    return folder.name, _size(sum(sizes.values())), _time(folder), shown, _state(folder, sizes)


def _time(folder: epath.Path) -> str:
    record = integrity.read_record(folder)
    if record:
        return record['verified'].replace('T', ' ').removesuffix('Z')
    seconds = folder.stat().mtime
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime('%Y-%m-%d %H:%M:%S') if seconds else ''


def _state(folder: epath.Path, sizes: Mapping[str, int]) -> str:
    if not folder.name.isdigit():
        if folder.name.startswith(DELETED):
            return 'being deleted'
        return 'set aside' if folder.name.startswith((DAMAGED, ABANDONED)) else 'unfinished, or under way'
    record = integrity.read_record(folder)
    if record is None:
        return 'not verified: without sums'
    wrong = [name for name, (size, _) in record['files'].items() if sizes.get(name) != size]
    return f'DAMAGED: {wrong[0]}' if wrong else 'verified'


def _size(size: float) -> str:
    for unit in ('B', 'KiB', 'MiB'):
        if size < 1024:
            return f'{size:.0f} {unit}' if unit == 'B' else f'{size:.1f} {unit}'
        size /= 1024
    return f'{size:.2f} GiB'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax ckpt list`."""
    parser.add_argument('workdir', help='of a run; local or in an object store')
    parser.add_argument('--json', action='store_true', help='one JSON line a checkpoint instead of a table')


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax ckpt list`."""
    names = ('step', 'size', 'saved (UTC)', 'metrics', 'state')
    found = rows(args.workdir)
    if args.json:
        for row in found:
            say(json.dumps(dict(zip(('step', 'size', 'saved', 'metrics', 'state'), row, strict=True))))
        return 0
    if not found:
        say(f'{args.workdir} has no checkpoint yet')
        return 0
    widths = [max(len(row[i]) for row in (names, *found)) for i in range(len(names))]
    for row in (names, *found):
        say('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
