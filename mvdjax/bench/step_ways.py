"""What `mvdjax bench step` measures besides the peer: our training step, and the matrix products a device can do.

Factories for `measure`, each of which runs in a process of its own. Nothing here reads a file of data, or needs what
reads them.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvdjax import keywords, optimizers, sharding, train_state
from mvdjax.bench.measure import Cost, Make
from mvdjax.data.recipes import make_recipe
from mvdjax.device_memory import device_memory
from mvdjax.settings import Run
from mvdjax.tasks import task_class
from mvdjax.tasks.base import Task
from mvdjax.train_step import compile_step

SIDE = 8192  # of the square matrices on an accelerator: enough for the full rate of all current ones
CPU_SIDE = 1024
STEPS_PER_EPOCH, STEPS = 1000, 100_000  # of the rate schedule: any will do


def make_task(sections: Mapping[str, Any]) -> Task:
    """The task of a config's sections. Raises UserError for a wrong key."""
    return keywords.build(task_class(sections['task_name']), sections['task'], 'config.task')


def synthetic_batch(data: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """A batch as the recipe of a data section makes them: random pixels, everything else blank, masks too.

    What a step costs does not depend on them: a model takes the number of masked tokens from its config.

    Args:
      data: the section.
      batch: rows, not records.

    Returns:
      NumPy arrays.
    """
    recipe = make_recipe(data['recipe'], data['options'])
    sample = recipe.blank()
    if recipe.views > 1:
        sample = {name: value[0] for name, value in sample.items()}
    rows = {name: np.broadcast_to(value, (batch, *np.shape(value))) for name, value in sample.items()}
    rng = np.random.default_rng(0)
    pixels = {n: rng.integers(0, 256, v.shape, np.uint8) for n, v in rows.items() if n.endswith('video')}
    return {**rows, **pixels}


def ours(sections: Mapping[str, Any], batch: int, steps: int) -> Make:
    """Our step, compiled as training compiles it, on the mesh of the config.

    Args:
      sections: of the config, plain; teachers are untrained.
      batch: rows per step over all devices, computed in one go: accumulation is left out.
      steps: per measured batch.
    """
    task = make_task(sections)
    run = keywords.build(Run, {**sections['run'], 'global_batch': batch, 'accumulate': 1}, 'config.run')
    mesh = keywords.build(sharding.make_mesh, sections['mesh'], 'config.mesh')
    host = synthetic_batch(sections['data'], batch)
    sharding.check_batch_size(batch, run.accumulate, mesh, jax.process_count(), '--batch')
    params = train_state.abstract_params(task, host)
    fixed = (params, task.layer_index, batch, 1, STEPS, STEPS_PER_EPOCH)
    optimizer = keywords.build(optimizers.make_optimizer, sections['optim'], 'config.optim', *fixed)
    state = train_state.create(task, optimizer, host, run.seed, run.ema_decay > 0, mesh)
    frozen = sharding.place_tree(task.frozen(), mesh)
    step = compile_step(task, optimizer, run, state, mesh, 1)
    placed = sharding.place_batch(host, mesh)
    flops = sum(task.flops(host).values()) / batch
    compiling: dict[str, float] = {}

    def make(_: int) -> Cost:
        nonlocal state
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            state, values = step(state, frozen, placed)
        jax.block_until_ready((state, values))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        compiling.setdefault('first_call_seconds', wall)
        peak = device_memory().get('device_memory_peak_mib')
        memory = {'flops_per_clip': flops, **compiling, **({} if peak is None else {'device_peak_mib': peak})}
        return Cost(batch * steps, cpu, wall, memory)

    return make


def matrix(dtype: str, steps: int) -> Make:
    """Square matrix products, each of which a measured batch counts as one clip; 'flops_per_clip' is its work."""
    side = CPU_SIDE if jax.default_backend() == 'cpu' else SIDE
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.dtype(dtype)) for i in range(2))

    @jax.jit
    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        # Each product is the next one's input, scaled so that nothing overflows: none can be left out.
        scale = jnp.asarray(side**-0.5, a.dtype)
        return jax.lax.fori_loop(0, steps, lambda _, x: (x @ b) * scale, a)

    def make(_: int) -> Cost:
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(products(a, b))
        return Cost(steps, time.process_time() - cpu, time.perf_counter() - wall, {'flops_per_clip': 2.0 * side**3})

    return make
