"""Samples from a worker to the main process through memory that is kept.

Grain passes each array in a new piece of shared memory. For a clip of 2.4 MB the kernel then has to find and clear 600
pages, to map them in both processes and to take them back: a tenth of what decoding the clip costs. Here a worker
writes a sample into a slot that is free again, and what goes through Grain is where it lies.

The memory is a file without a name (Linux' memfd): nothing is left behind however a run ends, and it takes no room in
/dev/shm. It is read and written rather than mapped, so that no process has it in its own memory.
"""

import dataclasses
import mmap
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mvdjax.data.schema import Sample

LEAST_BYTES = 2**16  # smaller arrays are pickled


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where an array of a sample lies.

    Attributes:
      worker: in whose file.
      slot: in which slot of it.
      offset: in the file, in bytes.
      shape: the array's.
      dtype: the array's.
    """

    worker: int
    slot: int
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


def kind(value: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array, stored or not, or of a number."""
    return (value.shape, value.dtype) if isinstance(value, Stored) else (np.shape(value), np.asarray(value).dtype)


def _large(sample: Sample) -> dict[str, np.ndarray]:
    """Its arrays that are not pickled."""
    arrays = {name: value for name, value in sample.items() if isinstance(value, np.ndarray) and value.ndim}
    return {name: a for name, a in arrays.items() if a.nbytes >= LEAST_BYTES and not a.dtype.hasobject}


def large_bytes(sample: Sample) -> int:
    """Bytes of its arrays that go through memory that processes share."""
    return sum(value.nbytes for value in _large(sample).values())


def _flag_bytes(slots: int) -> int:
    """Whole pages of a byte for each slot."""
    return -(-slots // mmap.PAGESIZE) * mmap.PAGESIZE


class _Flags:
    """The beginning of a file: for each slot whether it is full (1) or free (0)."""

    def __init__(self, file: int, slots: int) -> None:
        self.bytes = _flag_bytes(slots)
        self._slots = slots
        self._map = mmap.mmap(file, self.bytes)

    def free(self) -> int:
        """The first free slot, so that no more are ever touched than were full at once; -1 if there is none."""
        return self._map.find(b'\0', 0, self._slots)

    def set(self, slot: int, full: int) -> None:
        self._map[slot] = full


class Place(NamedTuple):
    """Where other processes find a file without a name, and which one it is."""

    path: str
    device: int
    inode: int


def _open(place: Place) -> int:
    """Opens the file. Raises OSError, also where /proc is not this process's and has another file there."""
    file = os.open(place.path, os.O_RDWR)
    found = os.fstat(file)
    if (found.st_dev, found.st_ino) != (place.device, place.inode):
        os.close(file)
        raise FileNotFoundError(place.path)
    return file


class Writer:
    """A worker's side."""

    def __init__(self, place: Place, worker: int, slots: int) -> None:
        """`place` is `Memory.places[worker]`, `slots` the memory's; a slot gets the size of the first sample.

        Raises OSError if the file may not be opened, or another one is there.
        """
        self._file = _open(place)
        self._flags, self._worker, self._slot_bytes = _Flags(self._file, slots), worker, 0

    def put(self, sample: Sample) -> Sample:
        """The sample with its large arrays stored; as it is, for Grain to pass on, if there is no room for it."""
        large = {name: np.ascontiguousarray(value) for name, value in _large(sample).items()}
        need = sum(value.nbytes for value in large.values())
        self._slot_bytes = self._slot_bytes or need
        slot = self._flags.free()
        if not need or need > self._slot_bytes or slot < 0:
            return sample
        offset, stored = self._flags.bytes + slot * self._slot_bytes, {}
        try:
            for name, value in large.items():
                stored[name] = Stored(self._worker, slot, offset, value.shape, value.dtype)
                offset = self._write(value, offset)
        except OSError:  # a limit on memory or on the size of files
            return sample
        self._flags.set(slot, 1)
        return {**sample, **stored}

    def _write(self, value: np.ndarray, offset: int) -> int:
        rest = value.reshape(-1).view(np.uint8).data
        while rest:
            count = os.pwrite(self._file, rest, offset)
            rest, offset = rest[count:], offset + count
        return offset

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)


class Memory:
    """The main process's side: a file for each worker of a stream."""

    def __init__(self, workers: int, slots: int) -> None:
        """Raises OSError, AttributeError where the system has no such files, or no paths to them."""
        self.slots = slots
        self._files: list[int] = []
        self._flags: list[_Flags] = []
        self.places: list[Place] = []
        try:
            for worker in range(workers):
                file = os.memfd_create(f'mvdjax-worker-{worker}')
                self._files.append(file)
                os.truncate(file, _flag_bytes(slots))
                self._flags.append(_Flags(file, slots))
                found = os.fstat(file)
                self.places.append(Place(f'/proc/{os.getpid()}/fd/{file}', found.st_dev, found.st_ino))
                os.close(_open(self.places[-1]))
        except OSError:
            self.close()
            raise

    def stack(self, values: Sequence[Any]) -> np.ndarray:
        """Arrays of one shape, stored or not, on a new leading axis."""
        if not any(isinstance(value, Stored) for value in values):
            return np.stack(values)
        shape, dtype = kind(values[0])
        out = np.empty((len(values), *shape), dtype)
        for place, value in enumerate(values):
            if isinstance(value, Stored):
                self._read(value, out[place])
            else:
                out[place] = value
        return out

    def _read(self, stored: Stored, out: np.ndarray) -> None:
        rest, offset = out.reshape(-1).view(np.uint8).data, stored.offset
        while rest:
            count = os.preadv(self._files[stored.worker], [rest], offset)
            if not count:
                raise RuntimeError(f'the memory of data worker {stored.worker} ends before its sample')
            rest, offset = rest[count:], offset + count

    def free(self, sample: Sample) -> None:
        """Gives the slot of a sample back to its worker."""
        for stored in sample.values():
            if isinstance(stored, Stored):
                self._flags[stored.worker].set(stored.slot, 0)

    def close(self) -> None:
        """Lets go of the files."""
        while self._files:
            os.close(self._files.pop())
        self._flags.clear()


def memory(workers: int, slots: int) -> Memory | None:
    """Memory of so many slots for each worker; None where the system has none such: then Grain passes all on."""
    try:
        return Memory(workers, slots)
    except (OSError, AttributeError):
        return None
