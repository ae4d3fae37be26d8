"""What a step costs as JAX traces it, where there is no compiler for the device: matrix products and live memory.

Loops count as often as they run, and what remat computes again is in the trace. A compiler fuses most of what is
between two products, so that only what outlives a product takes memory here.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product: its FLOPs, the bytes of its operands and result, and how often it runs."""

    flops: float
    bytes: float
    times: float


Shapes = frozenset[tuple[int, ...]]  # sides of what never leaves the chip, sorted: transposing changes nothing


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def size(value: Any, hidden: Shapes = frozenset()) -> float:
    """Bytes of a traced value; keys and the like take none, nor do `hidden` ones, stacked by a loop or not."""
    shape = getattr(value.aval, 'shape', ())
    sides = _sides(shape)
    if hidden and (tuple(sorted(sides)) in hidden or tuple(sorted(sides[1:])) in hidden):
        return 0.0
    return float(math.prod(shape) * getattr(getattr(value.aval, 'dtype', None), 'itemsize', 0))


def logits(jaxpr: Any) -> Shapes:
    """The sides of attention's logits (samples, heads, queries, keys): what a fused kernel keeps to itself.

    Known by being products per sample and head that are larger than both of their factors.
    """
    found: set[tuple[int, ...]] = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general' and len(eqn.params['dimension_numbers'][1][0]) == 2:
            made = eqn.outvars[0].aval.shape
            if math.prod(made) > max(math.prod(v.aval.shape) for v in eqn.invars):
                found.add(tuple(sorted(_sides(made))))
        for part in inner(eqn):
            found |= logits(part)
    return frozenset(found)


def inner(eqn: Any) -> list[Any]:
    """The programs inside an equation; of branches for different platforms the one that is not for CPUs."""
    found = []
    for name in ('jaxpr', 'call_jaxpr', 'body_jaxpr', 'branches'):
        value = eqn.params.get(name)
        if name == 'branches' and eqn.params.get('branches_platforms') is not None:
            elsewhere = [b for b, known in zip(value, eqn.params['branches_platforms'], strict=True) if known is None]
            value = tuple(elsewhere) or value
        for part in value if isinstance(value, tuple) else (value,):
            if part is not None:
                found.append(getattr(part, 'jaxpr', part))
    return found


def _flops(eqn: Any) -> float:
    """Of a matrix product or a convolution; places where a window meets padding are counted, too."""
    if eqn.primitive.name == 'dot_general':
        (contracted, _), _ = eqn.params['dimension_numbers']
        sides = [eqn.invars[0].aval.shape[i] for i in contracted]
    elif eqn.primitive.name == 'conv_general_dilated':
        kernel, outputs = eqn.invars[1].aval.shape, eqn.params['dimension_numbers'].rhs_spec[0]
        sides = [side for i, side in enumerate(kernel) if i != outputs]
    else:
        return 0.0
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(sides)


def products(jaxpr: Any, times: float = 1.0, hidden: Shapes = frozenset()) -> Iterator[Product]:
    """Every matrix product and convolution of a program; `hidden` values cost it no bytes."""
    for eqn in jaxpr.eqns:
        flops = _flops(eqn)
        if flops:
            yield Product(flops, sum(size(v, hidden) for v in (*eqn.invars, *eqn.outvars)), times)
        often = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
        for part in inner(eqn):
            yield from products(part, times * often, hidden)


def flops(jaxpr: Any) -> float:
    """Of all matrix products."""
    return sum(p.flops * p.times for p in products(jaxpr))


def _heavy(eqn: Any) -> bool:
    """Whether an equation holds a product, and is therefore not fused into what comes before and after it."""
    return bool(_flops(eqn)) or any(next(products(part), None) is not None for part in inner(eqn))


def peak_bytes(jaxpr: Any, hidden: Shapes = frozenset()) -> float:
    """Most bytes alive at a time, inputs of the program left out: what is made before a product and used after it."""
    last: dict[Any, int] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        last.update({v: i for v in eqn.invars if not hasattr(v, 'val')})
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if not hasattr(v, 'val')})
    alive: dict[Any, float] = {}
    peak = 0.0
    for i, eqn in enumerate(jaxpr.eqns):
        made = {v: size(v, hidden) for v in eqn.outvars}
        if _heavy(eqn):
            deepest = max((peak_bytes(part, hidden) for part in inner(eqn)), default=0.0)
            peak = max(peak, sum(alive.values()) + sum(made.values()) + deepest)
        alive |= {v: s for v, s in made.items() if last.get(v, -1) > i}
        for v in [v for v in eqn.invars if not hasattr(v, 'val')]:
            if last[v] == i:
                alive.pop(v, None)
    return max(peak, sum(alive.values()))


@dataclasses.dataclass(frozen=True)
class Gradient:
    """The traced gradient of a task's loss, for any number of clips: all of it is linear in them.

    Attributes:
      unit: clips that `once` is of; `twice` is of twice as many.
      once, twice: matrix products.
      clip_bytes: what a clip adds to the most bytes alive at a time.
    """

    unit: int
    once: tuple[Product, ...]
    twice: tuple[Product, ...]
    clip_bytes: float

    def products(self, clips: float) -> Iterator[Product]:
        """The matrix products for another number of clips."""
        more = clips / self.unit - 1
        for a, b in zip(self.once, self.twice, strict=True):
            yield Product(a.flops + more * (b.flops - a.flops), a.bytes + more * (b.bytes - a.bytes), a.times)


def gradient(task: Any, batch: Any) -> Any:
    """The traced gradient of a task's loss on an abstract batch: a step's program, less the optimizer."""
    params = jax.eval_shape(task.init, jax.random.key(0), batch)

    def function(params: Any, frozen: Any, batch: Any) -> Any:
        keys = {name: jax.random.key(0) for name in task.rng_names}
        return jax.grad(lambda p: task.loss(p, frozen, batch, keys, train=True)[0])(params)

    return jax.make_jaxpr(function)(params, task.abstract_frozen(batch), batch).jaxpr


def trace(task: Any, batch: Any, clips: int, unit: int, fused: bool = False) -> Gradient:
    """Traces twice.

    Args:
      task: the stage.
      batch: an abstract batch of `clips` clips.
      clips: its rows in the main stream.
      unit: clips to trace with; every part of the batch must have a whole number of rows for them.
      fused: attention is one kernel, whose logits never reach the memory.
    """
    found = []
    for n in (unit, 2 * unit):
        rows = jax.tree.map(
            lambda x, n=n: jax.ShapeDtypeStruct((x.shape[0] * n // clips, *x.shape[1:]), x.dtype), batch
        )
        found.append(gradient(task, rows))
    hidden = [logits(jaxpr) if fused else frozenset() for jaxpr in found]
    once, twice = (tuple(products(jaxpr, hidden=h)) for jaxpr, h in zip(found, hidden, strict=True))
    less, more = (peak_bytes(jaxpr, h) for jaxpr, h in zip(found, hidden, strict=True))
    return Gradient(unit, once, twice, (more - less) / unit)
