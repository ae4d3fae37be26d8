"""Schedules of rate and weight decay as functions of the step, defined past the end, and the linear scaling rule."""

import math
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


def scaled_cosine(peak: float, end: float, warmup: float, total: int, epoch: int = 0, start: float = 0.1) -> Schedule:
    """Half a cosine from the first iteration on, times a linear warm-up: mmcv's rule (golden: bevt/lr_schedule).

    The peak is never reached: the cosine has already gone down when the warm-up ends. Where the cosine moves by epochs,
    a warm-up that ends between two iterations is noticed only by the next epoch: until then its last value stays.

    Args:
      peak: value that the cosine starts from.
      end: value after the last iteration.
      warmup: iterations that are scaled; may be a fraction, 0 <= warmup < total.
      total: iterations of the run.
      epoch: the cosine stays the same for so many iterations; 0: it changes with each.
      start: factor of the first iteration.

    Raises:
      UserError: the warm-up does not fit into the run.
    """
    if not 0 <= warmup < total:
        raise UserError(
            f'a warm-up of {warmup:g} iterations does not fit into a run of {total}: '
            'shorten optim.warmup_epochs or lengthen the run'
        )

    def regular(i: jax.Array) -> jax.Array:
        whole = i // epoch * epoch if epoch else i
        progress = jnp.clip(whole.astype(jnp.float32) / total, 0.0, 1.0)
        return end + 0.5 * (peak - end) * (1 + jnp.cos(jnp.pi * progress))

    def warming(i: jax.Array) -> jax.Array:
        return regular(i) * (1 - (1 - i.astype(jnp.float32) / max(warmup, 1e-9)) * (1 - start))

    def schedule(step: jax.Array | int) -> jax.Array:
        i = jnp.asarray(step, jnp.int32)
        value = jnp.where(i < warmup, warming(i), regular(i))
        last = math.ceil(warmup) - 1
        if epoch and warmup != math.ceil(warmup):
            held = (i > last) & (i // epoch == last // epoch)
            value = jnp.where(held, warming(jnp.asarray(last)), value)
        return value

    return schedule


def of_micro_batches(schedule: Schedule, count: int) -> Schedule:
    """A schedule over micro-batches as one over steps of `count` of them: the last one's value is what a step takes."""
    return lambda step: schedule(jnp.asarray(step, jnp.int32) * count + (count - 1))


def scaled_rate(base_rate: float, global_batch: int, per: int = 256) -> float:
    """The linear scaling rule: the absolute rate of a published base rate stated per `per` samples."""
    return base_rate * global_batch / per
