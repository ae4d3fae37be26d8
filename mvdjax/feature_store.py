"""The folder that `mvdjax features` writes: an array with a row for every line of the list, and what it is made of.

    features.npy       (videos, ...), in the order of the list; a video that could not be read is a row of NaN
    features.json      what was computed, from what; shapes; whether it is finished
    videos.jsonl       a line for every row: path, label, and an error where there is no feature
    bad_videos.jsonl   the files that could not be read

While it is written the array has another name, and grows batch by batch; a batch counts once its lines are written. So
a run that is interrupted at any moment goes on after the last whole batch. Rows without a feature may be amended later,
in place: first the numbers, then the lines.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvdjax import config as configs
from mvdjax import trees
from mvdjax.data.pack_state import write_json
from mvdjax.data.schema import Record
from mvdjax.errors import UserError
from mvdjax.integrity import fingerprint

FORMAT = 1
ABOUT, ARRAY, LINES, BAD = 'features.json', 'features.npy', 'videos.jsonl', 'bad_videos.jsonl'
UNFINISHED = ARRAY + '.unfinished'
DTYPES = ('float32', 'float16')
# What may differ when a run goes on: names, and what comes out in the end.
FREE = ('mvdjax', 'finished', 'checkpoint.path', 'videos.list', 'videos.unreadable')


def weights_digest(params: Any) -> str:
    """16 hexadecimal digits of the contents of host parameters, wherever their checkpoint lies."""
    leaves = {name: np.asarray(leaf) for name, leaf in trees.flatten(params).items()}
    facts = {name: [list(leaf.shape), str(leaf.dtype), fingerprint(leaf)] for name, leaf in leaves.items()}
    return digest(facts)


def digest(content: Any) -> str:
    """16 hexadecimal digits of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class FeatureStore:
    """Appends rows; made for a folder that holds nothing, or the beginning of the same features.

    Attributes:
      rows: how many are written.
      unreadable: how many of them are NaN.
      finished: whether the array has its name already.
    """

    def __init__(self, folder: str, about: Mapping[str, Any]) -> None:
        """Goes on with what is there.

        Args:
          folder: there, and this run's alone.
          about: becomes features.json, with `array` (shape, dtype).

        Raises:
          UserError: the folder holds other things, or there is no room for the array.
        """
        self._folder, self._about = Path(folder), {**about, 'finished': False}
        self._shape, self._dtype = tuple(about['array']['shape']), np.dtype(about['array']['dtype'])
        self._row = int(np.prod(self._shape[1:])) * self._dtype.itemsize
        self.rows = self.unreadable = 0
        before = check_folder(folder, about)
        self.finished = before is not None and before['finished'] and is_whole(folder, about)
        self._array = self._folder / (ARRAY if self.finished else UNFINISHED)
        if before is None:
            self._check_room(self._row * self._shape[0])
            with contextlib.suppress(FileNotFoundError):
                (self._folder / LINES).unlink()
            self._write_header()
            write_json(self._folder / ABOUT, self._about)
        else:
            if not self._array.exists() and (self._folder / ARRAY).exists():
                os.replace(self._folder / ARRAY, self._array)  # killed while it was finished
            self._find_end()
            self._check_room(self._row * (self._shape[0] - self.rows))

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise UserError(
                f'{self._folder}: {needed / 2**30:.3g} GiB are to be written and {free / 2**30:.3g} GiB are free: make '
                'room, give an --output elsewhere, or ask for less (--dtype=float16, --kind=clip)'
            )

    def _write_header(self) -> None:
        with open(self._array, 'wb') as file:
            entry = np.lib.format.dtype_to_descr(self._dtype)
            header = {'descr': entry, 'fortran_order': False, 'shape': self._shape}
            np.lib.format.write_array_header_1_0(file, header)
            self._start = file.tell()

    def _find_end(self) -> None:
        """The rows whose numbers and lines are both there; what is behind them is forgotten by `go_on`."""
        try:
            with open(self._array, 'rb') as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                self._start = file.tell()
            if (shape, dtype) != (self._shape, self._dtype):
                raise ValueError('another shape')
        except (OSError, ValueError):
            self._write_header()
        self.rows = min((self._array.stat().st_size - self._start) // self._row, len(_lines(self._folder)))

    def go_on(self, batch: int) -> int:
        """Cuts what is there to whole batches, so that the next one is made of the same videos as ever.

        Returns:
          How many batches there are.
        """
        done = self.rows // batch if self.rows < self._shape[0] else -(-self.rows // batch)
        self.rows = min(done * batch, self._shape[0])
        lines = _lines(self._folder)[: self.rows]
        self.unreadable = sum('error' in json.loads(line) for line in lines)
        if not self.finished:
            with open(self._array, 'r+b') as file:
                file.truncate(self._start + self.rows * self._row)
            self._replace_lines(lines)
        return done

    def _replace_lines(self, lines: Sequence[bytes]) -> None:
        temporary = self._folder / f'.{LINES}.tmp'
        with open(temporary, 'wb') as file:
            file.writelines(line + b'\n' for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._folder / LINES)

    def append(self, features: np.ndarray, records: Sequence[Record], errors: Sequence[str | None]) -> None:
        """Writes the next rows, to the disk.

        Args:
          features: float32, one row for each record.
          records: of the list, in its order.
          errors: why there is no feature; None where there is one.

        Raises:
          UserError: they cannot be written, or not in this dtype.
        """
        rows = self._converted(features, records, errors)
        lines = b''.join(_line(record, error) + b'\n' for record, error in zip(records, errors, strict=True))
        with self._told():
            _append(self._array, rows.tobytes())
            _append(self._folder / LINES, lines)
        self.rows += len(records)
        self.unreadable += sum(error is not None for error in errors)

    def amend(
        self, rows: Sequence[int], features: np.ndarray, records: Sequence[Record], errors: Sequence[str | None]
    ) -> None:
        """Writes rows that had no feature, where there is one now; the rest is as in `append`."""
        values, lines = self._converted(features, records, errors), _lines(self._folder)
        good = [place for place, error in enumerate(errors) if error is None]
        for row, record, error in zip(rows, records, errors, strict=True):
            lines[row] = _line(record, error)
        with self._told():
            if good:
                with open(self._array, 'r+b') as file:
                    for place in good:
                        file.seek(self._start + rows[place] * self._row)
                        file.write(values[place].tobytes())
                    file.flush()
                    os.fsync(file.fileno())
            self._replace_lines(lines)
        self.unreadable -= len(good)

    def _converted(self, features: np.ndarray, records: Sequence[Record], errors: Sequence[str | None]) -> np.ndarray:
        """Features as they are written."""
        with np.errstate(over='ignore'):
            rows = features.astype(self._dtype)
        if self._dtype == np.float16 and not np.array_equal(np.isinf(rows), np.isinf(features)):
            raise UserError(f'{records[0].path} and its neighbours have features too large for float16: use float32')
        rows[np.array([error is not None for error in errors])] = np.nan
        return rows

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What storage says to a write, as a sentence."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f'{self._folder} cannot be written ({error.strerror}): make room or mend it, and start the same '
                f'command again; it goes on after {self.rows} of {self._shape[0]} videos'
            ) from error

    def discard(self) -> None:
        """Forgets all rows: the next start begins anew."""
        (self._folder / LINES).unlink()

    def finish(self) -> None:
        """Gives the array its name and says that it is whole."""
        if not self.finished:
            os.replace(self._array, self._folder / ARRAY)
        about = {**self._about, 'finished': True}
        about['videos'] = {**about['videos'], 'unreadable': self.unreadable}
        write_json(self._folder / ABOUT, about)


def failures(folder: str) -> dict[int, str]:
    """{row: why it has no feature} of the rows that are written."""
    entries = (json.loads(line) for line in _lines(Path(folder)))
    return {row: entry['error'] for row, entry in enumerate(entries) if 'error' in entry}


def _lines(folder: Path) -> list[bytes]:
    """The lines of the rows, without one that a kill cut short."""
    try:
        return (folder / LINES).read_bytes().split(b'\n')[:-1]
    except FileNotFoundError:
        return []


def _line(record: Record, error: str | None) -> bytes:
    entry = {'path': record.path, 'label': record.label} | ({'error': error} if error else {})
    return json.dumps(entry).encode()


def _append(path: Path, content: bytes) -> None:
    with open(path, 'ab') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def is_whole(folder: str, about: Mapping[str, Any]) -> bool:
    """Whether the array of a folder and its lines are there, as large as features.json says."""
    try:
        array = np.load(Path(folder) / ARRAY, mmap_mode='r')
        lines = (Path(folder) / LINES).read_bytes().count(b'\n')
    except (OSError, ValueError):
        return False
    return [list(array.shape), str(array.dtype), lines] == [
        about['array']['shape'],
        about['array']['dtype'],
        len(array),
    ]


def check_folder(folder: str, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the features.json of a folder says, or None if there is nothing in it yet.

    Raises:
      UserError: it holds other features, or other things.
    """
    place = Path(folder)
    if not place.exists():
        return None
    if not place.is_dir():
        raise UserError(f'{folder} is a file: --output is a folder, new or of an interrupted run')
    if not (place / ABOUT).exists():
        if any(not path.name.startswith('.') and path.name != UNFINISHED for path in place.iterdir()):
            raise UserError(f'{folder} is not empty and holds no features; give another --output')
        return None
    try:
        before: dict[str, Any] = json.loads((place / ABOUT).read_text())
        old, new = configs.flat(before), configs.flat(json.loads(json.dumps(about)))
    except (ValueError, AttributeError):
        raise UserError(f'{place / ABOUT} is damaged: delete {folder}, or give another --output') from None
    other = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and key not in FREE]
    if other:
        what = '; '.join(f'{key} is {new.get(key)!r}, there it is {old.get(key)!r}' for key in other[:3])
        raise UserError(
            f'{folder} holds other features: {what}. Give the arguments that they were begun with, another --output, '
            'or delete the folder'
        )
    return before
