"""Fingerprints of arrays on the devices: one number a leaf, the same however the leaf is sharded.

Orbax stores no checksum: a flipped byte is restored without a word. These sums are taken where the training put the
values, travel in the checkpoint, and are compared with what is read back; `integrity.fingerprint` is their twin on the
host.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvdjax import trees

Table = dict[str, dict[str, list[Any]]]  # item -> path -> [shape, dtype, fingerprint]


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array as uint32, one word per element (two, on a new last axis, for 8-byte types)."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = {1: jnp.uint8, 2: jnp.uint16}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)


def _fingerprint(x: jax.Array) -> jax.Array:
    """Sum of word i times (2 i + 1), modulo 2**32.

    The weights are odd, so a single wrong element always shows, and differ, so an exchange of two does. The position
    is built from one iota per axis: each device sums its own shard, and nothing is gathered but the sums.
    """
    words = _words(x)
    position, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position + index * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)


@jax.jit
def _all(leaves: Mapping[str, Mapping[str, jax.Array]]) -> dict[str, dict[str, jax.Array]]:
    return jax.tree.map(_fingerprint, dict(leaves))


def table(items: Mapping[str, Any]) -> Table:
    """{item: {path: [shape, dtype, fingerprint]}} of the trees of a checkpoint, as JSON. Waits for the devices.

    Every process must call it: a leaf may be spread over all of them.
    """
    flat = {item: trees.flatten(tree) for item, tree in items.items()}
    sums = jax.device_get(_all(flat))
    return {
        item: {path: [list(x.shape), str(x.dtype), int(sums[item][path])] for path, x in leaves.items()}
        for item, leaves in flat.items()
    }
