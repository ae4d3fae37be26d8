"""Losses and their targets. Everything here is float32 and reduces to one value per sample, never per batch."""

import jax
import jax.numpy as jnp


def smooth_l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Huber with beta 1 (PyTorch's SmoothL1Loss), elementwise."""
    error = jnp.abs(prediction - target)
    return jnp.where(error < 1.0, 0.5 * error * error, error - 0.5)


def l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Absolute error, elementwise."""
    return jnp.abs(prediction - target)


def l2(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Squared error, elementwise."""
    return jnp.square(prediction - target)


REGRESSION = {'smooth_l1': smooth_l1, 'l1': l1, 'l2': l2}


def per_sample(errors: jax.Array) -> jax.Array:
    """(b, ...) -> (b,): the mean over all but the batch. Samples have equal token counts, so means of it are exact."""
    return jnp.mean(errors.reshape(errors.shape[0], -1), axis=1)


def normalize_features(features: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Per-token LayerNorm without affine (MVD's `norm_feature` option). (b, n, d) -> (b, n, d)."""
    mean = jnp.mean(features, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(features - mean), axis=-1, keepdims=True)
    return (features - mean) * jax.lax.rsqrt(variance + epsilon)


def normalize_patches_mae(patches: jax.Array) -> jax.Array:
    """MAE's target: each patch by the mean and unbiased variance over all of its values, epsilon inside the root."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, ddof=1, keepdims=True)
    return (patches - mean) / jnp.sqrt(variance + 1e-6)


def normalize_patches_videomae(patches: jax.Array, channels: int) -> jax.Array:
    """VideoMAE's target: each cube per channel, divided by the unbiased deviation plus 1e-6 (outside the root).

    Args:
      patches: (b, n, values * channels), channel fastest.
      channels: colour channels.
    """
    b, n, _ = patches.shape
    x = patches.reshape(b, n, -1, channels)
    mean = jnp.mean(x, axis=2, keepdims=True)
    deviation = jnp.sqrt(jnp.var(x, axis=2, ddof=1, keepdims=True)) + 1e-6
    return ((x - mean) / deviation).reshape(patches.shape)


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """(b, classes) logits and target distributions -> (b,) cross-entropies in nats."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def token_cross_entropy(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    """(..., vocabulary) scores and (...) int tokens -> (...) float32 cross-entropies in nats.

    The token's score is picked by a sum over a comparison instead of a gather, whose gradient would be a scatter.
    """
    scores = scores.astype(jnp.float32)
    picked = jnp.where(jnp.arange(scores.shape[-1]) == tokens[..., None], scores, 0.0)
    return jax.nn.logsumexp(scores, axis=-1) - jnp.sum(picked, axis=-1)
