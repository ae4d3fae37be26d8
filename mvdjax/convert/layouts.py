"""How one of our leaves is laid out in PyTorch: shapes there, and both directions, on NumPy arrays, without a copy
where a view will do."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

Shape = tuple[int, ...]


class Layout(Protocol):
    """A reversible rearrangement of values; nothing is computed."""

    def shapes(self, shape: Shape) -> list[Shape]:
        """Shapes of the PyTorch tensors that make up a leaf of this shape."""

    def to_ours(self, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """The leaf of this shape from tensors of `shapes(shape)`."""

    def to_theirs(self, leaf: np.ndarray) -> list[np.ndarray]:
        """The inverse of `to_ours`."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """`nn.Linear.weight` (out, in), ours with the inputs first and either side split into heads.

    Attributes:
      inputs: leading axes of our kernel that are inputs.
      parts: tensors that our outputs are spread over (query, key and value apart: 3).
    """

    inputs: int = 1
    parts: int = 1

    def shapes(self, shape: Shape) -> list[Shape]:
        """See `Layout`."""
        out = math.prod(shape[self.inputs :]) // self.parts
        return [(out, math.prod(shape[: self.inputs]))] * self.parts

    def to_ours(self, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """See `Layout`."""
        weight = tensors[0] if self.parts == 1 else np.concatenate(tensors)
        return weight.T.reshape(shape)

    def to_theirs(self, leaf: np.ndarray) -> list[np.ndarray]:
        """See `Layout`."""
        return np.split(leaf.reshape(math.prod(leaf.shape[: self.inputs]), -1).T, self.parts)


@dataclasses.dataclass(frozen=True)
class Vector:
    """A bias or a norm's scale, ours split into heads; `parts` tensors there."""

    parts: int = 1

    def shapes(self, shape: Shape) -> list[Shape]:
        """See `Layout`."""
        return [(math.prod(shape) // self.parts,)] * self.parts

    def to_ours(self, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """See `Layout`."""
        return np.concatenate(tensors).reshape(shape)

    def to_theirs(self, leaf: np.ndarray) -> list[np.ndarray]:
        """See `Layout`."""
        return np.split(leaf.reshape(-1), self.parts)


@dataclasses.dataclass(frozen=True)
class Token:
    """A token (D) or learned positions (t, h, w, D), there (1, tokens, D)."""

    def shapes(self, shape: Shape) -> list[Shape]:
        """See `Layout`."""
        return [(1, math.prod(shape[:-1]), shape[-1])]

    def to_ours(self, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """See `Layout`."""
        return tensors[0].reshape(shape)

    def to_theirs(self, leaf: np.ndarray) -> list[np.ndarray]:
        """See `Layout`."""
        return [leaf.reshape(self.shapes(leaf.shape)[0])]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A patch embedding: a convolution's weight (D, channels, *kernel), ours (prod(kernel) * channels, D)."""

    kernel: Shape
    channels: int

    def shapes(self, shape: Shape) -> list[Shape]:
        """See `Layout`."""
        return [(shape[-1], self.channels, *self.kernel)]

    def to_ours(self, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """See `Layout`."""
        return np.moveaxis(tensors[0], (0, 1), (-1, -2)).reshape(shape)

    def to_theirs(self, leaf: np.ndarray) -> list[np.ndarray]:
        """See `Layout`."""
        return [np.moveaxis(leaf.reshape(*self.kernel, self.channels, -1), (-1, -2), (0, 1))]


@dataclasses.dataclass(frozen=True)
class TransposedConvolution:
    """A transposed convolution's weight (in, out, *kernel), ours (in, t, h, w, out); a 2-D one's kernel has t = 1."""

    kernel: Shape

    def shapes(self, shape: Shape) -> list[Shape]:
        """See `Layout`."""
        return [(shape[0], shape[-1], *self.kernel)]

    def to_ours(self, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """See `Layout`."""
        return np.moveaxis(tensors[0], 1, -1).reshape(shape)

    def to_theirs(self, leaf: np.ndarray) -> list[np.ndarray]:
        """See `Layout`."""
        return [np.moveaxis(leaf.reshape(leaf.shape[0], *self.kernel, leaf.shape[-1]), -1, 1)]


@dataclasses.dataclass(frozen=True)
class BiasTable:
    """Relative position biases (rows, heads), ours (t, h, w, heads)."""

    def shapes(self, shape: Shape) -> list[Shape]:
        """See `Layout`."""
        return [(math.prod(shape[:-1]), shape[-1])]

    def to_ours(self, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """See `Layout`."""
        return tensors[0].reshape(shape)

    def to_theirs(self, leaf: np.ndarray) -> list[np.ndarray]:
        """See `Layout`."""
        return [leaf.reshape(self.shapes(leaf.shape)[0])]
