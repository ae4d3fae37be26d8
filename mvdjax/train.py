"""The training loop: the same for every stage, read from top to bottom."""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from mvdjax import checkpoints, metrics, optimizers, sharding, train_state
from mvdjax import config as configs
from mvdjax.console import progress_bar, say
from mvdjax.data.pipeline import BadFiles, Data, train_batches
from mvdjax.data.schema import SUBSTITUTED, Sample
from mvdjax.errors import UserError
from mvdjax.evaluate import SetEvaluator, eval_set, make_writable, summary
from mvdjax.metric_writer import MetricWriter
from mvdjax.rng import step_keys
from mvdjax.tasks.base import Batch, Task
from mvdjax.train_state import TrainState

StepFunction = Callable[[TrainState, Any, Batch], tuple[TrainState, metrics.Metrics]]


def make_train_step(
    task: Task, optimizer: optimizers.Optimizer, *, seed: int, accumulate: int, ema_decay: float
) -> StepFunction:
    """The function of one optimizer step: pure, to be jitted with its first argument donated.

    A step whose loss or gradient is not finite leaves parameters, optimizer and average as they were, and is counted.
    """

    def gradients(params: Any, frozen: Any, batch: Batch, keys: Mapping[str, jax.Array]) -> tuple[Any, metrics.Metrics]:
        def loss(p: Any) -> tuple[jax.Array, metrics.Metrics]:
            return task.loss(p, frozen, batch, keys, train=True)

        return jax.grad(loss, has_aux=True)(params)

    def accumulated(params: Any, frozen: Any, batch: Batch, keys: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        # Strided micro-batches: each takes rows from every device, so no row has to move between devices.
        micro = {n: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1) for n, x in batch.items()}

        def add(total: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            number, rows = part
            more = gradients(params, frozen, rows, {n: jax.random.fold_in(k, number) for n, k in keys.items()})
            return jax.tree.map(jnp.add, total, more), None

        shapes = jax.eval_shape(gradients, params, frozen, {n: x[0] for n, x in micro.items()}, keys)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (total, values), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))
        return jax.tree.map(lambda g: g / accumulate, total), values

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, metrics.Metrics]:
        keys = step_keys(seed, state.step, task.rng_names)
        grads, values = (gradients if accumulate == 1 else accumulated)(state.params, frozen, batch, keys)
        grad_norm = optax.tree.norm(grads)
        directions, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
        rate = optimizer.schedule(state.step)
        updates = optimizers.apply_rate(directions, rate)
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else optax.incremental_update(params, state.ema, 1.0 - ema_decay)

        ok = jnp.isfinite(values['loss'][0]) & jnp.isfinite(grad_norm)
        kept = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        skipped = state.skipped + jnp.where(ok, 0, 1)
        values = {
            **values,
            'grad_norm': metrics.scalar(grad_norm),
            'update_norm': metrics.scalar(optax.tree.norm(updates)),
        }
        # A skipped step says nothing about the loss: it enters no average.
        values = {n: (jnp.where(ok, s, 0.0), jnp.where(ok, c, 0.0)) for n, (s, c) in values.items()}
        values |= {'learning_rate': metrics.scalar(rate), 'skipped': metrics.scalar(jnp.where(ok, 0.0, 1.0))}
        return TrainState(state.step + 1, skipped, *kept), values

    return step


def compile_step(
    task: Task, optimizer: optimizers.Optimizer, run: configs.Run, state: TrainState, mesh: Mesh
) -> StepFunction:
    """The jitted step: the state donated and returned where it was, so that it compiles once for the whole run."""
    step = make_train_step(task, optimizer, seed=run.seed, accumulate=run.accumulate, ema_decay=run.ema_decay)
    placement = sharding.tree_sharding(state, mesh)
    return jax.jit(step, out_shardings=(placement, sharding.replicated(mesh)), donate_argnums=0)


@dataclasses.dataclass
class Window:
    """What happened since the last line of metrics."""

    values: list[metrics.Metrics] = dataclasses.field(default_factory=list)
    records: int = 0
    substituted: int = 0
    wait: float = 0.0
    start: float = dataclasses.field(default_factory=time.perf_counter)

    def close(self) -> dict[str, float]:
        """Means of the metrics, rates of the clock. Waits for the devices."""
        host = jax.device_get(self.values)
        total = {n: (sum(float(v[n][0]) for v in host), sum(float(v[n][1]) for v in host)) for n in host[0]}
        numbers = metrics.means(total)
        numbers['skipped'] = total['skipped'][0]
        seconds = time.perf_counter() - self.start
        numbers |= {
            'substituted': float(self.substituted),
            'clips_per_second': self.records / seconds,
            'data_wait': self.wait / seconds,
        }
        if numbers['skipped'] == len(self.values):
            raise UserError(
                f'each of the last {len(self.values)} steps had a loss or gradient that was not finite: lower the '
                'rate, clip gradients (optim.clip_norm) or compute in float32, and start again from the last checkpoint'
            )
        return numbers


class Feed:
    """The training batches, with the bad-file budget and the time spent waiting for data."""

    def __init__(self, batches: Iterator[Sample], limit: float, files: str, bad_file: str) -> None:
        """`limit` is the share of unreadable files tried above which training stops."""
        self._batches, self._limit, self._files, self._bad_file = batches, limit, files, bad_file
        self._tried = self._failed = 0

    def __call__(self, window: Window) -> Sample:
        """The next batch, counted in `window`."""
        start = time.perf_counter()
        batch = next(self._batches)
        window.wait += time.perf_counter() - start
        failed = int(batch.pop(SUBSTITUTED).sum())
        rows = len(next(iter(batch.values())))
        window.substituted += failed
        self._failed, self._tried = self._failed + failed, self._tried + failed + rows
        if self._tried >= 100 and self._failed > self._limit * self._tried:
            raise UserError(
                f'{self._failed} of {self._tried} files tried from {self._files} could not be read, more than '
                f'data.max_bad_fraction {self._limit:g}; see {self._bad_file}, repair the files or raise the limit'
            )
        return batch


def meta_data(config: ml_collections.ConfigDict, data: Data, step: int, batch: Batch) -> dict[str, Any]:
    """The JSON that travels in a checkpoint."""
    plain = json.loads(json.dumps(config.to_dict()))
    sources = _sources(plain)
    return {
        'schema_version': checkpoints.SCHEMA_VERSION,
        'config': plain,
        'step': step,
        'data_position': {'next_sample': step * plain['run']['global_batch']},
        'class_names': list(data.read().class_names),
        'input_shape': list(batch['video'].shape[1:]),
        'sources': sources,
        'licence': 'see sources' if sources else 'trained from scratch by this run: yours, and that of your data',
    }


def _sources(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Checkpoints that a run's weights come from, with what they say of their own origin."""
    found = [config['init']['checkpoint']] if config['init'].get('checkpoint') else []
    teachers = config['task'].get('teachers', {})
    found += [t['checkpoint'] for t in teachers.values() if t['checkpoint'] != 'random']
    metas = [(path, checkpoints.read_meta(path)) for path in found]
    return [{'checkpoint': path, 'licence': m['licence'], 'sources': m['sources']} for path, m in metas]


def start_state(
    config: ml_collections.ConfigDict,
    run: configs.Run,
    task: Task,
    optimizer: optimizers.Optimizer,
    batch: Batch,
    saved: checkpoints.Checkpoints,
    mesh: Mesh,
) -> TrainState:
    """Where a run starts, in this order of precedence.

    1. The workdir's newest checkpoint: the run continues, whatever `init` says.
    2. `init.checkpoint`: another stage's parameters, a new optimizer, step 0.
    3. Fresh parameters.
    """
    step = saved.latest()
    if step is not None:
        make = train_state.make_state_function(task, optimizer, run.ema_decay > 0)
        say(f'resuming at step {step}')
        return saved.restore(step, jax.eval_shape(make, jax.random.key(0), batch), mesh)
    state = train_state.create(task, optimizer, batch, run.seed, run.ema_decay > 0, mesh)
    init = configs.build(configs.Init, configs.section(config, 'init'), 'init')
    if init.checkpoint:
        loaded = checkpoints.load_params(
            init.checkpoint,
            train_state.abstract_params(task, batch),
            'initial parameters',
            allow_fresh=init.allow_fresh,
            allow_unused=init.allow_unused,
            use_ema=init.use_ema,
        )
        say(loaded.table)
        params = jax.tree.map(
            lambda new, old: old if isinstance(new, jax.ShapeDtypeStruct) else new, loaded.params, state.params
        )
        ema = sharding.place_tree(params, mesh) if state.ema is not None else None
        state = state._replace(params=sharding.place_tree(params, mesh), ema=ema)
    return state


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Trains a stage, or continues it where its workdir's last checkpoint stands.

    Args:
      config: a locked config, see mvdjax/config.py.
      workdir: folder of checkpoints, metrics and logs.

    Returns:
      The last window's metrics.

    Raises:
      UserError: anything wrong with config, data, checkpoints or workdir.
    """
    make_writable(workdir)
    run: configs.Run = configs.build(configs.Run, configs.section(config, 'run'), 'run')
    mesh = configs.build(sharding.make_mesh, configs.section(config, 'mesh'), 'mesh')
    task: Task = configs.make_task(config)
    data: Data = configs.build(Data, configs.section(config, 'data'), 'data')
    files = data.read()
    steps_per_epoch, steps = run.steps_per_epoch(len(files.records)), run.total_steps(len(files.records))
    sharding.check_batch_size(run.global_batch, run.accumulate, mesh, jax.process_count())
    evaluators = {
        name: SetEvaluator(task, eval_set(config, name), mesh, os.path.join(workdir, f'bad_videos_{name}.jsonl'))
        for name in (run.eval_sets if run.eval_every else ())
    }

    with checkpoints.Checkpoints(workdir, run.keep) as saved:
        start = saved.latest() or 0
        if start >= steps:
            say(f'{workdir} is finished: step {start} of {steps}')
            return {}
        bad_file = os.path.join(workdir, 'bad_videos.jsonl')
        batches = train_batches(
            data,
            files,
            seed=run.seed,
            global_batch=run.global_batch,
            start_step=start,
            steps=steps,
            bad=BadFiles(bad_file),
            process=jax.process_index(),
            processes=jax.process_count(),
        )
        feed = Feed(batches, data.max_bad_fraction, files.path, bad_file)
        window = Window()
        host = feed(window)
        task.check(host)

        params = train_state.abstract_params(task, host)
        optimizer = configs.build(
            optimizers.make_optimizer,
            configs.section(config, 'optim'),
            'optim',
            params,
            task.layer_index,
            run.global_batch,
            run.schedule_steps(len(files.records)),
            steps_per_epoch,
        )
        state = start_state(config, run, task, optimizer, host, saved, mesh)
        frozen = sharding.place_tree(task.frozen(), mesh)
        step_function = compile_step(task, optimizer, run, state, mesh)
        say(sharding.describe(params, mesh))
        say(_batch_sum(run, mesh, len(files.records), steps))
        meta = meta_data(config, data, start, host)

        numbers: dict[str, float] = {}
        with MetricWriter(workdir, start) as writer, progress_bar(steps, start, 'step') as bar:
            # The order matters: a checkpoint holds exactly the steps that the metrics before it describe.
            for step in range(start + 1, steps + 1):
                state, values = step_function(state, frozen, sharding.place_batch(host, mesh))
                window.values.append(values)
                window.records += len(host['video']) * jax.process_count()
                if step < steps:
                    host = feed(window)  # read while the devices compute
                if step % run.log_every == 0 or step == steps:
                    numbers = window.close()
                    window = Window()
                    writer.write(step, 'train', {'epoch': step / steps_per_epoch, **numbers})
                    _show(bar, step, steps, numbers)
                if step % run.save_every == 0 or step == steps:
                    saved.save(state, {**meta, 'step': step, 'data_position': {'next_sample': step * run.global_batch}})
                if evaluators and (step % run.eval_every == 0 or step == steps):
                    for name, evaluator in evaluators.items():
                        found = evaluator(state.params, frozen)
                        writer.write(step, name, found)
                        say(f'step {step} {name}: {summary(found, None)}')
                    window = Window()
                bar.update(1)
        saved.wait()
    return numbers


def _batch_sum(run: configs.Run, mesh: Mesh, records: int, steps: int) -> str:
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    per = run.global_batch // (shards * run.accumulate)
    return (
        f'batch {run.global_batch} = {per} per device x {shards} batch shards x {run.accumulate} accumulation; '
        f'{records} files, {steps} steps'
    )


def _show(bar: Any, step: int, steps: int, numbers: Mapping[str, float]) -> None:
    """A line of metrics: on the bar of a terminal, or printed."""
    shown = {k: f'{v:.4g}' for k, v in numbers.items() if k not in ('update_norm', 'substituted', 'skipped')}
    shown |= {k: f'{numbers[k]:.0f}' for k in ('substituted', 'skipped') if numbers[k]}
    if not bar.disable:
        bar.set_postfix(shown)
    else:
        say(f'step {step}/{steps} ' + ' '.join(f'{k} {v}' for k, v in shown.items()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax train`."""
    configs.add_config_argument(parser)
    parser.add_argument(
        '--workdir', required=True, help='folder of checkpoints, metrics and logs; resumed if not empty'
    )
    parser.epilog = """example:
  mvdjax train --config=configs/videomae/demo_nano.py --workdir=runs/videomae --config.run.seed=1"""


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax train`."""
    train(configs.load(args.config, args.overrides), args.workdir)
    return 0
