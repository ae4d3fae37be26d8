"""Samples from a worker to the main process through memory that is kept.

Grain passes each array in a new piece of shared memory. For a clip of 2.4 MB the kernel then has to find and clear 600
pages, to map them in both processes and to take them back: a tenth of what decoding the clip costs. Here a worker
writes a sample into a slot that is free again, and what goes through Grain is where it lies.

The memory is a file without a name (Linux' memfd): nothing is left behind however a run ends, and it takes no room in
/dev/shm. It is read and written rather than mapped, so that no process has it in its own memory.
"""

import dataclasses
import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

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


def size(value: Any) -> int:
    """Bytes of what `kind` takes."""
    shape, dtype = kind(value)
    return math.prod(shape) * dtype.itemsize


class _Flags:
    """The beginning of a file: for each slot whether it is full (1) or free (0)."""

    def __init__(self, file: int, slots: int) -> None:
        self.bytes = -(-slots // mmap.PAGESIZE) * mmap.PAGESIZE
        self._slots = slots
        self._map = mmap.mmap(file, self.bytes)

    def free(self) -> int:
        """The first free slot, so that no more are ever touched than were full at once; -1 if there is none."""
        return self._map.find(b'\0', 0, self._slots)

    def set(self, slot: int, full: int) -> None:
        self._map[slot] = full


class Writer:
    """A worker's side."""

    def __init__(self, path: str, worker: int, slots: int) -> None:
        """`path` is `Memory.paths[worker]`, `slots` the memory's; a slot gets the size of the first sample."""
        self._file = os.open(path, os.O_RDWR)
        self._flags, self._worker, self._slot_bytes = _Flags(self._file, slots), worker, 0

    def put(self, sample: Sample) -> Sample:
        """The sample with its large arrays stored; as it is, for Grain to pass on, if there is no room for it."""
        large = {
            name: np.ascontiguousarray(value)
            for name, value in sample.items()
            if isinstance(value, np.ndarray) and value.nbytes >= LEAST_BYTES and not value.dtype.hasobject
        }
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
        except OSError:  # out of memory
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
        """Raises OSError, AttributeError where the system has no such files, or not for other processes."""
        self.slots = slots
        self._files: list[int] = []
        self._flags: list[_Flags] = []
        try:
            for worker in range(workers):
                file = os.memfd_create(f'mvdjax-worker-{worker}')
                self._files.append(file)
                os.truncate(file, mmap.PAGESIZE * -(-slots // mmap.PAGESIZE))
                self._flags.append(_Flags(file, slots))
            self.paths = tuple(f'/proc/{os.getpid()}/fd/{file}' for file in self._files)
            for path in self.paths:
                os.close(os.open(path, os.O_RDWR))
        except OSError:
            self.close()
            raise

    def stack(self, values: Sequence[Any]) -> np.ndarray:
        """Arrays of one shape, stored or not, on a new leading axis."""
        if not any(isinstance(value, Stored) for value in values):
            return np.stack(values)
        shape, dtype = kind(values[0])
        out = np.empty((len(values), *shape), dtype)
        for row, value in zip(out, values, strict=True):
            if isinstance(value, Stored):
                self._read(value, row)
            else:
                row[...] = value
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
