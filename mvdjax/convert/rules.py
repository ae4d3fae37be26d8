"""Rules between our parameters and PyTorch's, applied strictly: every tensor of either side is used exactly once."""

import dataclasses
import math
import re
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Protocol

import ml_dtypes
import numpy as np

from mvdjax.convert.layouts import Layout, Shape
from mvdjax.errors import UserError

TABLE_TOLERANCE = 1e-5  # of a fixed sin-cos table in a file: made in float32 by some, in float64 by others
TABLE_DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)  # that files store such tables in


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of our leaves and the PyTorch tensors that hold it.

    Attributes:
      ours: path of the leaf.
      theirs: names; with a `depth`, each contains '{}' for the number of the block.
      layout: how the values lie there.
      depth: blocks stacked on the leading axis of our leaf, or 0 for a leaf that is not stacked.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout
    depth: int = 0

    def names(self) -> list[list[str]]:
        """The tensors of each block (of the one leaf, if it is not stacked)."""
        return [[name.format(i) for name in self.theirs] for i in range(self.depth)] or [list(self.theirs)]

    def shapes(self, shape: Shape) -> list[Shape]:
        """Shapes of `theirs` for a leaf of this shape."""
        return self.layout.shapes(shape[1:] if self.depth else shape)


class Tensors(Protocol):
    """PyTorch tensors by name, each of which can be taken out once; a dict will do."""

    def __contains__(self, name: object, /) -> bool:
        """Whether it is still there."""

    def pop(self, name: str, /) -> np.ndarray:
        """The tensor."""


def _several(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def check_source(
    rules: Sequence[Rule],
    tables: Mapping[str, np.ndarray],
    shapes: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    ignore: Sequence[str],
) -> list[str]:
    """Checks, before anything is read, that the rules use every tensor of a source and fill every one of our leaves.

    Args:
      rules: of the family.
      tables: fixed tables of the family by name; they may be in a file.
      shapes: of the tensors in the source.
      expected: shapes of our leaves.
      ignore: regexes of tensors that may be left over.

    Returns:
      Names of the tensors left over, all allowed.

    Raises:
      UserError: a tensor is missing, left over, or of another shape.
    """
    if set(expected) != {rule.ours for rule in rules}:
        odd = set(expected) ^ {rule.ours for rule in rules}
        raise UserError(f'the family has no rule for {_several(sorted(odd))}: the file mixes two kinds of model')
    wanted = {
        n: s for r in rules for names in r.names() for n, s in zip(names, r.shapes(expected[r.ours]), strict=True)
    }
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise UserError(f'the file lacks {_several(missing)}: it is of another family, or incomplete')
    wrong = [f'{n} is {shapes[n]}, expected {s}' for n, s in wanted.items() if shapes[n] != s]
    if wrong:
        raise UserError(f'the file does not fit the model read off it: {"; ".join(wrong[:3])}')
    left = [name for name in shapes if name not in wanted and name not in tables]
    unknown = [name for name in left if not any(re.search(pattern, name) for pattern in ignore)]
    if unknown:
        raise UserError(
            f'{_several(unknown)} of the file {"has" if len(unknown) == 1 else "have"} no place in the model; '
            'name with --ignore=REGEX what may be left behind'
        )
    return left


def check_tables(tables: Mapping[str, np.ndarray], source: Tensors) -> dict[str, float]:
    """Takes the fixed tables out of a source and compares them with ours.

    Returns:
      {name: largest difference} of those that the source has.

    Raises:
      UserError: a table is another one.
    """
    found = {}
    for name, table in tables.items():
        if name not in source:
            continue
        theirs = source.pop(name)
        if theirs.shape != table.shape:
            raise UserError(f'{name} is {theirs.shape}, but inputs of the given size make {table.shape}: give --input')
        found[name] = float(np.abs(theirs - table).max())
        rounded = min(float(np.abs(theirs - table.astype(dtype)).max()) for dtype in TABLE_DTYPES)
        if not rounded <= TABLE_TOLERANCE:
            raise UserError(
                f'{name} is up to {found[name]:.1e} away from the fixed sin-cos table of this family: the file holds '
                'learned positions, or positions of another grid'
            )
    return found


def to_ours(rule: Rule, source: Tensors, shape: Shape) -> np.ndarray:
    """A leaf, float32, from a checked source, whose tensors are taken out on the way."""
    leaf = np.empty(shape, np.float32)
    for i, names in enumerate(rule.names()):
        block = leaf[i] if rule.depth else leaf
        block[...] = rule.layout.to_ours([source.pop(n) for n in names], block.shape)
    return leaf


def to_theirs(
    rules: Sequence[Rule],
    tables: Mapping[str, np.ndarray],
    leaves: MutableMapping[str, np.ndarray],
    shapes: Mapping[str, Shape],
) -> dict[str, np.ndarray]:
    """PyTorch tensors, contiguous float32, from all of our leaves (of these shapes), which are emptied on the way.

    Raises:
      UserError: a leaf is missing, or left over.
    """
    missing = [rule.ours for rule in rules if rule.ours not in shapes]
    left = sorted(set(shapes) - {rule.ours for rule in rules})
    if missing or left:
        says = f'lacks {_several(missing)}' if missing else f'has {_several(left)} beyond it'
        raise UserError(f'the checkpoint does not fit this family: it {says}')
    tensors = {name: table.copy() for name, table in tables.items()}
    # The largest first: while it and the bytes that it was read from lie in memory side by side, little else does.
    for rule in sorted(rules, key=lambda rule: -math.prod(shapes[rule.ours])):
        leaf = np.require(leaves.pop(rule.ours), np.float32, ('C', 'W'))
        for names, block in zip(rule.names(), leaf if rule.depth else [leaf], strict=True):
            tensors |= dict(zip(names, _in_place(block, rule.layout.to_theirs(block)), strict=True))
    return tensors


def _in_place(block: np.ndarray, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The parts (all values of the block, rearranged), contiguous, in the block's own memory, which is overwritten."""
    values = np.concatenate([part.reshape(-1) for part in parts])
    np.copyto(block.reshape(-1), values)
    ends = np.cumsum([part.size for part in parts])
    return [block.reshape(-1)[end - part.size : end].reshape(part.shape) for part, end in zip(parts, ends, strict=True)]


def format_table(
    rules: Sequence[Rule], tables: Mapping[str, float], left: Sequence[str], expected: Mapping[str, Shape]
) -> str:
    """A line for every rule, with the shapes of both sides; every tensor of either side is in exactly one."""
    rows = []
    for rule in rules:
        blocks = f'{{0..{rule.depth - 1}}}'
        shapes = rule.shapes(expected[rule.ours])
        for name, shape in zip(rule.theirs, shapes, strict=True):
            rows.append((name.replace('{}', blocks), str(shape), rule.ours, str(expected[rule.ours])))
    rows += [(name, '', f'fixed sin-cos table, recomputed ({apart:.0e} apart)', '') for name, apart in tables.items()]
    rows += [(name, '', 'left behind (--ignore)', '') for name in left]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f'  {a:<{widths[0]}} {b:<{widths[1]}} {c:<{widths[2]}} {d}'.rstrip() for a, b, c, d in rows]
    tensors = sum(len(rule.theirs) * max(1, rule.depth) for rule in rules)
    values = sum(int(np.prod(shape)) for shape in expected.values())
    total = f'  {tensors} PyTorch tensors, {len(rules)} leaves here, {values / 1e6:.3f} M values'
    return '\n'.join(['  PyTorch <-> mvdjax', *lines, total])
