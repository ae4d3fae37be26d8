"""Which sample comes when: arithmetic on whole numbers, so that nothing about a position in the data needs saving.

Sample i of step k has the global number n = k * batch + i. Whatever is shown as number n is a function of (seed, n):
the number of workers, threads, processes or restarts does not enter.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import grain
import numpy as np

WINDOW = 256  # samples of a mixture whose sources are shuffled among each other


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The global sample numbers that this process reads, from `start_step` on.

    Every batch is cut into `of` equal parts; `parts` are those whose rows this process's devices hold.
    """

    records_per_batch: int
    start_step: int
    steps: int
    parts: tuple[int, ...]
    of: int

    @property
    def local(self) -> int:
        """Records of each batch that this process reads."""
        return self.records_per_batch // self.of * len(self.parts)

    def __len__(self) -> int:
        """Records this process reads."""
        return (self.steps - self.start_step) * self.local

    def __getitem__(self, position: int) -> int:
        """Global number of the record at this position."""
        if not 0 <= position < len(self):
            raise IndexError(position)  # or iteration would never end
        rows = self.records_per_batch // self.of
        step, place = divmod(position, self.local)
        part, row = divmod(place, rows)
        return (self.start_step + step) * self.records_per_batch + self.parts[part] * rows + row

    def after(self, steps: int) -> 'Numbers':
        """The same without the first `steps` batches."""
        return dataclasses.replace(self, start_step=self.start_step + steps)


def epochs(length: int, seed: int) -> Any:
    """An endless walk over 0 .. length - 1 as something that takes [n]: each epoch a new permutation.

    It is computed by index: no list is ever shuffled or stored.
    """
    return grain.MapDataset.range(length).shuffle(seed=seed).repeat()


def named_seed(seed: int, name: str) -> int:
    """A seed for something that has a name, independent of what else there is: a source, a stream."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])


def shares(weights: Sequence[float]) -> tuple[Fraction, ...]:
    """Weights, in any unit, as exact fractions that sum to one."""
    exact = [Fraction(weight).limit_denominator(10**6) for weight in weights]
    return tuple(weight / sum(exact) for weight in exact)


def _counts(number: int, parts: tuple[Fraction, ...]) -> list[int]:
    """How many of the samples 0 .. number - 1 each part gives: within two of its exact share, for any number.

    The first part takes its share, rounded down, the second its share of what is left, and so on: as `number` grows by
    one, exactly one of the counts does.
    """
    counts, left, share_left = [], number, Fraction(1)
    for share in parts[:-1]:
        counts.append(left * share // share_left)
        left, share_left = left - counts[-1], share_left - share
    return [*counts, left]


@functools.lru_cache(maxsize=64)
def _window(parts: tuple[Fraction, ...], seed: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(WINDOW,) part of each sample of a window and (WINDOW,) its place in the sequence of that part's samples."""
    counts = [_counts(window * WINDOW + i, parts) for i in range(WINDOW + 1)]
    taken = np.diff(np.array(counts), axis=0).argmax(axis=1)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(b'mixture'), window])))
    taken = rng.permutation(taken)
    places = np.empty(WINDOW, np.int64)
    for part, start in enumerate(counts[0]):
        rows = taken == part
        places[rows] = start + np.arange(rows.sum())
    return taken, places


def mixed(number: int, parts: tuple[Fraction, ...], seed: int) -> tuple[int, int]:
    """Of sample `number` of a mixture: the part it comes from, and how many samples of that part came before it.

    Every window of 256 samples has the parts' shares, to a sample or two, in an order of its own.
    """
    if len(parts) == 1:
        return 0, number
    window, row = divmod(number, WINDOW)
    taken, places = _window(parts, seed, window)
    return int(taken[row]), int(places[row])
