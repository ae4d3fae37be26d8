"""The training state: a plain pytree, made by one jitted function directly in its final placement."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mvdjax import sharding
from mvdjax.optimizers import Optimizer
from mvdjax.rng import named_key
from mvdjax.tasks.base import Batch, Task


class TrainState(NamedTuple):
    """All that a step reads and writes.

    Attributes:
      step: int32 scalar, steps taken (skipped ones included).
      skipped: int32 scalar, steps whose loss or gradient was not finite and which changed nothing.
      params: float32 parameters.
      opt_state: optax state.
      ema: exponential moving average of params, or None.
    """

    step: jax.Array
    skipped: jax.Array
    params: Any
    opt_state: Any
    ema: Any

    @property
    def tested(self) -> Any:
        """The parameters that evaluations see: the moving average where there is one."""
        return self.params if self.ema is None else self.ema


def abstract_params(task: Task, batch: Batch) -> Any:
    """Shapes of the task's parameters for batches like `batch`; computes nothing."""
    return jax.eval_shape(task.init, jax.random.key(0), batch)


def make_state_function(task: Task, optimizer: Optimizer, ema: bool) -> Any:
    """(key, batch) -> TrainState with fresh parameters; jit it, or take its abstract shapes."""

    def make(key: jax.Array, batch: Batch) -> TrainState:
        params = task.init(key, batch)
        zero = jnp.zeros((), jnp.int32)
        copy = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(zero, zero, params, optimizer.transform.init(params), copy)

    return make


def initializer(task: Task, optimizer: Optimizer, batch: Batch, ema: bool, mesh: Mesh) -> Any:
    """The jitted (key, batch) -> TrainState that makes a state in its place: no stack is ever whole on a device."""
    make = make_state_function(task, optimizer, ema)
    placement = sharding.tree_sharding(jax.eval_shape(make, jax.random.key(0), batch), mesh)
    return jax.jit(make, out_shardings=placement)


def create(task: Task, optimizer: Optimizer, batch: Batch, seed: int, ema: bool, mesh: Mesh) -> TrainState:
    """A fresh state, born sharded."""
    one_row = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), dict(batch))
    return initializer(task, optimizer, batch, ema, mesh)(named_key(seed, 'init'), one_row)


def average(ema: Any, before: Any, after: Any, decay: float, updates: int = 1) -> Any:
    """The moving average of the parameters after a step.

    The published BEVT averages after every micro-batch, of which only the last of a step has changed the parameters
    (golden: bevt/ema): `updates` - 1 times with the parameters from before the step, once with those after it.

    Args:
      ema: the average so far.
      before: parameters before the step.
      after: parameters after it.
      decay: share of the average that an update keeps.
      updates: per step.

    Returns:
      The new average, a tree like `ema`.
    """

    if updates > 1:
        ema = optax.incremental_update(before, ema, 1.0 - decay ** (updates - 1))
    return optax.incremental_update(after, ema, 1.0 - decay)
