"""The published data sets, one config line each: NAME:SPLIT:FOLDER, such as 'ucf101:train1:/data/ucf101'.

Each is read from its annotation files as they are distributed, wherever they lie below the folder. A split has one name
and is read from the file of that name: `val` and `test` are never exchanged, and a set without a validation split has
none here. Counts are compared and a difference is told, because scores on other videos are other scores.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from mvdjax import keywords
from mvdjax.data import media
from mvdjax.data.datasets import ava, folders, kinetics, small, ssv2, tfds_images
from mvdjax.data.datasets.tree import Annotation, Tree
from mvdjax.data.schema import FileList
from mvdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A published data set.

    Attributes:
      title: its name.
      classes: how many it has; 0: any number.
      splits: files in each, as commonly distributed (nobody has counted them here); None: not known.
      read: the reader of its annotation files.
      home: where it comes from.
      terms: under what terms, in short.
      suffixes: of its files.
    """

    title: str
    classes: int
    splits: Mapping[str, int | None]
    read: Callable[[Tree, str], Annotation]
    home: str
    terms: str
    suffixes: tuple[str, ...] = media.VIDEO_SUFFIXES


_KINETICS = ('https://github.com/cvdfoundation/kinetics-dataset', "annotations CC BY 4.0; the videos are their makers'")
_THREE = ('1', '2', '3')
DATASETS: dict[str, DataSet] = {
    # The videos of Kinetics vanish; these are the counts of the copy at CVDF.
    'k400': DataSet('Kinetics-400', 400, {'train': 246534, 'val': 19906, 'test': 39805}, kinetics.read, *_KINETICS),
    'k600': DataSet('Kinetics-600', 600, {'train': 427549, 'val': 29793, 'test': 72924}, kinetics.read, *_KINETICS),
    'k700': DataSet('Kinetics-700', 700, dict.fromkeys(('train', 'val', 'test')), kinetics.read, *_KINETICS),
    'ssv2': DataSet(
        'Something-Something v2',
        174,
        {'train': 168913, 'val': 24777, 'test': 27157},
        ssv2.read,
        'https://www.qualcomm.com/developer/software/something-something-v-2-dataset',
        'licence of Qualcomm, for research',
    ),
    'ucf101': DataSet(
        'UCF101',
        101,
        {'train1': 9537, 'test1': 3783, 'train2': 9586, 'test2': 3734, 'train3': 9624, 'test3': 3696},
        small.read_ucf101,
        'https://www.crcv.ucf.edu/data/UCF101.php',
        'none stated',
    ),
    'hmdb51': DataSet(
        'HMDB51',
        51,
        {**{f'train{i}': 3570 for i in _THREE}, **{f'test{i}': 1530 for i in _THREE}},
        small.read_hmdb51,
        'https://serre.lab.brown.edu/hmdb51.html',
        'CC BY 4.0',
    ),
    'diving48': DataSet(
        'Diving48',
        48,
        {'train': 15027, 'test': 1970},  # of V2
        small.read_diving48,
        'http://www.svcl.ucsd.edu/projects/resound/dataset.html',
        'none stated',
    ),
    'ava': DataSet(
        'AVA v2.2',
        80,
        {'train': None, 'val': None},
        ava.read,
        'https://github.com/cvdfoundation/ava-dataset',
        "annotations CC BY 4.0; the movies are their makers'",
    ),
    'imagenet': DataSet(
        'ImageNet-1K',
        1000,
        {'train': 1281167, 'val': 50000},
        folders.read_imagenet,
        'https://www.image-net.org',
        'for non-commercial research',
        media.IMAGE_SUFFIXES,
    ),
    'folder': DataSet(
        'a folder of your own', 0, dict.fromkeys(folders.SPLITS), folders.read_split, '', '', folders.SUFFIXES
    ),
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A split as a config names it.

    Attributes:
      name: of the data set.
      split: of it.
      folder: where it lies; '' if `data.root` says so.
    """

    name: str
    split: str
    folder: str

    def __str__(self) -> str:
        """As messages name it."""
        return f'{self.name}:{self.split}'


def parse(text: str) -> Spec | None:
    """A `data.files` as a split of a data set; None if it is the path of a list or folder.

    Raises:
      UserError: no such data set or split.
    """
    found = re.fullmatch(r'([A-Za-z][\w-]+):(?!//)([^:/]*)(?::(.*))?', text)
    if text.startswith(tfds_images.PREFIX):
        return tfds_spec(text)
    if not found or media.exists(text):
        return None
    name, split, folder = found[1].lower(), found[2], found[3] or ''
    if name not in DATASETS:
        hint = keywords.nearest(name, DATASETS)
        raise UserError(
            f'there is no data set {name!r} and no list {text}; {hint}the data sets are {", ".join(DATASETS)}'
        )
    if split not in DATASETS[name].splits:
        splits = ', '.join(DATASETS[name].splits)
        raise UserError(f'{DATASETS[name].title} has no split {split!r}; write {name}:SPLIT with one of {splits}')
    return Spec(name, split, folder)


def tfds_spec(text: str) -> Spec:
    """'tfds:NAME:SPLIT[:FOLDER]', NAME as tensorflow-datasets has it, with a config or not."""
    name, _, rest = text.removeprefix(tfds_images.PREFIX).partition(':')
    split, _, folder = rest.partition(':')
    if not name or not split:
        raise UserError(f'{text} names no split; write {tfds_images.PREFIX}imagenet2012:train, or with :FOLDER behind')
    return Spec(tfds_images.PREFIX + name, split, folder)


def read(spec: Spec, root: str, labels: bool) -> FileList:
    """The files of a split that are there, in the order of the annotations.

    Args:
      spec: the split.
      root: its folder, unless the spec has one.
      labels: whether labels are needed (of tensorflow-datasets, they cost reading everything once).

    Raises:
      UserError: no folder, no annotation files, annotation files that are not understood, or none of the files there.
    """
    if spec.name.startswith(tfds_images.PREFIX):
        return tfds_images.read(spec.name.removeprefix(tfds_images.PREFIX), spec.split, spec.folder or root, labels)
    known = DATASETS[spec.name]
    folder = spec.folder or root or f'data/{spec.name}'
    if not media.is_folder(folder):
        origin = f' (it comes from {known.home}; terms: {known.terms})' if known.home else ''
        raise UserError(
            f'{known.title} is looked for in {folder}, which is no folder; '
            f'write {spec}:FOLDER, or give data.root{origin}'
        )
    tree = Tree(folder, spec.name, known.suffixes)
    annotation = known.read(tree, spec.split)
    records, missing = [], []
    for item in annotation.items:
        path = item.record.path or tree.find(item.keys, spec.split.rstrip('123'))
        if path:
            records.append(dataclasses.replace(item.record, path=path))
        else:
            missing.append(item.keys[0])
    if not records:
        what = f'such as {missing[0]}' if missing else 'and it lists none'
        raise UserError(
            f'none of the {len(missing)} files that {annotation.path} lists is under {folder}, {what}; '
            'put the annotation files and the media under one folder and name that'
        )
    notes = (*annotation.notes, *_notes(spec, known, annotation, len(records), missing, folder))
    return FileList(annotation.path, tuple(records), annotation.class_names, notes)


def _notes(
    spec: Spec, known: DataSet, annotation: Annotation, found: int, missing: list[str], folder: str
) -> list[str]:
    """What is other than in the commonly distributed copy."""
    notes = []
    if missing:
        notes.append(
            f'{spec}: {len(missing)} of the {found + len(missing)} files that {annotation.path} lists are not under '
            f'{folder}, such as {missing[0]}; they are left out'
        )
    expected = known.splits[spec.split]
    if expected is not None and found != expected:
        notes.append(f'{spec}: {found} files, usual are {expected}; scores on other files are other scores')
    if known.classes and len(annotation.class_names) != known.classes:
        notes.append(f'{spec}: {len(annotation.class_names)} classes, published are {known.classes}')
    return notes
