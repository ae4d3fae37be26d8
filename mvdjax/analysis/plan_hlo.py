"""Reads a compiled program's text: matrix products, memory traffic and collectives, loops counted as often as they run.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count, and a scanned stack of layers is such
a loop. Here every computation is weighted with how often it is called.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Sequence

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
WIDTHS = {'pred': 1, 'bf16': 2, 'token': 0, 'opaque': 0}
# What moves no bytes by itself: names for what is there already, and instructions whose parts are counted elsewhere.
FREE = (
    *('parameter', 'get-tuple-element', 'tuple', 'constant', 'bitcast', 'while', 'conditional', 'call', 'after-all'),
    *('partition-id', 'replica-id', 'opt-barrier', 'add-dependency', 'custom-call-done', 'async-done'),
)
ARRAY = re.compile(r'\b(pred|token|opaque|[a-z]+\d+\w*)\[([\d,<=]*)\](\{[^}]*\})?')
NAME = re.compile(r'%([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation; `shape` is the text of its result's type, `literal` that of a constant's value."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool
    literal: str


@dataclasses.dataclass(frozen=True)
class Work:
    """What an instruction costs each time it runs, and how often: FLOPs of matrix products, bytes of memory traffic."""

    flops: float
    bytes: float
    times: float


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over groups of one size, per device and step.

    Attributes:
      kind: a name of `COLLECTIVES`.
      group: devices that take part in each.
      count: how many run.
      bytes: of their results (of the inputs, for reduce-scatter), summed.
      wire: bytes that a device sends, by the ring algorithm: (n - 1) / n of them, twice that for all-reduce.
    """

    kind: str
    group: int
    count: float
    bytes: float
    wire: float


def array_bytes(shape: str, fast: bool = True) -> float:
    """Bytes of the arrays in a type's text; `fast`: with those that live in on-chip memory (a TPU's VMEM)."""
    total = 0.0
    for dtype, sides, layout in ARRAY.findall(shape):
        if fast or 'S(1)' not in layout:
            total += math.prod(_sides(sides)) * _width(dtype)
    return total


def _width(dtype: str) -> float:
    if dtype in WIDTHS:
        return WIDTHS[dtype]
    bits = re.search(r'\d+', dtype)
    assert bits is not None
    return int(bits[0]) / 8


def _sides(text: str) -> list[int]:
    return [int(side.strip('<=')) for side in text.split(',') if side]


def _first_array(shape: str) -> list[int]:
    found = ARRAY.search(shape)
    return _sides(found[2]) if found else []


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += {'(': 1, ')': -1}.get(text[i], 0)
        if not depth:
            return i
    return len(text)


def elements(shape: str) -> list[str]:
    """The types in a tuple's type, one level down; of anything else, itself."""
    if not shape.startswith('('):
        return [shape]
    found, depth, start = [], 0, 1
    for i, letter in enumerate(shape):
        depth += {'(': 1, ')': -1, '{': 1, '}': -1, '[': 1, ']': -1}.get(letter, 0)
        if (letter == ',' and depth == 1) or (letter == ')' and not depth):
            found.append(shape[start:i].strip())
            start = i + 1
    return [f for f in found if f]


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(computation -> its instructions in the text's order, callees before callers; name of the entry)."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = '', None
    for line in text.splitlines():
        if line.startswith(('%', 'ENTRY')) and line.rstrip().endswith('{'):
            found = NAME.search(line)
            assert found is not None
            current = computations[found[1]] = []
            entry = found[1] if line.startswith('ENTRY') else entry
        elif line.startswith('}'):
            current = None
        elif current is not None and ' = ' in line:
            current.append(_instruction(line))
    return computations, entry


def _instruction(line: str) -> Instruction:
    left, _, right = re.sub(r'/\*.*?\*/', '', line).partition(' = ')
    end = _closing(right, 0) + 1 if right.startswith('(') else right.index(' ')
    shape, rest = right[:end], right[end:].strip()
    opening = rest.index('(')
    closing = _closing(rest, opening)
    inside, root = rest[opening + 1 : closing], left.strip().startswith('ROOT')
    name, opcode = left.strip().removeprefix('ROOT ').lstrip('%'), rest[:opening]
    return Instruction(name, shape, opcode, tuple(NAME.findall(inside)), rest[closing + 1 :], root, inside)


class Program:
    """A compiled program, read."""

    def __init__(self, text: str) -> None:
        """`text`: of `compiled.as_text()`, after optimisation."""
        self._computations, entry = parse(text)
        self._by_name = {i.name: i for c in self._computations.values() for i in c}
        self._unknown: set[str] = set()
        self._times: dict[str, float] = defaultdict(float, {entry: 1.0})
        self._inlined: set[str] = set()  # called by a fusion or the like: no traffic of their own
        for name in reversed(self._computations):
            for instruction in self._computations[name]:
                self._call(instruction, self._times[name])

    def _call(self, instruction: Instruction, times: float) -> None:
        for attribute, callees in re.findall(
            r'(\w+)=(\{%[^}]*\}|%[\w.\-]+)', instruction.attributes.partition('metadata=')[0]
        ):
            often = times
            if attribute in ('body', 'condition'):
                often *= self._trips(instruction)
            for callee in NAME.findall(callees):
                if callee in self._computations:
                    self._times[callee] += often
                    if attribute in ('calls', 'to_apply') and instruction.opcode != 'call':
                        self._inlined.add(callee)

    def _trips(self, loop: Instruction) -> float:
        """How often a loop runs: as the compiler notes it, else by the constant that its counter is compared with."""
        known = re.search(r'known_trip_count\D+(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition = re.search(r'condition=%([\w.\-]+)', loop.attributes)
        body = self._computations.get(condition[1], []) if condition else []
        compare = next((i for i in body if i.root and i.opcode == 'compare' and 'direction=LT' in i.attributes), None)
        for operand in compare.operands if compare else ():
            constant = self._by_name.get(operand)
            if constant is not None and constant.opcode == 'constant':
                return int(constant.literal)
        self._unknown.add(loop.name)
        return 1

    @property
    def loops_of_unknown_length(self) -> int:
        """Loops counted once because the text does not say how often they run."""
        return len(self._unknown)

    def flops(self) -> float:
        """Of all matrix products, per device and step."""
        return sum(self._times[name] * sum(map(self._product, body)) for name, body in self._computations.items())

    def work(self) -> list[Work]:
        """Every instruction that runs by itself, with the products inside it."""
        found = []
        for name, body in self._computations.items():
            if self._times[name] and name not in self._inlined:
                for instruction in body:
                    flops, moved = self._flops_inside(instruction), self._traffic(instruction)
                    if flops or moved:
                        found.append(Work(flops, moved, self._times[name]))
        return found

    def collectives(self) -> list[Collective]:
        """By kind and size of group."""
        found: dict[tuple[str, int], list[float]] = {}
        for name, body in self._computations.items():
            for instruction in body:
                kind = instruction.opcode.removesuffix('-start')
                if kind in COLLECTIVES and self._times[name]:
                    group, size = _group(instruction), self._moved(instruction, kind)
                    share = 1.0 if kind == 'collective-permute' else (group - 1) / group
                    wire = size * share * (2 if kind == 'all-reduce' else 1)
                    totals = found.setdefault((kind, group), [0.0, 0.0, 0.0])
                    for i, value in enumerate((1, size, wire)):
                        totals[i] += self._times[name] * value
        return [Collective(kind, group, *totals) for (kind, group), totals in sorted(found.items())]

    def _moved(self, instruction: Instruction, kind: str) -> float:
        """Bytes of a collective's results; of the inputs for reduce-scatter."""
        if kind == 'reduce-scatter':
            return sum(array_bytes(self._by_name[o].shape) for o in instruction.operands)
        parts = elements(instruction.shape)
        if instruction.opcode.endswith('-start') and kind != 'all-reduce' and len(parts) > 1:
            return array_bytes(parts[1])  # (inputs, results, ...)
        return array_bytes(instruction.shape)

    def _flops_inside(self, instruction: Instruction) -> float:
        total = self._product(instruction)
        for callee in re.findall(r'calls=%([\w.\-]+)', instruction.attributes):
            total += sum(self._flops_inside(i) for i in self._computations.get(callee, ()))
        return total

    def _product(self, instruction: Instruction) -> float:
        if instruction.opcode == 'dot':
            sides = _first_array(self._by_name[instruction.operands[0]].shape)
            found = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
            contracted = [sides[i] for i in _sides(found[1])] if found else []
            return 2.0 * math.prod(_first_array(instruction.shape)) * math.prod(contracted)
        if instruction.opcode == 'convolution':
            operands = [_first_array(self._by_name[o].shape) for o in instruction.operands[:2]]
            return _convolution(operands, _first_array(instruction.shape), instruction.attributes)
        return 0.0

    def _traffic(self, instruction: Instruction) -> float:
        """Bytes of main memory that an instruction reads and writes."""
        opcode = instruction.opcode
        if opcode in FREE or opcode.endswith('-done') or opcode.removesuffix('-start') in COLLECTIVES:
            return 0.0
        if opcode.endswith('-start'):  # copies between memories: (result, source, ...) or ((source), result, ...)
            parts = elements(instruction.shape)
            whole = parts[:2] if opcode == 'copy-start' else parts[1:2]
            return sum(array_bytes(part, fast=opcode != 'copy-start') for part in whole)
        if opcode == 'dynamic-slice' or opcode == 'slice':
            return 2 * array_bytes(instruction.shape, fast=False)
        if opcode == 'dynamic-update-slice':
            return 2 * array_bytes(self._by_name[instruction.operands[1]].shape, fast=False)
        read = [array_bytes(self._by_name[o].shape, fast=False) for o in instruction.operands if o in self._by_name]
        written = array_bytes(instruction.shape, fast=False)
        callee = re.search(r'calls=%([\w.\-]+)', instruction.attributes)
        if opcode == 'fusion' and callee and callee[1] in self._computations:
            inside = _Fusion(self._computations[callee[1]])
            read = [min(size, inside.read(i)) for i, size in enumerate(read)]
            written = min(written, inside.written()) if written else 0.0
        return sum(read) + written


class _Fusion:
    """What a fusion reads of its inputs and writes of its result: where it slices a stack of layers, one layer."""

    def __init__(self, body: Sequence[Instruction]) -> None:
        self._body = body
        self._by_name = {i.name: i for i in body}
        self._users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
        for instruction in body:
            for place, operand in enumerate(instruction.operands):
                self._users[operand].append((instruction, place))

    def read(self, number: int) -> float:
        """Bytes read of input `number`; infinity for all of it."""
        return next(
            (self._read(i.name) for i in self._body if i.opcode == 'parameter' and i.literal == str(number)), math.inf
        )

    def _read(self, name: str) -> float:
        total = 0.0
        for user, place in self._users[name]:
            if user.opcode in ('dynamic-slice', 'slice', 'gather') and place == 0:
                total += array_bytes(user.shape)
            elif user.opcode in ('bitcast', 'get-tuple-element'):
                total += self._read(user.name)
            elif user.opcode != 'dynamic-update-slice' or place != 0:  # the updated buffer itself stays where it is
                return math.inf
        return total

    def written(self) -> float:
        """Bytes written; infinity for all of the result."""
        root = next(i for i in self._body if i.root)
        parts = root.operands if root.opcode == 'tuple' else (root.name,)
        return sum(self._written(self._by_name[part]) for part in parts)

    def _written(self, result: Instruction) -> float:
        if result.opcode == 'bitcast':
            return self._written(self._by_name[result.operands[0]])
        if result.opcode == 'dynamic-update-slice':
            return array_bytes(self._by_name[result.operands[1]].shape, fast=False)
        return array_bytes(result.shape, fast=False)


def _convolution(operands: Sequence[Sequence[int]], result: Sequence[int], attributes: str) -> float:
    """FLOPs of a convolution, which is what a TPU's compiler makes of matrix products.

    Batched products become convolutions whose window meets its input in one place per batch element, the rest being
    padding; only places where there is an input are counted.
    """
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', attributes)
    assert labels is not None
    left, kernel, out = labels.groups()
    window = re.search(r'window=\{([^}]*)\}', attributes)
    options = dict(part.split('=') for part in window[1].split()) if window else {}
    total = 2.0 * result[out.index('b')] * result[out.index('f')] * operands[1][kernel.index('i')]
    spatial = sorted(label for label in out if label.isdigit())
    for n, label in enumerate(spatial):

        def option(name: str, default: str, n: int = n) -> str:
            return options[name].split('x')[n] if name in options else default

        size, stride = int(option('size', '1')), int(option('stride', '1'))
        dilate, spread = int(option('lhs_dilate', '1')), int(option('rhs_dilate', '1'))
        low = int(option('pad', '0_0').split('_')[0])
        sides = operands[0][left.index(label)]
        total *= sum(
            (at := o * stride + k * spread - low) % dilate == 0 and 0 <= at // dilate < sides
            for o in range(result[out.index(label)])
            for k in range(size)
        )
    return total


def _group(instruction: Instruction) -> int:
    """Devices in each group of a collective: from a list of groups, an iota, or the axes of a mesh."""
    text = instruction.attributes
    if 'source_target_pairs=' in text:
        return 2
    axes = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', text)
    if axes:
        sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes[1])}
        return math.prod(sizes[name] for name in re.findall(r'[\w.]+', axes[2]) if name in sizes)
    iota = re.search(r'replica_groups=\[([\d,]+)\]', text)
    if iota:
        return _sides(iota[1])[-1]
    first = re.search(r'replica_groups=\{\{([\d,]*)\}', text)
    return len(_sides(first[1])) if first else 1
