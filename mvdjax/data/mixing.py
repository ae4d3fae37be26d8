"""Mixtures: several lists that are trained on as one, each with its share of the samples."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mvdjax import keywords
from mvdjax.data.schema import Record
from mvdjax.data.sources import FileList, read_list
from mvdjax.errors import UserError

LABELS = ('same', 'joined')


@dataclasses.dataclass(frozen=True)
class Source:
    """A list of a mixture, as a config's `data.mixture.<name>` section states it.

    Attributes:
      files: the list, see `sources.read_list`.
      weight: its share of the samples, relative to the other sources' weights: 0.7 and 0.3, or 7 and 3.
      root: folder of relative paths; '' is the list's own.
      class_file: class names, or ''.
      num_classes: labels must be below it; None takes the class names' number.
      options: arguments of the recipe that differ from `data.options` for this source, e.g. the stride.
    """

    files: str
    weight: float
    root: str = ''
    class_file: str = ''
    num_classes: int | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuses a source that would never come up."""
        if not 1e-6 <= self.weight < float('inf'):
            raise UserError(
                f'the weight of {self.files} in data.mixture must be at least 0.000001, not {self.weight}: leave a '
                'source out to train without it'
            )


@dataclasses.dataclass(frozen=True)
class Part:
    """Where the records of a source lie in a mixture's list, and how often they come.

    Attributes:
      name: of the source.
      start: its first record.
      stop: one past its last.
      weight: as in the config.
      options: of the recipe, over the mixture's own.
    """

    name: str
    start: int
    stop: int
    weight: float
    options: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class MixedList(FileList):
    """The lists of a mixture one after the other, labels already in one class space.

    Attributes:
      parts: the sources, in the order of their records.
      labels: how their labels were brought together, one of LABELS, or None if they have no common meaning.
    """

    parts: tuple[Part, ...] = ()
    labels: str | None = None


def parts_of(files: FileList) -> tuple[Part, ...]:
    """The parts of a mixture; a plain list is one part, all of it."""
    return files.parts if isinstance(files, MixedList) else (Part('', 0, len(files.records), 1.0, None),)


def read_mixture(mixture: Mapping[str, Mapping[str, Any]], labels: str | None) -> MixedList:
    """Reads the lists of a mixture.

    Args:
      mixture: name -> section of `Source`.
      labels: 'same': the sources have the same classes, and must say so by their class names or their number;
        'joined': the classes of each source follow those of the one before; None: nobody asks for labels.

    Raises:
      UserError: as `sources.read_list`; or labels that cannot be brought together as asked.
    """
    if labels not in (None, *LABELS):
        raise UserError(
            f'data.labels must be one of {", ".join(LABELS)} or None, not {labels!r}; '
            f'{keywords.nearest(labels, LABELS)}it says how the labels of data.mixture belong together'
        )
    sources = {
        name: keywords.build(Source, section, f'config.data.mixture.{name}') for name, section in mixture.items()
    }
    lists = {n: read_list(s.files, s.root, s.num_classes, s.class_file) for n, s in sources.items()}
    classes = {name: sources[name].num_classes or len(lists[name].class_names) for name in sources}
    if labels:
        for name, count in classes.items():
            if not count:
                raise UserError(
                    f'data.labels is {labels!r}, but data.mixture.{name} does not say what its classes are: give it a '
                    'class_file, or num_classes'
                )
    if labels == 'same':
        _check_same(lists, classes)
    records: list[Record] = []
    names: list[str] = []
    parts, offset = [], 0
    for name, files in lists.items():
        start = len(records)
        records += [dataclasses.replace(r, label=r.label + offset) if r.label >= 0 else r for r in files.records]
        parts.append(Part(name, start, len(records), sources[name].weight, sources[name].options))
        if labels == 'joined':
            names += files.class_names or [f'{name} {i}' for i in range(classes[name])]
            offset += classes[name]
    if labels == 'same':
        names = list(next(iter(lists.values())).class_names)
    elif not any(files.class_names for files in lists.values()):
        names = []  # numbers made into names would only look like names
    path = ' + '.join(files.path for files in lists.values())
    return MixedList(path, tuple(records), tuple(names), parts=tuple(parts), labels=labels)


def _check_same(lists: Mapping[str, FileList], classes: Mapping[str, int]) -> None:
    """Raises UserError unless all sources have the same classes."""
    first = next(iter(lists))
    for name, files in lists.items():
        wrong = ''
        if classes[name] != classes[first]:
            wrong = f'{name} has {classes[name]} classes, {first} has {classes[first]}'
        elif files.class_names != lists[first].class_names:
            pairs = list(zip(files.class_names, lists[first].class_names, strict=False))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            wrong = (
                f'class {at} is {files.class_names[at]!r} in {name} and {lists[first].class_names[at]!r} in {first}'
                if at is not None
                else f'only one of {name} and {first} names its classes'
            )
        if wrong:
            raise UserError(
                f"data.labels is 'same', but {wrong}: give both the same class_file, or set data.labels to 'joined'"
            )
