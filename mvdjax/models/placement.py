"""What a model may say about devices while it is traced: rows of activations stay apart, a layer's weights meet.

Models know nothing of meshes. A jitted function that runs on several devices is traced within `active`, and the calls
below, which otherwise return their argument, then tell the compiler what it would have to guess. Left alone it
guesses by size: where a batch is small, as it is for the visible tenth of the tokens, it gathers activations instead of
weights, layer after layer.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Path and shape of a leaf of a stack -> where it lives.
Rule = Callable[[str, tuple[int, ...], Any], NamedSharding]


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh that a function is traced for.

    Attributes:
      mesh: of the axes data, fsdp and tensor; may be abstract, of a machine that is not here.
      rule: where parameters live.
    """

    mesh: Any
    rule: Rule

    @property
    def device(self) -> jax.Device:
        """One of the devices."""
        return self.mesh.devices.flat[0] if isinstance(self.mesh, Mesh) else jax.devices()[0]

    @property
    def rows(self) -> NamedSharding:
        """The leading axis split over data and fsdp, the others whole."""
        return NamedSharding(self.mesh, P(('data', 'fsdp')))


_current: contextvars.ContextVar[Placement | None] = contextvars.ContextVar('placement', default=None)


@contextlib.contextmanager
def active(placement: Placement | None) -> Iterator[None]:
    """What is traced within is placed on this mesh; a mesh of one device needs no placing."""
    token = _current.set(placement if placement and placement.mesh.size > 1 else None)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Placement | None:
    """The placement that is active, or None."""
    return _current.get()


def keep_rows(x: jax.Array) -> jax.Array:
    """(rows, ...) activations, each device keeping its own rows; as they are where the rows do not divide."""
    placement = _current.get()
    if placement is None or x.shape[0] % (placement.mesh.shape['data'] * placement.mesh.shape['fsdp']):
        return x
    return jax.lax.with_sharding_constraint(x, placement.rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gathered(weight: jax.Array, split: NamedSharding, whole: NamedSharding, dtype: Any, stored: Any) -> jax.Array:
    del stored
    # Cast first: half the bytes travel where the block computes in bfloat16.
    cast = jax.lax.with_sharding_constraint(weight.astype(dtype), split)
    return jax.lax.with_sharding_constraint(cast, whole)


def _forward(
    weight: jax.Array, split: NamedSharding, whole: NamedSharding, dtype: Any, stored: Any
) -> tuple[jax.Array, None]:
    # Written out, not called: a remat policy sees no further than the operations of this function.
    del stored
    cast = jax.lax.with_sharding_constraint(weight.astype(dtype), split)
    return jax.lax.with_sharding_constraint(cast, whole), None


def _backward(
    split: NamedSharding, whole: NamedSharding, dtype: Any, stored: Any, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    del whole, dtype
    return (jax.lax.with_sharding_constraint(gradient, split).astype(stored),)


_gathered.defvjp(_forward, _backward)


def gatherer(name: str, depth: int | None, dtype: Any) -> Callable[[Any], Any] | None:
    """What brings the parts of a layer's weights together just before they are used, and parts their gradients.

    The kernels travel in the dtype that they are multiplied in.

    Args:
      name: of the block or stack in its parent, which the rules know ('blocks').
      depth: layers of a stack, whose parameters the rules know with their depth axis; None for a block by itself.
      dtype: compute dtype of the block's kernels.

    Returns:
      Parameters of a layer -> the same, whole along fsdp; None where no placement is active, or fsdp is 1.
    """
    placement = _current.get()
    if placement is None or placement.mesh.shape['fsdp'] == 1:
        return None
    mesh, rule, stack = placement.mesh, placement.rule, () if depth is None else (depth,)

    def gather(path: tuple[Any, ...], weight: jax.Array) -> jax.Array:
        leaf = jax.tree_util.keystr(path, simple=True, separator='/')
        spec = rule(f'/{name}/{leaf}', (*stack, *weight.shape), mesh).spec[len(stack) :]
        if 'fsdp' not in spec:
            return weight
        split = NamedSharding(mesh, P(*spec))
        whole = NamedSharding(mesh, P(*(None if axis == 'fsdp' else axis for axis in spec)))
        return _gathered(weight, split, whole, dtype if leaf.endswith('kernel') else weight.dtype, weight.dtype)

    return lambda params: jax.tree_util.tree_map_with_path(gather, params)


def gathering(block: type[nn.Module], name: str, depth: int | None, dtype: Any) -> type[nn.Module]:
    """A module class whose weights come together as `gatherer` says, or `block` itself where nothing has to."""
    gather = gatherer(name, depth, dtype)
    if gather is None:
        return block
    mapped: type[nn.Module] = nn.map_variables(block, 'params', trans_in_fn=gather)
    return mapped


def save_all_but_gathered(prim: Any, *_: Any, **__: Any) -> bool:
    """A remat policy: nothing is computed twice, but whole weights are gathered again when gradients need them.

    Without it a scan would keep the whole weights of all its layers for the backward pass, which is what `fsdp` is to
    avoid. A sharding constraint is all that stands between a weight's part and the whole.
    """
    return getattr(prim, 'name', '') != 'sharding_constraint'
