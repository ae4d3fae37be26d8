"""Reading a list although some of its lines are wrong, and writing it without them.

What a line may be is known to `sources.read_list` alone, which stops at the first wrong one. Here it is asked again
without that line, block by block, until nothing is left to complain of.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Collection, Sequence

from mvdjax.data import media
from mvdjax.data.sources import FileList, read_list
from mvdjax.errors import UserError

_SUFFIXES = ('.txt', '.csv', '.tsv', '.jsonl')  # of lists in an object store
_MOST = 1000  # wrong lines that are collected before it is no list of files
_BLOCK = 500  # lines read again for every wrong one among them


@dataclasses.dataclass(frozen=True)
class BadLine:
    """A line of a list that means nothing: its number, from 1, what stands there, and what is wrong with it."""

    line: int
    text: str
    problem: str


@dataclasses.dataclass(frozen=True)
class CheckedList:
    """A list without its wrong lines.

    Attributes:
      files: what `read_list` makes of it; `files.path` is the list's own path.
      bad_lines: what it would have stopped at, in order.
      root: the folder that its relative paths start from, absolute if it is local.
      lines: its text, as it stands in the file; None of a data set that is no text file.
    """

    files: FileList
    bad_lines: tuple[BadLine, ...]
    root: str
    lines: tuple[str, ...] | None

    @property
    def relative(self) -> bool:
        """Whether a path in the text starts from `root`."""
        if self.lines is None:
            return False
        return any(record.path not in self.lines[record.line - 1] for record in self.files.records)


def read_whole(path: str, root: str, num_classes: int | None, class_file: str) -> CheckedList:
    """Reads a list and collects its wrong lines.

    Args:
      path: as `sources.read_list`, and the others.
      root: likewise.
      num_classes: likewise.
      class_file: likewise.

    Raises:
      UserError: there is no such list, no line of it is good, or what is wrong with it is not in a line.
    """
    folder = root if media.scheme(root) else os.path.abspath(root) if root else media.folder_of(path)
    remote = media.scheme(path) and path.endswith(_SUFFIXES)
    lines = tuple(media.read_text(path, 'list').split('\n')) if os.path.isfile(path) or remote else None
    try:
        return CheckedList(read_list(path, folder if lines else root, num_classes, class_file), (), folder, lines)
    except UserError as error:
        if lines is None or not _complaint(str(error), path):
            raise

    with tempfile.TemporaryDirectory() as temporary:
        copy = os.path.join(temporary, os.path.basename(path))

        def read(chosen: Sequence[str]) -> FileList:
            with open(copy, 'w', encoding='utf-8', newline='') as file:
                file.write('\n'.join(chosen))
            return read_list(copy, folder, num_classes, class_file)

        try:
            problems = _find_problems(read, copy, lines)
            kept = [line if i not in problems else '' for i, line in enumerate(lines)]
            files = read(kept)
        except UserError as error:
            raise UserError(str(error).replace(copy, path)) from error
    bad = tuple(BadLine(i + 1, lines[i].strip(), problems[i]) for i in sorted(problems))
    return CheckedList(dataclasses.replace(files, path=path), bad, folder, lines)


def _complaint(text: str, path: str) -> tuple[int, str] | None:
    """(line, problem) of an error that names a line of the list; None of another."""
    found = re.match(rf'{re.escape(path)}:(\d+): (.*)', text, re.DOTALL)
    return (int(found[1]), found[2]) if found else None


def _find_problems(read: Callable[[Sequence[str]], object], copy: str, lines: Sequence[str]) -> dict[int, str]:
    """{place in `lines`: what is wrong with it}.

    Every block is read behind the list's first good line, which may be a heading. Then the whole list is: some things
    are wrong only beside another line.
    """
    problems: dict[int, str] = {}
    filled = [i for i, line in enumerate(lines) if line.strip()]
    for start in range(0, len(filled), _BLOCK):
        block = filled[start : start + _BLOCK]
        while True:
            first = next((i for i in filled if i not in problems), block[0])
            places = list(dict.fromkeys([first, *(i for i in block if i not in problems)]))
            if not _add_problem(read, copy, lines, places, problems):
                break
    while _add_problem(read, copy, lines, [i for i in filled if i not in problems], problems):
        pass
    return problems


def _add_problem(
    read: Callable[[Sequence[str]], object],
    copy: str,
    lines: Sequence[str],
    places: Sequence[int],
    problems: dict[int, str],
) -> bool:
    """Reads the lines at these places; notes what is wrong with one of them. False: nothing is."""
    if len(problems) > _MOST:
        raise UserError(
            f'{copy}: more than {_MOST} lines are wrong, such as line {min(problems) + 1}: '
            f'{problems[min(problems)]}; is it a list at all, and does its first line show how the others are written?'
        )
    try:
        read([lines[i] for i in places])
    except UserError as error:
        found = _complaint(str(error), copy)
        if found and found[0] <= len(places):
            problems[places[found[0] - 1]] = found[1]
            return True
    return False


def write_clean(checked: CheckedList, dropped: Collection[int], path: str | os.PathLike[str]) -> int:
    """Writes a list without some lines.

    A text list keeps its format, heading and all other lines as they were, so relative paths start from the same
    folder as before (`checked.root`). Anything else becomes lines of `path label`.

    Args:
      checked: the list; its wrong lines are left out in any case.
      dropped: numbers of other lines to leave out.
      path: of the file to write.

    Returns:
      The number of files listed.

    Raises:
      OSError: it cannot be written.
    """
    out = {*dropped, *(bad.line for bad in checked.bad_lines)}
    records = [record for record in checked.files.records if record.line not in out]
    if checked.lines is None:
        text = ''.join(f'{r.path} {r.label}\n' if r.label >= 0 else f'{r.path}\n' for r in records)
    else:
        text = '\n'.join(line for number, line in enumerate(checked.lines, start=1) if number not in out)
    with open(path, 'w', encoding='utf-8', newline='') as file:
        file.write(text)
    return len(records)
