"""The text of a list to rows of path and label: space- or tab-separated, CSV, or JSON lines, as the first line says.

    videos/jump 1.mp4 3             path label; paths may hold spaces, the label is a number or a class name
    videos/jump 1.mp4               no label on any line: a list to pretrain on
    videos/jump 1.mp4 0 -1          the same, as VideoMAE v2 writes it: start and number of frames, -1 = a video file
    videos/jump 1.mp4 250 3         path frames label; the number of frames is not believed and not used
    path,label                      CSV, with or without a header, paths in quotes where they hold a comma
    {"path": "a.mp4", "label": 3}   one JSON object per line

MVD's own lists end in .csv and are space-separated, so the name of a list decides nothing.
"""

import csv
import dataclasses
import json
import re

from mvdjax.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mvdjax.errors import UserError

PATH_COLUMNS = ('path', 'file', 'filename', 'file_name', 'filepath', 'file_path', 'video', 'video_path', 'image')
LABEL_COLUMNS = ('label', 'class', 'class_name', 'category', 'target', 'label_name', 'class_id', 'label_id', 'action')

_SUFFIX = rf'\.(?:{"|".join(s[1:] for s in VIDEO_SUFFIXES + IMAGE_SUFFIXES)})'
_MEDIA = re.compile(rf'(.*{_SUFFIX})(?=\s|$)\s*(.*)', re.IGNORECASE)  # greedy: a path may hold 'a.mp4 (1).mp4'
_NUMBER = re.compile(r'[-+]?[0-9]+')
_TWO_NUMBERS = re.compile(r'([-+]?[0-9]+)\s+([-+]?[0-9]+)')
_CSV_LINE = (
    re.compile(r'\s*"(?:[^"]|"")*"\s*([,;]|$)'),  # a first field in quotes
    re.compile(rf'[^,;]*{_SUFFIX}\s*([,;])', re.IGNORECASE),  # a file name, then a comma
    re.compile(r'[^,;]*([,;])(?:\s*[-+]?[0-9]+\s*\1)?\s*[-+]?[0-9]+\s*$'),  # a path without suffix, then numbers
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a list: a path, a label as it is written (None: there is none), and where the line stands."""

    path: str
    label: str | int | None
    line: int


def parse(text: str, where: str, names: tuple[str, ...] = ()) -> list[Row]:
    """The rows of a list. Blank lines are ignored.

    Args:
      text: the list.
      where: its path, for messages.
      names: class names, which help to find a label behind a path that has no suffix.

    Raises:
      UserError: a line that is none of a list; the message names it.
    """
    lines = text.split('\n')  # not splitlines, which also splits at characters that a name may hold
    filled = [i for i, line in enumerate(lines) if line.strip()]
    if not filled:
        return []
    first = lines[filled[0]]
    if first.lstrip().startswith('[') and _is_json(text):
        raise UserError(f'{where}: is one JSON array; write one object or one "path label" on each line instead')
    if first.lstrip().startswith('{'):
        return [_json_row(lines[i], f'{where}:{i + 1}', i + 1) for i in filled]
    delimiter = _delimiter(first)
    if delimiter:
        return _csv_rows(lines, delimiter, where)
    if not _MEDIA.fullmatch(first.strip()) and len(filled) > 1 and _delimiter(lines[filled[1]]):
        raise UserError(
            f'{where}:{filled[0] + 1}: {first.strip()!r} is no line of a CSV list, as the next is; a header names the '
            'columns path and label, and a path that holds a comma stands in quotes'
        )
    if first.lower().split() in (['path', 'label'], ['path']):
        filled = filled[1:]
    return [_text_row(lines[i].strip(), f'{where}:{i + 1}', i + 1, names) for i in filled]


def _delimiter(line: str) -> str:
    """',' or ';' if this is a line of a CSV list, or its header; else ''."""
    for mark in ',;':
        if mark in line and any(_cell(field) in PATH_COLUMNS for field in line.split(mark)):
            return mark
    for pattern in _CSV_LINE:
        if found := pattern.match(line):
            return found[1] or ','
    return ''


def _cell(text: str) -> str:
    return text.strip().strip('"').strip().lower()


def _columns(fields: list[str], where: str, line: int) -> Row:
    """A row of fields without a header."""
    if len(fields) > 1 and not fields[-1]:
        raise UserError(f'{where}: {fields[0]!r} has an empty label; write it, or leave the column out of every line')
    if len(fields) == 3 and _NUMBER.fullmatch(fields[1]):
        path, number, label = fields
        if int(number) == 0 and label == '-1':
            return Row(path, None, line)
        if int(number) > 0:
            return Row(path, label, line)
        raise UserError(
            f'{where}: columns {number} and {label} behind the path are not understood; three columns are '
            '"path 0 -1" (a whole file, no label) or "path frames label"'
        )
    if len(fields) > 2:
        raise UserError(
            f'{where}: {len(fields)} columns; a line is path and label, and a path that holds the separator stands '
            'in quotes'
        )
    return Row(fields[0], fields[1] if len(fields) == 2 else None, line)


def _text_row(text: str, where: str, line: int, names: tuple[str, ...]) -> Row:
    if '\t' in text:
        return _columns([field.strip() for field in re.split(r'\t+', text)], where, line)
    if found := _MEDIA.fullmatch(text):
        path, rest = found[1], found[2].strip()
        if numbers := _TWO_NUMBERS.fullmatch(rest):
            return _columns([path, *numbers.groups()], where, line)
        return Row(path, rest or None, line)
    fields = text.rsplit(maxsplit=1)
    if len(fields) == 2 and (_NUMBER.fullmatch(fields[1]) or fields[1] in names):
        return Row(fields[0].strip(), fields[1], line)
    return Row(text, None, line)


def _csv_rows(lines: list[str], delimiter: str, where: str) -> list[Row]:
    reader = csv.reader((line + '\n' for line in lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[Row] = []
    header: tuple[int, int | None] | None = None
    started = False
    while True:
        start = reader.line_num + 1  # a field in quotes may hold a line break
        try:
            fields = [field.strip() for field in next(reader)]
        except StopIteration:
            return rows
        except csv.Error as error:
            raise UserError(f'{where}:{start}: {error}; close the quotes, or double those inside a field') from error
        if not any(fields):
            continue
        place = f'{where}:{start}'
        if not started:
            started = True
            header = _header(fields, place)
            if header:
                continue
        row = _columns(fields, place, start) if header is None else _named(fields, header, place, start)
        if not row.path:
            raise UserError(f'{place}: the path is empty; a line is path and label')
        rows.append(row)


def _header(fields: list[str], where: str) -> tuple[int, int | None] | None:
    """The columns of path and label; None if this line is no header."""
    names = [field.lower() for field in fields]
    paths = [i for i, name in enumerate(names) if name in PATH_COLUMNS]
    if not paths:
        return None
    labels = [names.index(name) for name in LABEL_COLUMNS if name in names]
    if not labels and len(fields) > 1:
        raise UserError(
            f'{where}: none of the columns {", ".join(fields)} is named label; name it so, or leave only path'
        )
    return paths[0], labels[0] if labels else None


def _named(fields: list[str], header: tuple[int, int | None], where: str, line: int) -> Row:
    path, label = header
    if len(fields) <= max(path, label or 0):
        raise UserError(
            f'{where}: {len(fields)} columns, fewer than the header names; a path with a comma needs quotes'
        )
    return Row(fields[path], None if label is None else fields[label] or None, line)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _json_row(text: str, where: str, line: int) -> Row:
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f'{where}: not a JSON object ({error.msg} at column {error.colno}); write one per line'
        ) from error
    path = next((entry[k] for k in PATH_COLUMNS if k in entry), None) if isinstance(entry, dict) else None
    if not isinstance(path, str) or not path:
        raise UserError(f'{where}: no path; a line is {{"path": ..., "label": number or name}}')
    label = next((entry[k] for k in LABEL_COLUMNS if k in entry), None)
    if isinstance(label, bool) or not (label is None or isinstance(label, str | int)):
        raise UserError(f'{where}: label {label!r} is neither a whole number nor a name')
    return Row(path, label, line)
