"""Random keys: each is a function of (seed, name, step), so nothing random is carried in the state or a checkpoint."""

import zlib
from collections.abc import Sequence

import jax


def named_key(seed: int, name: str) -> jax.Array:
    """The key of one use, e.g. 'init'."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def step_keys(seed: int, step: jax.Array, names: Sequence[str]) -> dict[str, jax.Array]:
    """One key per name for this step; `step` may be traced."""
    return {name: jax.random.fold_in(named_key(seed, name), step) for name in names}
