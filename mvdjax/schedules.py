"""Schedules of rate and weight decay as functions of the step, defined past the end, and the linear scaling rule."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mvdjax.errors import UserError

Schedule = Callable[[jax.Array | int], jax.Array]


def warmup_cosine(peak: float, end: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Linear warm-up from 0, then half a cosine, as the published code computes them per optimizer step.

    Step 0 has rate exactly 0 and the peak is reached twice: by the last warm-up step and by the first cosine step.
    The original never reaches `end` (its table stops a step earlier); here it is the value past the last step.
    Source: golden/data/schedules.

    Args:
      peak: value at the end of the warm-up; the highest rate, but a weight decay may start below its `end`.
      end: value after the last step.
      warmup_steps: 0 <= warmup_steps < total_steps.
      total_steps: optimizer steps of the run.

    Raises:
      UserError: the warm-up does not fit into the run.
    """
    if not 0 <= warmup_steps < total_steps:
        raise UserError(
            f'a warm-up of {warmup_steps} steps does not fit into a run of {total_steps} steps: '
            'shorten optim.warmup_epochs or lengthen the run'
        )

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = peak * step / max(warmup_steps - 1, 1)
        progress = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        cosine = end + 0.5 * (peak - end) * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, warm, cosine)

    return schedule


def scaled_rate(base_rate: float, global_batch: int, per: int = 256) -> float:
    """The linear scaling rule: the absolute rate of a published base rate stated per `per` samples."""
    return base_rate * global_batch / per
