"""What crosses from the host to the device: flat dicts of NumPy arrays, described here once.

    video           uint8 (b, t, h, w, 3): RGB in [0, 255], normalised on the device; an image is a clip of one frame.
                    In evaluation uint8 (b, views, t, h, w, 3).
    teacher_video   uint8 (b, t, h, w, 3): the same crop at the image teacher's input size, where that differs.
    token_video     uint8 (b, t, h, w, 3): the same crop at the size that BEVT's tokenizer takes.
    mask            bool (b, tokens): True = masked, tokens in t, h, w order, a fixed count in each row (BEVT: varying).
    label           int32 (b,): class.
    erase           int32 (b, 4): top, left, height, width of the random-erasing box; zeros = none.
    index           int32 (b,): evaluation: place in the list.
    valid           bool (b,): evaluation: False = padding, or a file that could not be decoded.

Decoding makes RGB. Models and tasks take any number of channels, one per value of `mean` and `std` of the model
section; batches of another number than 3 come from a pipeline of the user's own.

Training batches carry `substituted`, int32 (b,): how many files failed before this sample was found. The loop counts
it and removes it; it never reaches a device.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Sample = dict[str, Any]  # name -> NumPy array or scalar
SUBSTITUTED = 'substituted'


def stack_views(samples: Sequence[Sample]) -> Sample:
    """One sample as it is; several, all with the same keys, stacked on a leading axis."""
    if len(samples) == 1:
        return samples[0]
    return {name: np.stack([s[name] for s in samples]) for name in samples[0]}


@dataclasses.dataclass(frozen=True, slots=True)  # there may be millions, in every worker
class Record:
    """A line of a list: the file, its class, and where the line stands, for messages."""

    path: str
    label: int
    line: int


@dataclasses.dataclass(frozen=True)
class FileList:
    """A list that was read.

    Attributes:
      path: the list's own path.
      records: its lines in order.
      class_names: class names by number, empty if none were given.
      notes: what a reader of the run's output should know about the list, a sentence each.
    """

    path: str
    records: tuple[Record, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Recipe(Protocol):
    """Makes the sample of a record: decoding, cropping, masking. A picklable pure function of its arguments.

    Attributes:
      views: samples made of one record (repeated augmentation); arrays then have a leading axis of that length.
    """

    @property
    def views(self) -> int:
        """Samples per record."""

    def blank(self) -> Sample:
        """A sample of zeros: its shapes and types are those of every sample, and no file is needed to know them."""

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """Reads the file. Raises `decode.DecodeError` if it cannot be read."""
