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


def _columns(tree: Tree, file: str) -> dict[str, int]:
    header = next(iter(tree.rows(file)))[1]
    columns = {name.lower(): i for i, name in enumerate(header)}
    lacking = [name for name in ('youtube_id', 'time_start', 'time_end') if name not in columns]
    if lacking:
        raise UserError(
            f'{tree.path(file)}:1: no column {lacking[0]}; this is not the annotation file of Kinetics. A list of your '
            'own is named as data.files itself'
        )
    return columns


def read(tree: Tree, split: str) -> Annotation:
    """A split. The test files of some editions come without labels."""
    file = _annotation_file(tree, split)
    if file is None:
        tree.need(f'{split}.csv')
    assert file is not None
    labels: set[str] = set()
    for other in filter(None, (_annotation_file(tree, name) for name in SPLITS)):
        columns = _columns(tree, other)
        if 'label' in columns:
            labels |= {fields[columns['label']] for i, fields in tree.rows(other) if i > 1}
    names = tuple(sorted(labels - {''}))
    numbers = {name: i for i, name in enumerate(names)}
    columns = _columns(tree, file)
    items = []
    for line, fields in tree.rows(file):
        if line == 1:
            continue
        try:
            video = fields[columns['youtube_id']]
            start, end = (int(float(fields[columns[name]])) for name in ('time_start', 'time_end'))
            label = fields[columns['label']] if 'label' in columns else ''
        except (ValueError, IndexError):
            raise UserError(f'{tree.path(file)}:{line}: not a line of the annotation file; fetch it again') from None
        keys = (f'{video}_{start:06d}_{end:06d}', f'{video}_{start}_{end}', video)
        items.append(Item(keys, Record('', numbers.get(label, NO_LABEL), line)))
    return Annotation(tree.path(file), items, names)
