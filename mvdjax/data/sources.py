"""What a config's `data.files` names, read: a list of files, a folder, a published data set or a packed one.

    lists/train.txt, gs://bucket/train.csv   a list, see `data.list_formats`
    ucf101:train1:/data/ucf101               a split of a published data set, see `data.datasets`
    /data/mine/train                         a folder whose sub-folders are the classes
    packed/train                             what `mvdjax data pack` wrote

A label is a class number or a class name. A whole number is always a number, from 0; a name is looked up in the class
file, or in the sorted names of the list itself where no class file is given. A list without any label will do where the
config asks for no classes: pretraining looks at none.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence

from mvdjax import keywords
from mvdjax.data import list_formats, media
from mvdjax.data.list_formats import Row
from mvdjax.data.schema import FileList, Record
from mvdjax.errors import UserError

NO_LABEL = -1  # of a record that has none: pretraining never looks, everything else refuses it


def read_class_names(path: str) -> tuple[str, ...]:
    """Class names, one per line, in the order of their numbers.

    Raises:
      UserError: no such file, or a blank or repeated name.
    """
    names = [name.strip() for name in media.read_text(path, 'class names').split('\n')]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UserError(f'{path} names no classes; put one class name on each line')
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not name or name in seen:
            raise UserError(f'{path}:{i + 1}: class name {name!r} is blank or repeated; each line names one class')
        seen.add(name)
    return tuple(names)


def read_list(path: str, root: str = '', num_classes: int | None = None, class_file: str = '') -> FileList:
    """Reads what `data.files` names.

    Args:
      path: a list, a folder, a split of a data set or a packed data set, see above. Local or in an object store.
      root: folder of relative paths; '' is the list's own. Of a data set: its folder.
      num_classes: labels must be below it; None: below the number of class names, or unchecked without any.
      class_file: file of class names, or ''.

    Raises:
      UserError: missing or empty list, a line that is not understood, a label that is missing, unknown or out of range;
        the message names the line.
    """
    from mvdjax.data.datasets import folders, manifest  # they make file lists

    names = read_class_names(class_file) if class_file else ()
    if names and num_classes is not None and len(names) != num_classes:
        raise UserError(f'{class_file} names {len(names)} classes, the config says {num_classes}')
    if spec := manifest.parse(path):
        files = manifest.read(spec, root, labels=num_classes is not None or bool(names))
    elif media.exists(media.join(path, 'pack.json')):
        from mvdjax.data import packed

        files = packed.read_pack(path)
    elif media.is_folder(path):
        files = folders.read_classes(path)
    else:
        return _read_file(path, root, num_classes, class_file, names)
    return _fitted(files, num_classes, class_file, names)


def fingerprint(records: Sequence[Record]) -> str:
    """16 hexadecimal digits that tell a list from others: of its paths and labels, in order.

    Of each path only what lies below the folder that all of them have in common counts: data may move.
    """
    paths = [record.path for record in records]
    common = os.path.commonprefix(paths).rpartition('/')[0]  # noqa: RUF071 - cut back to a whole folder
    below = len(common) + 1 if common else 0
    found = hashlib.sha256()
    for record in records:
        found.update(f'{record.path[below:]}\0{record.label}\n'.encode(errors='surrogateescape'))
    return found.hexdigest()[:16]


def check_same_classes(trained: Sequence[str], where: str, files: FileList) -> None:
    """Refuses a list that numbers its classes otherwise than the training list did: its score would mean nothing.

    Args:
      trained: class names in training, empty if there were none.
      where: what has them, for the message.
      files: the list.

    Raises:
      UserError: both have names and they differ in more than case, spaces and punctuation ('Air_Drumming').
    """
    for i, (ours, theirs) in enumerate(zip(trained, files.class_names, strict=False)):
        if _plain(ours) != _plain(theirs):
            raise UserError(
                f'class {i} is {ours!r} in {where} and {theirs!r} in {files.path}; give both the same data.class_file'
            )


def _plain(name: str) -> str:
    return re.sub(r'[\W_]+', '', name).casefold()


def _read_file(path: str, root: str, num_classes: int | None, class_file: str, names: tuple[str, ...]) -> FileList:
    rows = list_formats.parse(media.read_text(path, 'list'), path, names)
    if not rows:
        raise UserError(f'{path} lists no files; put one "path label" on each line')
    needed = num_classes is not None or bool(names)
    labels, names = _labels(rows, path, names, class_file, needed)
    if names and num_classes is not None and len(names) != num_classes:
        raise UserError(
            f'the labels of {path} name {len(names)} classes, the config says {num_classes}; '
            'give the names of all classes in data.class_file'
        )
    limit = num_classes if num_classes is not None else len(names) or None
    folder = root or media.folder_of(path)
    records = []
    for row, label in zip(rows, labels, strict=True):
        if label != NO_LABEL or row.label is not None:
            _check_range(label, limit, f'{path}:{row.line}')
        records.append(Record(media.join(folder, row.path), label, row.line))
    return FileList(path, tuple(records), names, _numbers_and_names(rows, path, names))


def _numbers_and_names(rows: Sequence[Row], path: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """A note where a label could be taken for the name of another class: a whole number always is a number."""
    called = {name: i for i, name in enumerate(names) if _is_number(name)}
    for row in rows if called else ():
        number = called.get(str(row.label))
        if number is not None and number != int(str(row.label)):
            meant = int(str(row.label))
            return (
                f'{path}:{row.line}: label {row.label} is read as class number {meant}, {names[meant]!r}; the class '
                f'called {row.label!r} is number {number}',
            )
    return ()


def _check_range(label: int, limit: int | None, where: str) -> None:
    if label < 0 or (limit is not None and label >= limit):
        classes = 'labels start at 0' if limit is None else f'there are classes 0 to {limit - 1}'
        raise UserError(f'{where}: label {label} is out of range; {classes}')


def _labels(
    rows: Sequence[Row], path: str, names: tuple[str, ...], class_file: str, needed: bool
) -> tuple[list[int], tuple[str, ...]]:
    """(label of every row, class names).

    Raises:
      UserError: some rows have no label, or all have none and labels are needed; names and numbers are mixed without a
        class file; a name that the class file does not have.
    """
    first = rows[0]
    empty = next((row for row in rows if row.label is None), None)
    if empty and (needed or any(row.label is not None for row in rows)):
        raise UserError(f'{path}:{empty.line}: {empty.path!r} has no label; a line is "path label"')
    if empty:
        return [NO_LABEL] * len(rows), names
    if not names and not _is_number(first.label):
        for row in rows:
            if _is_number(row.label) or _is_float(str(row.label)):
                raise UserError(
                    f'{path}:{row.line}: label {row.label!r} is not a class name, but line {first.line} has '
                    f'{first.label!r}; use numbers or names throughout, or give the names in data.class_file'
                )
        names = tuple(sorted({str(row.label) for row in rows}))
    numbers = {name: i for i, name in enumerate(names)}
    labels = []
    for row in rows:
        label = str(row.label)
        if _is_number(label):
            labels.append(int(label))
        elif label in numbers:
            labels.append(numbers[label])
        elif numbers:
            hint = keywords.nearest(label, numbers)
            raise UserError(
                f'{path}:{row.line}: {class_file} has no class {row.label!r}; {hint}write it as it stands there'
            )
        else:
            raise UserError(
                f'{path}:{row.line}: label {row.label!r} is not a whole number; a line is "path label" '
                '(names need data.class_file, or a name on every line)'
            )
    return labels, names


def _is_number(label: str | int | None) -> bool:
    return bool(re.fullmatch(r'[-+]?[0-9]+', str(label)))


def _is_float(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return not label.isalpha()  # 'nan' and 'infinity' are names


def _fitted(files: FileList, num_classes: int | None, class_file: str, names: tuple[str, ...]) -> FileList:
    """The list of a data set, its labels numbered as the class file says.

    Raises:
      UserError: another number of classes than the config's, a class that the class file lacks, no labels where they
        are needed.
    """
    if names and files.class_names and names != files.class_names:
        missing = [name for name in files.class_names if name not in names]
        if missing:
            raise UserError(f'{class_file} has no class {missing[0]!r}, which {files.path} has; use one set of names')
        numbers = [names.index(name) for name in files.class_names]
        records = [dataclasses.replace(r, label=numbers[r.label] if r.label >= 0 else r.label) for r in files.records]
        files = dataclasses.replace(files, records=tuple(records), class_names=names)
    names = files.class_names or names
    if num_classes is not None and names and len(names) != num_classes:
        raise UserError(f'{files.path} has {len(names)} classes, the config says {num_classes}')
    limit = num_classes if num_classes is not None else len(names) or None
    if num_classes is not None or class_file:
        for record in files.records:
            _check_range(record.label, limit, f'{files.path}:{record.line}')
    return dataclasses.replace(files, class_names=names)
