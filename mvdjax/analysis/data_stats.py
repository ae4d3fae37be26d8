"""`mvdjax data stats`: what `mvdjax data check` found, as plots and one HTML page."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvdjax.analysis import parts
from mvdjax.analysis.data_plots import draw_classes, draw_files
from mvdjax.data.check import SCHEMA
from mvdjax.data.check_text import errors, warnings
from mvdjax.errors import UserError

ROWS = 200  # of a table; check.json has all


def read_check(path: str) -> dict[str, Any]:
    """Reads a check.json, given itself or its folder.

    Raises:
      UserError: there is none, or it is damaged or of another version.
    """
    file = os.path.join(path, 'check.json') if os.path.isdir(path) else path
    try:
        with open(file, encoding='utf-8') as opened:
            result = json.load(opened)
    except FileNotFoundError:
        raise UserError(f'{file} does not exist: run `mvdjax data check LIST --output=DIR` first') from None
    except (OSError, ValueError) as error:
        raise UserError(f'{file} cannot be read ({error}): run `mvdjax data check` again') from error
    if not isinstance(result, dict) or result.get('schema') != SCHEMA:
        raise UserError(f'{file} is not a check.json of this version: run `mvdjax data check` again')
    return result


def write_stats(path: str, output: str) -> list[str]:
    """Draws what a check found.

    Args:
      path: a check.json, or the folder it is in.
      output: folder to write to; made if it is not there.

    Returns:
      The paths written: PNGs of each list, then stats.html, which has them embedded.

    Raises:
      UserError: as `read_check`.
      OSError: the output cannot be written.
    """
    result = read_check(path)
    Path(output).mkdir(parents=True, exist_ok=True)
    written = []
    body = [
        '<h1>Data set</h1>',
        f'<p class="soft">{parts.text(_origin(result))}</p>',
        _overview(result),
    ]
    for number, one in enumerate(result['lists']):
        body += [f'<h2>{parts.text(one["path"])}</h2>', f'<p class="soft">{parts.text(_hashes(one))}</p>']
        stem = Path(one['clean']).stem
        good = [
            file for file in result['files'] if not file['problem'] and any(at[0] == number for at in file['listed'])
        ]
        if good:
            picture = os.path.join(output, f'{stem}_files.png')
            draw_files(good, one['image'], 0 if one['image'] else result['frames'], picture)
            written.append(picture)
            body += ['<h3>Files</h3>', parts.image(picture, f'Plots of the files of {one["path"]}')]
        if len(one['classes']) > 1:
            picture = os.path.join(output, f'{stem}_classes.png')
            draw_classes(one['classes'], picture)
            written.append(picture)
            body += ['<h3>Classes</h3>', _balance(one['classes']), parts.image(picture, 'Files of each class')]
        body += _problems('Errors', errors(result)[one['path']])
        body += _problems('Warnings', warnings(result)[one['path']])
    page = os.path.join(output, 'stats.html')
    title = f'Data set: {", ".join(one["path"] for one in result["lists"])}'
    Path(page).write_text(parts.document(title, body), encoding='utf-8')
    return [*written, page]


def _origin(result: Mapping[str, Any]) -> str:
    how = 'every frame decoded' if result['full'] else 'the first frame of each file decoded'
    return f'Found by {result["written_by"]}, {how}, with {result["decoder"]}.'


def _overview(result: Mapping[str, Any]) -> str:
    """A row per list."""
    rows = []
    for number, one in enumerate(result['lists']):
        total = one['totals']
        rows.append(
            [
                one['path'],
                f'{one["good"]} of {one["files"]}',
                str(len(one['bad_lines'])),
                str(len(one['bad_files'])),
                str(sum(leak['lists'][0] == number for leak in result['leaks'])),
                str(len(one['duplicates'])),
                '' if one['image'] else f'{total["seconds"] / 3600:.2f} h',
                f'{total["bytes"] / 1e9:.3f} GB',
                one['clean'],
            ]
        )
    head = ['list', 'usable files', 'wrong lines', 'bad files', 'leaks', 'duplicates', 'length', 'size', 'clean list']
    return parts.table(head, rows)


def _hashes(one: Mapping[str, Any]) -> str:
    return f'content {one["hashes"]["content"]} · order {one["hashes"]["order"]}'


def _balance(classes: Sequence[Mapping[str, Any]]) -> str:
    counts = [entry['good'] for entry in classes]
    most, least = max(counts), min(counts)
    empty = counts.count(0)
    text = f'{len(counts)} classes of {least} to {most} usable files'
    if least:
        text += f': the largest has {most / least:.3g} times the smallest'
    if empty:
        text += f'; {empty} of them have none'
    return f'<p>{text}.</p>'


def _problems(title: str, lines: Sequence[str]) -> list[str]:
    """A table of sentences."""
    if not lines:
        return []
    more = [f'<p class="soft">and {len(lines) - ROWS} more in problems.txt</p>'] if len(lines) > ROWS else []
    return [f'<h3>{len(lines)} {title.lower()}</h3>', parts.table([title], [[line] for line in lines[:ROWS]]), *more]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax data stats`."""
    parser.add_argument('check', metavar='CHECK', help='check.json of `mvdjax data check`, or the folder it is in')
    parser.add_argument('--output', default='stats', metavar='DIR', help='folder to write to (default: ./%(default)s)')


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax data stats`."""
    for path in write_stats(args.check, args.output):
        print(path)
    return 0
