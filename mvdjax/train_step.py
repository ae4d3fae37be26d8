"""The step of training: gradients, accumulation, update, average, and what happens to a step that is not finite."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mvdjax import metrics, optimizers, sharding
from mvdjax.compile_cache import Watched
from mvdjax.rng import step_keys
from mvdjax.settings import Run
from mvdjax.tasks.base import Batch, Task
from mvdjax.train_state import TrainState, average

StepFunction = Callable[[TrainState, Any, Batch], tuple[TrainState, metrics.Metrics]]


def make_train_step(
    task: Task,
    optimizer: optimizers.Optimizer,
    *,
    seed: int,
    accumulate: int,
    ema_decay: float,
    views: Any,
    ema_updates: int = 1,
) -> StepFunction:
    """The function of one optimizer step: pure, to be jitted with its first argument donated.

    A step whose loss, gradient or update is not finite leaves parameters, optimizer state and average as they were,
    and is counted. `views` neighbouring rows of a batch are of one video and stay together in a micro-batch: a number,
    or {stream: number} where batches have sub-dicts. `ema_decay` and `ema_updates` as in `train_state.average`.
    """

    def gradients(params: Any, frozen: Any, batch: Batch, keys: Mapping[str, jax.Array]) -> tuple[Any, metrics.Metrics]:
        def loss(p: Any) -> tuple[jax.Array, metrics.Metrics]:
            return task.loss(p, frozen, batch, keys, train=True)

        return jax.grad(loss, has_aux=True)(params)

    def accumulated(params: Any, frozen: Any, batch: Batch, keys: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        # Strided micro-batches: each takes rows from every device, so no row has to move between devices. Whole
        # videos, since a draw of mixup is shared by neighbouring rows.
        def split(rows: int, x: jax.Array) -> jax.Array:
            x = x.reshape(-1, accumulate, rows, *x.shape[1:]).swapaxes(0, 1)
            return x.reshape(accumulate, -1, *x.shape[3:])

        micro = jax.tree.map(lambda rows, part: jax.tree.map(partial(split, rows), part), views, dict(batch))

        def add(total: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            number, rows = part
            more = gradients(params, frozen, rows, {n: jax.random.fold_in(k, number) for n, k in keys.items()})
            return jax.tree.map(jnp.add, total, more), None

        shapes = jax.eval_shape(gradients, params, frozen, jax.tree.map(lambda x: x[0], micro), keys)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (total, values), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))
        return jax.tree.map(lambda g: g / accumulate, total), values

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, metrics.Metrics]:
        keys = step_keys(seed, state.step, task.rng_names)
        grads, values = (gradients if accumulate == 1 else accumulated)(state.params, frozen, batch, keys)
        grad_norm = optax.tree.norm(grads)
        directions, opt_state = optimizer.transform.update(grads, state.opt_state, state.params, step=state.step)
        rate = optimizer.schedule(state.step)
        updates = optimizers.apply_rate(directions, rate)
        update_norm = optax.tree.norm(updates)

        # Bit by bit what is not finite: loss, gradient, update.
        bad = sum(
            (~jnp.isfinite(x)).astype(jnp.int32) << i for i, x in enumerate((values['loss'][0], grad_norm, update_norm))
        )
        ok = bad == 0
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (optax.apply_updates(state.params, updates), opt_state),
            (state.params, state.opt_state),
        )
        # From the parameters that are kept, not from new and old ones: donated buffers are then written in place.
        ema = None
        if state.ema is not None:
            after = average(state.ema, state.params, params, ema_decay, ema_updates)
            ema = jax.tree.map(lambda new, old: jnp.where(ok, new, old), after, state.ema)
        skipped = state.skipped + jnp.where(ok, 0, 1)
        values = {
            **values,
            'grad_norm': metrics.scalar(grad_norm),
            'update_norm': metrics.scalar(update_norm),
        }
        # A skipped step says nothing about the loss: it enters no average.
        values = {n: (jnp.where(ok, s, 0.0), jnp.where(ok, c, 0.0)) for n, (s, c) in values.items()}
        values |= {'learning_rate': metrics.scalar(rate), 'skipped': metrics.scalar(jnp.where(ok, 0.0, 1.0))}
        values['not_finite'] = metrics.scalar(bad)
        if optimizer.weight_decay is not None:
            values['weight_decay'] = metrics.scalar(optimizer.weight_decay(state.step))
        return TrainState(state.step + 1, skipped, params, opt_state, ema), values

    return step


def compile_step(
    task: Task, optimizer: optimizers.Optimizer, run: Run, state: TrainState, mesh: Mesh, views: Any
) -> Watched:
    """The jitted step: the state donated and returned where it was, so that it compiles once for the whole run."""
    step = make_train_step(
        task,
        optimizer,
        seed=run.seed,
        accumulate=run.accumulate,
        ema_decay=run.ema_decay,
        ema_updates=run.ema_updates,
        views=views,
    )
    placement = sharding.tree_sharding(state, mesh)
    traced = sharding.traced_on(mesh, step, run.matmul_precision)
    jitted = jax.jit(traced, out_shardings=(placement, sharding.replicated(mesh)), donate_argnums=0)
    return Watched(jitted, ('state', 'frozen', 'batch'))
