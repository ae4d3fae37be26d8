"""Recipes that read nothing, so that whole epochs cost nothing, and that misbehave on demand."""

import ctypes
import dataclasses
import re
import resource
import time

import numpy as np

from mvdjax.data.decode import DecodeError
from mvdjax.data.pipeline import Data
from mvdjax.data.schema import FileList, Record

ENDLESS = (r'(a+)+$', 'a' * 60 + 'b')  # a match that never ends, and holds the interpreter's lock


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Echoes the record, and what was drawn for it.

    Attributes:
      width: of an array full of the line's number, to make shapes differ.
      labels: whether samples have any.
      faults: line -> 'broken', 'hang', 'sleep', 'crash' or 'odd'.
    """

    width: int = 1
    labels: bool = False
    views: int = 1
    faults: tuple[tuple[int, str], ...] = ()

    def __call__(self, record, rng):
        fault = dict(self.faults).get(record.line)
        if fault == 'broken':
            raise DecodeError(record.path, 'is broken')
        if fault == 'hang':
            re.match(*ENDLESS)
        if fault == 'sleep':
            time.sleep(1e6)
        if fault == 'crash':
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            ctypes.string_at(0)  # a real one: a signal from os.kill may arrive when the call is over
        if fault == 'odd':
            raise OddError(record.line, 'odd')
        sample = {
            'line': np.int32(record.line),
            'draw': rng.random(),
            'wide': np.full(self.width, record.line % 256, np.uint8),
        }
        return sample | ({'label': np.int32(record.label)} if self.labels else {})


class OddError(Exception):
    """Cannot be unpickled: that calls it with one argument."""

    def __init__(self, line, what):
        super().__init__(f'{what} on {line}')


@dataclasses.dataclass(frozen=True)
class FakeData(Data):
    fake: Recipe = Recipe()

    def make(self):
        return self.fake


def echo(count, fake=None, **options):
    """A data section and a list of `count` files, lines from 0."""
    data = FakeData(recipe='', options={}, fake=fake or Recipe(), **options)
    return data, FileList('list.txt', tuple(Record(f'{i}.mp4', 0, i) for i in range(count)), ())


def same(a, b):
    """Batches, flat or with sub-dicts, that are equal to the bit."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            if isinstance(x[name], dict):
                same([x[name]], [y[name]])
            else:
                np.testing.assert_array_equal(x[name], y[name])


def joined(parts):
    """The global batches of processes that each read their rows."""
    if isinstance(parts[0][0], dict) and isinstance(next(iter(parts[0][0].values())), dict):
        names = parts[0][0]
        streams = {n: joined([[batch[n] for batch in part] for part in parts]) for n in names}
        return [{n: streams[n][k] for n in names} for k in range(len(parts[0]))]
    return [{n: np.concatenate([part[k][n] for part in parts]) for n in parts[0][k]} for k in range(len(parts[0]))]
