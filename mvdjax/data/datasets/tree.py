"""The folder of a data set: finding its annotation files by name and its media by the names in the annotations.

Where things lie below the folder does not matter: `annotations/`, `videos/`, one folder per class or per split, all
are found. Two files that could both be meant are an error, never a guess.
"""

import csv
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mvdjax.data import media
from mvdjax.data.schema import Record
from mvdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Item:
    """An annotated file.

    Attributes:
      keys: names under which it may lie, best first: 'stem' or 'folder/stem', without suffix.
      record: what it becomes; an empty path is filled with the file found.
    """

    keys: tuple[str, ...]
    record: Record


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A split as its annotation files state it.

    Attributes:
      path: the annotation file, for messages.
      items: its entries in order.
      class_names: class names by number.
      notes: what is odd about it, a sentence each.
    """

    path: str
    items: Sequence[Item]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Tree:
    """All files below a folder."""

    def __init__(self, root: str, name: str, suffixes: tuple[str, ...]) -> None:
        """Lists the folder.

        Args:
          root: the folder, local or in an object store.
          name: of the data set, for messages.
          suffixes: of its media files.
        """
        self.root, self.name = root, name
        self.files = media.walk(root)
        self._suffixes = suffixes

    def path(self, file: str) -> str:
        """The whole path of a file of `files`."""
        return media.join(self.root, file)

    def media(self) -> list[str]:
        """The media files among `files`."""
        return [file for file in self.files if file.lower().endswith(self._suffixes)]

    def maybe(self, *patterns: str) -> str | None:
        """The annotation file whose name fits the first of the patterns (regular expressions) that any name fits.

        Raises:
          UserError: several do, equally deep.
        """
        for pattern in patterns:
            found = [f for f in self.files if re.fullmatch(pattern, f.rpartition('/')[2], re.IGNORECASE)]
            if found:
                found.sort(key=lambda file: (file.count('/'), file))
                if len(found) > 1 and found[0].count('/') == found[1].count('/'):
                    raise UserError(
                        f'{self.name}: both {found[0]} and {found[1]} in {self.root} could be meant; keep one'
                    )
                return found[0]
        return None

    def need(self, wanted: str, *patterns: str) -> str:
        """As `maybe`.

        Raises:
          UserError: there is none; the message names `wanted`.
        """
        found = self.maybe(*patterns)
        if found is None:
            raise UserError(
                f'{self.name}: {wanted} is nowhere in {self.root}; put the annotation files of the data set, as '
                'they are distributed, beside its videos'
            )
        return found

    def lines(self, file: str) -> Iterator[tuple[int, str]]:
        """(line number, line) of the lines of a text file that are not blank."""
        text = media.read_text(self.path(file), 'annotation file')
        for number, line in enumerate(text.split('\n'), start=1):
            if line.strip():
                yield number, line.strip()

    def json(self, file: str) -> Any:
        """A JSON file.

        Raises:
          UserError: it is none.
        """
        try:
            return json.loads(media.read_text(self.path(file), 'annotation file'))
        except json.JSONDecodeError as error:
            raise UserError(
                f'{self.path(file)}:{error.lineno}: not JSON ({error.msg}); fetch the file again'
            ) from error

    def rows(self, file: str, delimiter: str = ',') -> Iterator[tuple[int, list[str]]]:
        """(line number, fields) of a CSV file.

        Raises:
          UserError: it is none.
        """
        lines = media.read_text(self.path(file), 'annotation file').splitlines()
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for fields in reader:
                if fields:
                    yield reader.line_num, [field.strip() for field in fields]
        except csv.Error as error:
            raise UserError(f'{self.path(file)}:{reader.line_num}: not CSV ({error}); fetch the file again') from error

    @functools.cached_property
    def _index(self) -> dict[str, list[str]]:
        """Media files by 'stem' and by 'folder/stem'."""
        index: dict[str, list[str]] = {}
        for file in self.media():
            parts = file.rpartition('.')[0].split('/')
            index.setdefault(parts[-1], []).append(file)
            if len(parts) > 1:
                index.setdefault('/'.join(parts[-2:]), []).append(file)
        return index

    def find(self, keys: Sequence[str], split: str) -> str | None:
        """The whole path of a media file, or None.

        Args:
          keys: names without suffix, best first.
          split: where several files have the name, those in a folder called after the split are meant.

        Raises:
          UserError: several files have the name.
        """
        for key in keys:
            found = self._index.get(key, [])
            if len(found) > 1:
                found = [f for f in found if any(part.lower().startswith(split) for part in f.split('/')[:-1])] or found
            if len(found) > 1:
                raise UserError(
                    f'{self.name}: both {found[0]} and {found[1]} in {self.root} are {key}; name a folder with one copy'
                )
            if found:
                return self.path(found[0])
        return None


def class_number(names: Sequence[str], name: str, where: str) -> int:
    """The number of a class.

    Raises:
      UserError: no such class.
    """
    try:
        return names.index(name)
    except ValueError:
        raise UserError(f'{where}: no class {name!r}; the annotation files are of different data sets') from None
