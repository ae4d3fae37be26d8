"""Kinetics-400, -600 and -700: CSV files of label, youtube_id, time_start, time_end, split.

Files are called ID_000010_000020.mp4 by the crawlers and by the CVDF copy, ID.mp4 by some others, in a folder per
split, per class, or neither. Classes are numbered in the order of their names, as everywhere.
"""

import re

from mvdjax.data.datasets.tree import Annotation, Item, Tree
from mvdjax.data.schema import Record
from mvdjax.data.sources import NO_LABEL
from mvdjax.errors import UserError

SPLITS = {'train': ('train',), 'val': ('val', 'validate', 'validation'), 'test': ('test',)}


def _annotation_file(tree: Tree, split: str) -> str | None:
    size = re.sub(r'\D', '', tree.name)  # k400 -> 400: the file of another edition is not ours
    for word in SPLITS[split]:
        found = tree.maybe(rf'(?:k|kinetics)?[-_]?(?:{size})?(?:[-_]?2020)?[-_]?{word}\.csv')
        if found:
            return found
    return None


def _columns(path: str, header: list[str]) -> dict[str, int]:
    columns = {name.lower(): i for i, name in enumerate(header)}
    lacking = [name for name in ('youtube_id', 'time_start', 'time_end') if name not in columns]
    if lacking:
        raise UserError(
            f'{path}:1: no column {lacking[0]}; this is not the annotation file of Kinetics. A list of your own is '
            'named as data.files itself'
        )
    return columns


def read(tree: Tree, split: str) -> Annotation:
    """A split. The test files of some editions come without labels."""
    files = {name: file for name in SPLITS if (file := _annotation_file(tree, name))}
    if split not in files:
        tree.need(f'{split}.csv')
    path = tree.path(files[split])
    labels: set[str] = set()
    rows: list[tuple[int, list[str]]] = []
    for name, file in files.items():
        found = list(tree.rows(file))
        if not found:
            raise UserError(f'{tree.path(file)} is empty; fetch it again')
        columns = _columns(tree.path(file), found[0][1])
        if 'label' in columns:
            labels |= {fields[columns['label']] for _, fields in found[1:] if len(fields) > columns['label']}
        if name == split:
            rows, ours = found[1:], columns
    names = tuple(sorted(labels - {''}))
    numbers = {name: i for i, name in enumerate(names)}
    items = []
    for line, fields in rows:
        try:
            video = fields[ours['youtube_id']]
            start, end = (int(float(fields[ours[name]])) for name in ('time_start', 'time_end'))
            label = fields[ours['label']] if 'label' in ours else ''
        except (ValueError, IndexError):
            raise UserError(f'{path}:{line}: not a line of the annotation file; fetch it again') from None
        keys = (f'{video}_{start:06d}_{end:06d}', f'{video}_{start}_{end}', video)
        items.append(Item(keys, Record('', numbers.get(label, NO_LABEL), line)))
    return Annotation(path, items, names)
