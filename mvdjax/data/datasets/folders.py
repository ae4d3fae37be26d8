"""Folders whose sub-folders are the classes: someone's own videos, and ImageNet."""

import os
from collections.abc import Sequence

from mvdjax.data import media
from mvdjax.data.datasets.tree import Annotation, Item, Tree, class_number
from mvdjax.data.schema import Record
from mvdjax.data.sources import NO_LABEL, FileList
from mvdjax.errors import UserError

SUFFIXES = media.VIDEO_SUFFIXES + media.IMAGE_SUFFIXES
SPLITS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation'), 'test': ('test', 'testing')}


def split_of(name: str) -> str | None:
    """The split that a folder is called after."""
    return next((split for split, words in SPLITS.items() if name.lower() in words), None)


def by_class(files: Sequence[str], where: str) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """(class names, [(class, file)]) of files as 'class/.../file'; the classes and the files of each in order.

    Raises:
      UserError: files beside the class folders.
    """
    loose = [file for file in files if '/' not in file]
    if loose and len(loose) < len(files):
        raise UserError(f'{where} holds {loose[0]} beside its class folders; move it into one of them')
    pairs = [] if loose else sorted((file.split('/')[0], file) for file in files)
    return tuple(sorted({name for name, _ in pairs})), pairs


def read_classes(folder: str) -> FileList:
    """A folder as a list: its sub-folders are the classes. Without sub-folders it is a list without labels.

    Raises:
      UserError: no video or image in it, or its sub-folders are splits.
    """
    files = [file for file in media.walk(folder) if file.lower().endswith(SUFFIXES)]
    if not files:
        raise UserError(f'{folder} holds no video or image; name a list, or a folder with one sub-folder per class')
    names, pairs = by_class(files, folder)
    splits = [split for name in names if (split := split_of(name))]
    if splits and len(splits) == len(names):
        split = 'train' if 'train' in splits else splits[0]
        raise UserError(
            f'the sub-folders of {folder} are splits ({", ".join(names)}), not classes; write folder:{split}:{folder} '
            'for one of them'
        )
    folder = media.absolute(folder)
    numbers = {name: i for i, name in enumerate(names)}
    if not pairs:
        pairs = [('', file) for file in files]
    records = [
        Record(media.join(folder, file), numbers.get(name, NO_LABEL), line)
        for line, (name, file) in enumerate(pairs, start=1)
    ]
    return FileList(folder, tuple(records), names)


def split_folder(tree: Tree, split: str) -> str | None:
    """The folder of a split below the tree's, at any depth (ImageNet: ILSVRC/Data/CLS-LOC/train)."""
    found = set()
    for folder in {file.rpartition('/')[0] for file in tree.media}:
        parts = folder.split('/')
        found |= {'/'.join(parts[: i + 1]) for i, part in enumerate(parts) if part.lower() in SPLITS[split]}
    if not found:
        return None
    return min(found, key=lambda name: (name.count('/'), name))


def read_split(tree: Tree, split: str) -> Annotation:
    """ROOT/train/CLASS/... and so on. All splits number the classes of all of them: a class may lack in one."""
    places = {name: split_folder(tree, name) for name in SPLITS}
    place = places[split]
    if place is None:
        raise UserError(f'{tree.name}: {tree.root} has no folder {split} with one sub-folder per class')
    names: set[str] = set()
    chosen: list[tuple[str, str]] = []
    for name, folder in places.items():
        if folder is None:
            continue
        files = [file.removeprefix(folder + '/') for file in tree.media if file.startswith(folder + '/')]
        classes, pairs = by_class(files, tree.path(folder))
        names |= set(classes)
        if name == split:
            chosen = pairs
    if not chosen:
        raise UserError(f'{tree.path(place)} has no sub-folders; put each file into the folder of its class')
    return _annotation(tree, place, chosen, tuple(sorted(names)))


def _annotation(tree: Tree, place: str, pairs: Sequence[tuple[str, str]], names: tuple[str, ...]) -> Annotation:
    numbers = {name: i for i, name in enumerate(names)}
    items = [
        Item((), Record(tree.path(f'{place}/{file}'), numbers[name], line))
        for line, (name, file) in enumerate(pairs, start=1)
    ]
    return Annotation(tree.path(place), items, names)


def read_imagenet(tree: Tree, split: str) -> Annotation:
    """ImageNet-1K: one folder per class, or the flat validation folder with `LOC_val_solution.csv`.

    The classes are numbered in the order of their WordNet ids, as everywhere (the development kit has another order);
    `LOC_synset_mapping.txt`, if it is there, gives their names.
    """
    place, train = split_folder(tree, split), split_folder(tree, 'train')
    if place is None:
        raise UserError(f'{tree.name}: {tree.root} has no folder {split}; it is looked for at any depth')
    files = [file.removeprefix(place + '/') for file in tree.media if file.startswith(place + '/')]
    classes, pairs = by_class(files, tree.path(place))
    mapping = tree.maybe(r'LOC_synset_mapping\.txt')
    titles = dict(line.split(maxsplit=1) for _, line in tree.lines(mapping)) if mapping else {}
    if titles:
        ids = tuple(sorted(titles))
    elif train:
        ids = tuple(
            sorted({file[len(train) + 1 :].split('/')[0] for file in tree.media if file.startswith(train + '/')})
        )
    else:
        ids = classes
    if not pairs:
        solution = tree.maybe(rf'LOC_{split}_solution\.csv')
        if solution is None:
            raise UserError(
                f'{tree.path(place)} has no sub-folders; put each image into the folder of its class, or '
                f'LOC_{split}_solution.csv beside them'
            )
        answers = {fields[0]: fields[1].split()[0] for i, fields in tree.rows(solution) if i > 1 and len(fields) > 1}
        stems = {file: os.path.splitext(file)[0] for file in files}
        lacking = next((file for file, stem in stems.items() if stem not in answers), None)
        if lacking:
            raise UserError(f'{tree.path(solution)} has no line for {lacking}; fetch it again')
        pairs = [(answers[stems[file]], file) for file in files]
    for name in sorted({name for name, _ in pairs}):
        class_number(ids, name, tree.path(place))
    annotation = _annotation(tree, place, pairs, ids)
    words = [titles.get(i, i) for i in ids]
    unique = tuple(word if words.count(word) == 1 else f'{word} ({i})' for i, word in zip(ids, words, strict=True))
    return Annotation(annotation.path, annotation.items, unique)
