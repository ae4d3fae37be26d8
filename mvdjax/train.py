"""The training loop: the same for every stage, read from top to bottom."""

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from mvdjax import checkpoints, metrics, optimizers, selfcheck, sharding, train_state
from mvdjax import config as configs
from mvdjax.console import progress_bar, say
from mvdjax.data.pipeline import Data, Stream
from mvdjax.data.sources import FileList, check_same_classes
from mvdjax.errors import UserError
from mvdjax.evaluate import SetEvaluator, eval_set, make_writable, summary
from mvdjax.feed import check_same_lists, list_marks, main_part, open_feed, read_streams, rows_per_record
from mvdjax.metric_writer import MetricWriter
from mvdjax.rng import step_keys
from mvdjax.tasks.base import Batch, Task, check_backbone, describe
from mvdjax.train_state import TrainState
from mvdjax.window import Window

# What may differ when a run is resumed: where things lie and how fast they go, not what is computed. Lists may have
# moved, but `check_same_lists` holds what they name against the checkpoint's.
FREE_ON_RESUME = (
    r'^run\.(log_every|save_every|keep|eval_every|eval_sets|accumulate)$',
    r'^(data|streams\.[^.]+\.data)\.(files|root|class_file|workers|threads|prefetch|timeout|max_bad_fraction)$',
    r'^(data|streams\.[^.]+\.data)\.mixture\.[^.]+\.(files|root|class_file)$',
    r'^(mesh|evals|init)\.',
    r'^task\.teachers\.\w+\.checkpoint$',
)

StepFunction = Callable[[TrainState, Any, Batch], tuple[TrainState, metrics.Metrics]]


def make_train_step(
    task: Task, optimizer: optimizers.Optimizer, *, seed: int, accumulate: int, ema_decay: float, views: Any
) -> StepFunction:
    """The function of one optimizer step: pure, to be jitted with its first argument donated.

    A step whose loss, gradient or update is not finite leaves parameters, optimizer state and average as they were,
    and is counted. `views` neighbouring rows of a batch are of one video and stay together in a micro-batch: a number,
    or {stream: number} where batches have sub-dicts.
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
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else optax.incremental_update(params, state.ema, 1.0 - ema_decay)

        ok = jnp.isfinite(values['loss'][0]) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
        kept = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        skipped = state.skipped + jnp.where(ok, 0, 1)
        values = {
            **values,
            'grad_norm': metrics.scalar(grad_norm),
            'update_norm': metrics.scalar(update_norm),
        }
        # A skipped step says nothing about the loss: it enters no average.
        values = {n: (jnp.where(ok, s, 0.0), jnp.where(ok, c, 0.0)) for n, (s, c) in values.items()}
        values |= {'learning_rate': metrics.scalar(rate), 'skipped': metrics.scalar(jnp.where(ok, 0.0, 1.0))}
        if optimizer.weight_decay is not None:
            values['weight_decay'] = metrics.scalar(optimizer.weight_decay(state.step))
        return TrainState(state.step + 1, skipped, *kept), values

    return step


def compile_step(
    task: Task, optimizer: optimizers.Optimizer, run: configs.Run, state: TrainState, mesh: Mesh, views: Any
) -> StepFunction:
    """The jitted step: the state donated and returned where it was, so that it compiles once for the whole run."""
    step = make_train_step(
        task, optimizer, seed=run.seed, accumulate=run.accumulate, ema_decay=run.ema_decay, views=views
    )
    placement = sharding.tree_sharding(state, mesh)
    return jax.jit(step, out_shardings=(placement, sharding.replicated(mesh)), donate_argnums=0)


def meta_data(
    config: ml_collections.ConfigDict, task: Task, files: FileList, video: Any, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The JSON that travels in a checkpoint, less what changes from step to step.

    `video` is a batch's. `before` is the meta of the checkpoint that the run is resumed from, which knows the origin of
    the weights: the folders of earlier stages may be gone by then.
    """
    plain = json.loads(json.dumps(config.to_dict()))
    if before is None:
        paths = [p for p in (plain['init']['checkpoint'], *task.sources()) if p]
        metas = [(path, checkpoints.read_meta(path)) for path in paths]
        sources = [{'checkpoint': path, 'licence': m['licence'], 'sources': m['sources']} for path, m in metas]
    else:
        sources = before['sources']
    return {
        'schema_version': checkpoints.SCHEMA_VERSION,
        'config': plain,
        'class_names': list(files.class_names),
        'input_shape': list(video.shape[1:]),
        'backbone': describe(task.backbone()),
        'sources': sources,
        'licence': 'see sources' if sources else 'trained from scratch by this run: yours, and that of your data',
    }


def check_same_config(before: Mapping[str, Any], config: ml_collections.ConfigDict, workdir: str) -> None:
    """Refuses to resume a run as another one.

    Raises:
      UserError: a value differs that is not in FREE_ON_RESUME; the message names it.
    """
    old = _flat(before['config'])
    new = _flat(json.loads(json.dumps(config.to_dict())))
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    changed = [k for k in changed if not any(re.search(pattern, k) for pattern in FREE_ON_RESUME)]
    if changed:
        shown = '; '.join(f'{k} is {new.get(k)!r}, the run had {old.get(k)!r}' for k in changed[:3])
        more = f' and {len(changed) - 3} more' if len(changed) > 3 else ''
        raise UserError(
            f'the run in {workdir} cannot be resumed with this config: {shown}{more}. Use the config that started it, '
            'or a new workdir (init.checkpoint takes over its parameters)'
        )


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
    """A nested dict as {'a.b': value}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        k: v for name, child in tree.items() for k, v in _flat(child, f'{prefix}.{name}' if prefix else name).items()
    }


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
        check_backbone(checkpoints.read_meta(init.checkpoint), task.backbone(), 'model', init.checkpoint)
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


def make_optimizer(
    config: ml_collections.ConfigDict, run: configs.Run, task: Task, params: Any, records: int
) -> optimizers.Optimizer:
    """The optimizer of a config's `optim` section for a task's (abstract) parameters and a list of `records` files."""
    data: Data = configs.build(Data, configs.section(config, 'data'), 'data')
    return configs.build(
        optimizers.make_optimizer,
        configs.section(config, 'optim'),
        'optim',
        params,
        task.layer_index,
        run.global_batch,
        data.make().views,
        run.schedule_steps(records),
        run.steps_per_epoch(records),
    )


def make_evaluators(
    config: ml_collections.ConfigDict, run: configs.Run, task: Task, mesh: Mesh, workdir: str
) -> dict[str, SetEvaluator]:
    """The evaluations that run during training."""
    if run.eval_sets and not run.eval_every:
        say(f'note: run.eval_sets names {", ".join(run.eval_sets)}, but run.eval_every is 0: nothing is evaluated')
    return {
        name: SetEvaluator(task, eval_set(config, name), mesh, os.path.join(workdir, f'bad_videos_{name}.jsonl'))
        for name in (run.eval_sets if run.eval_every else ())
    }


def check_streams(streams: Mapping[str, Stream], run: configs.Run, mesh: Mesh) -> None:
    """Refuses batches that do not divide by the devices, and prints what reading the lists had to say."""
    for name, stream in streams.items():
        what = 'run.global_batch' if name == run.stream else f'streams.{name}.batch'
        sharding.check_batch_size(stream.batch, run.accumulate, mesh, jax.process_count(), what)
        for note in stream.files.notes:
            say(f'note: {note}')


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
    streams = read_streams(config, run)
    files = streams[run.stream].files
    task.check_files(files)
    steps_per_epoch, steps = run.steps_per_epoch(len(files.records)), run.total_steps(len(files.records))
    check_streams(streams, run, mesh)
    lists = list_marks(streams)
    evaluators = make_evaluators(config, run, task, mesh, workdir)
    for evaluator in evaluators.values():
        check_same_classes(files.class_names, files.path, evaluator.files)

    with checkpoints.Checkpoints(workdir, run.keep) as saved:
        start = saved.latest() or 0
        before = checkpoints.read_meta(workdir) if start else None
        if before is not None:
            check_same_config(before, config, workdir)
            check_same_lists(before['data_position'].get('lists', {}), lists, workdir)
        if start >= steps:
            say(f'{workdir} is finished: step {start} of {steps}')
            return {}
        counts = before['data_position'].get('files', {}) if before else {}
        feed = open_feed(streams, run, workdir, start=start, steps=steps, counts=counts)
        window = Window()
        host = feed(window)
        task.check(host)

        params = train_state.abstract_params(task, host)
        optimizer = make_optimizer(config, run, task, params, len(files.records))
        state = start_state(config, run, task, optimizer, host, saved, mesh)
        frozen = sharding.place_tree(task.frozen(), mesh)
        step_function = compile_step(task, optimizer, run, state, mesh, rows_per_record(streams))
        say(sharding.describe(params, mesh))
        say(_batch_sum(run, mesh, streams, steps))
        meta = meta_data(config, task, files, main_part(host, run.stream)['video'], before)

        numbers: dict[str, float] = {}
        with closing(feed), MetricWriter(workdir, start) as writer, progress_bar(steps, start, 'step') as bar:
            # The order matters: a checkpoint comes last, so that all that its steps have to say is written when a
            # resumed run starts after it, and a window of metrics never spans one.
            for step in range(start + 1, steps + 1):
                last = step == steps
                jax.block_until_ready(window.values[-1:])  # one step ahead, no more: what is waited for below is data
                state, values = step_function(state, frozen, sharding.place_batch(host, mesh))
                window.values.append(values)
                window.records += len(main_part(host, run.stream)['video']) * jax.process_count()
                if not last:
                    host = feed(window)  # read while the devices compute
                if last or step % run.log_every == 0 or step % run.save_every == 0:
                    numbers = window.close()
                    window = Window(streak=window.streak)
                    writer.write(step, 'train', {'epoch': step / steps_per_epoch, **numbers})
                    _show(bar, step, steps, numbers)
                if evaluators and (last or step % run.eval_every == 0):
                    for name, evaluator in evaluators.items():
                        found = evaluator(state.params, frozen)
                        writer.write(step, name, found)
                        say(f'step {step} {name}: {summary(found, None)}')
                    window.start = time.perf_counter()
                if last or step % run.save_every == 0:
                    files_read = feed.counts(ahead=not last)
                    position = {'next_sample': step * run.global_batch, 'files': files_read, 'lists': lists}
                    saved.save(state, {**meta, 'step': step, 'data_position': position})
                bar.update(1)
        saved.wait()
    return numbers


def _batch_sum(run: configs.Run, mesh: Mesh, streams: Mapping[str, Stream], steps: int) -> str:
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    lines = []
    for name, stream in streams.items():
        what = 'batch' if len(streams) == 1 else f'{name} batch'
        per = stream.batch // (shards * run.accumulate)
        lines.append(
            f'{what} {stream.batch} = {per} per device x {shards} batch shards x {run.accumulate} accumulation; '
            f'{len(stream.files.records)} files'
        )
    return '\n'.join(lines) + f', {steps} steps'


def _show(bar: Any, step: int, steps: int, numbers: Mapping[str, float]) -> None:
    """A line of metrics: on the bar of a terminal, or printed."""
    hidden = ('update_norm', 'substituted', 'skipped', 'memory_mib', 'worker_memory_mib')
    shown = {k: f'{v:.4g}' for k, v in numbers.items() if k not in hidden}
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
    selfcheck.store_once(args.workdir)
    return 0
