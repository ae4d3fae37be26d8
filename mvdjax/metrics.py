"""Metrics as (sum, count) pairs until the very end, so that no average depends on batch or device counts."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Metric = tuple[jax.Array, jax.Array]
Metrics = dict[str, Metric]


def weighted(values: jax.Array, valid: jax.Array | None) -> Metric:
    """(b,) per-sample values and an optional (b,) bool of real samples -> (sum, count)."""
    if valid is None:
        return jnp.sum(values), jnp.asarray(values.shape[0], jnp.float32)
    return jnp.sum(jnp.where(valid, values, 0.0)), jnp.sum(valid).astype(jnp.float32)


def scalar(value: jax.Array) -> Metric:
    """A value that is one per step."""
    return jnp.asarray(value, jnp.float32), jnp.ones((), jnp.float32)


def means(metrics: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """(sum, count) -> mean; NaN where nothing was counted."""
    return {name: float(s) / float(c) if float(c) else float('nan') for name, (s, c) in metrics.items()}
