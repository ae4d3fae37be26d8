"""Lists of files: one `path label` per line, as the Kinetics lists of MVD and VideoMAE."""

import dataclasses
import os
import re

from mvdjax.data.schema import Record
from mvdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FileList:
    """A list that was read.

    Attributes:
      path: the list's own path.
      records: its lines in order.
      class_names: class names by number, empty if none were given.
    """

    path: str
    records: tuple[Record, ...]
    class_names: tuple[str, ...]


def read_class_names(path: str) -> tuple[str, ...]:
    """Class names, one per line, in the order of their numbers.

    Raises:
      UserError: no such file, or a blank or repeated name.
    """
    names = [name.strip() for name in _read_lines(path, 'class names')]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UserError(f'{path} names no classes; put one class name on each line')
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            raise UserError(f'{path}:{i + 1}: class name {name!r} is blank or repeated; each line names one class')
    return tuple(names)


def read_list(path: str, root: str = '', num_classes: int | None = None, class_file: str = '') -> FileList:
    """Reads a list of `path label` lines.

    The label is the last field, behind spaces or a tab, so paths may hold spaces; blank lines are ignored. Relative
    paths are taken from `root`, or from the list's own folder.

    Args:
      path: the list.
      root: folder of relative paths.
      num_classes: labels must be below it; None: below the number of class names, or unchecked without any.
      class_file: file of class names, or ''.

    Raises:
      UserError: missing or empty list, a line without a label, a label that is no number or out of range; the message
        names the line.
    """
    names = read_class_names(class_file) if class_file else ()
    if names and num_classes is not None and len(names) != num_classes:
        raise UserError(f'{class_file} names {len(names)} classes, the config says {num_classes}')
    limit = num_classes if num_classes is not None else len(names) or None
    folder = root or os.path.dirname(os.path.abspath(path))
    records = []
    for number, line in enumerate(_read_lines(path, 'list'), start=1):
        if not line.strip():
            continue
        fields = line.rsplit(maxsplit=1)
        if len(fields) == 1:
            raise UserError(f'{path}:{number}: {line.strip()!r} has one column; a line is "path label"')
        name, label = fields
        if not re.fullmatch(r'[-+]?[0-9]+', label):
            raise UserError(f'{path}:{number}: label {label!r} is not a whole number; a line is "path label"')
        value = int(label)
        if value < 0 or (limit is not None and value >= limit):
            classes = 'labels start at 0' if limit is None else f'there are classes 0 to {limit - 1}'
            raise UserError(f'{path}:{number}: label {value} is out of range; {classes}')
        records.append(Record(os.path.join(folder, name.strip()), value, number))
    if not records:
        raise UserError(f'{path} lists no files; put one "path label" on each line')
    return FileList(path, tuple(records), names)


def _read_lines(path: str, what: str) -> list[str]:
    try:
        with open(path, encoding='utf-8-sig') as file:  # -sig: Windows editors mark their files
            return file.read().split('\n')  # not splitlines, which also splits at characters that a name may hold
    except FileNotFoundError:
        raise UserError(f'{what} {path} does not exist; check the path in the config') from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{what} {path} cannot be read as UTF-8 text ({error})') from error
