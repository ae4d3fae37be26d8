"""UCF101, HMDB51 and Diving48: text and JSON files of file names, with the three splits of the first two.

None of them has a validation split. Elsewhere `val` and `test` of these sets are read from each other's files; here a
split has the name that its annotation file has.
"""

import re

from mvdjax.data.datasets.tree import Annotation, Item, Tree, class_number
from mvdjax.data.schema import Record
from mvdjax.errors import UserError


def read_ucf101(tree: Tree, split: str) -> Annotation:
    """`trainlist01.txt` ("Folder/name.avi number"), `testlist01.txt` ("Folder/name.avi") and `classInd.txt`."""
    index = tree.need('classInd.txt', r'classInd\.txt')
    rows = [line.split() for _, line in tree.lines(index)]
    if any(len(row) != 2 or row[0] != str(i) for i, row in enumerate(rows, start=1)):
        raise UserError(f'{tree.path(index)}: the lines are not "1 Name", "2 Name" and so on; fetch the file again')
    names = tuple(row[1] for row in rows)
    kind, number = split[:-1], split[-1]
    file = tree.need(f'{kind}list0{number}.txt', rf'{kind}list0{number}\.txt')
    items = []
    for line, text in tree.lines(file):
        where = f'{tree.path(file)}:{line}'
        found = re.fullmatch(r'([^/]+)/(.+)\.\w+(?:\s+(\d+))?', text)
        if not found:
            raise UserError(f'{where}: {text!r} is not "Folder/name.avi"; fetch the file again')
        label = class_number(names, found[1], where)
        if found[3] and int(found[3]) != label + 1:
            raise UserError(f'{where}: class {found[3]}, but {found[1]} is {label + 1} in {index}; fetch both again')
        items.append(Item((f'{found[1]}/{found[2]}', found[2]), Record('', label, line)))
    return Annotation(tree.path(file), items, names)


def read_hmdb51(tree: Tree, split: str) -> Annotation:
    """`CLASS_test_split1.txt`, one per class, of "name.avi 1": 1 is training, 2 is test, 0 is in neither."""
    kind, number = split[:-1], split[-1]
    pattern = re.compile(rf'(.+)_test_split{number}\.txt')
    files: dict[str, str] = {}
    for file in tree.files:
        if found := pattern.fullmatch(file.rpartition('/')[2]):
            if found[1] in files:
                raise UserError(f'hmdb51: both {files[found[1]]} and {file} in {tree.root} could be meant; keep one')
            files[found[1]] = file
    if not files:
        tree.need(f'CLASS_test_split{number}.txt')
    names = tuple(sorted(files))
    wanted = {'train': '1', 'test': '2'}[kind]
    items = []
    for label, name in enumerate(names):
        for line, text in tree.lines(files[name]):
            found = re.fullmatch(r'(.+)\.\w+\s+([012])', text)
            if not found:
                raise UserError(
                    f'{tree.path(files[name])}:{line}: {text!r} is not "name.avi 0", 1 or 2; fetch the file again'
                )
            if found[2] == wanted:
                items.append(Item((f'{name}/{found[1]}', found[1]), Record('', label, line)))
    return Annotation(tree.path(files[names[0]].rpartition('/')[0]), items, names)


def read_diving48(tree: Tree, split: str) -> Annotation:
    """`Diving48_V2_train.json` (or of V1, without the V2) of vid_name and label, and `Diving48_vocab.json`."""
    vocabulary = tree.json(tree.need('Diving48_vocab.json', r'Diving48_vocab\.json'))
    names = tuple(' '.join(words) if isinstance(words, list) else str(words) for words in vocabulary)
    file = tree.need(f'Diving48_V2_{split}.json', rf'Diving48_V2_{split}\.json', rf'Diving48_{split}\.json')
    items = []
    for position, entry in enumerate(tree.json(file), start=1):
        try:
            video, label = str(entry['vid_name']), int(entry['label'])
        except (TypeError, KeyError, ValueError):
            raise UserError(f'{tree.path(file)}: entry {position} has no vid_name and label; fetch it again') from None
        if not 0 <= label < len(names):
            raise UserError(f'{tree.path(file)}: entry {position} has class {label}; the vocabulary has {len(names)}')
        items.append(Item((video,), Record('', label, position)))
    notes = () if 'V2' in file else (f'{tree.path(file)} is of version 1, whose labels were corrected in V2',)
    return Annotation(tree.path(file), items, names, notes)
