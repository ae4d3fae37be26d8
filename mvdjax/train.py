"""The training loop: the same for every stage, read from top to bottom."""

import argparse
import os
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from mvdjax import checkpoints, compile_cache, optimizers, processes, selfcheck, sharding, train_state
from mvdjax import config as configs
from mvdjax.console import progress_bar, say
from mvdjax.data.pipeline import Data, Stream
from mvdjax.data.sources import check_same_classes, fingerprint
from mvdjax.evaluate import SetEvaluator, eval_set, make_writable, summary
from mvdjax.feed import check_same_lists, list_marks, main_part, open_feed, read_streams, rows_per_record
from mvdjax.metric_writer import MetricWriter
from mvdjax.resume import check_same_config, meta_data, start_state
from mvdjax.settings import Run
from mvdjax.tasks.base import Task
from mvdjax.train_step import compile_step
from mvdjax.window import Window


def make_optimizer(
    config: ml_collections.ConfigDict, run: Run, task: Task, params: Any, records: int
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
    config: ml_collections.ConfigDict, run: Run, task: Task, mesh: Mesh, workdir: str
) -> dict[str, SetEvaluator]:
    """The evaluations that run during training."""
    return {
        name: SetEvaluator(
            task,
            eval_set(config, name),
            mesh,
            os.path.join(workdir, f'bad_videos_{name}.jsonl'),
            run.matmul_precision,
        )
        for name in (run.eval_sets if run.eval_every else ())
    }


def check_streams(streams: Mapping[str, Stream], run: Run, mesh: Mesh) -> None:
    """Refuses batches that do not divide by the devices, and prints what reading the lists had to say."""
    for name, stream in streams.items():
        what = 'run.global_batch' if name == run.stream else f'streams.{name}.batch'
        sharding.check_batch_size(stream.batch, run.accumulate, mesh, processes.count(), what)
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
    run: Run = configs.build(Run, configs.section(config, 'run'), 'run')
    mesh = configs.build(sharding.make_mesh, configs.section(config, 'mesh'), 'mesh')
    task: Task = configs.make_task(config)
    streams = read_streams(config, run)
    files = streams[run.stream].files
    task.check_files(files)
    steps_per_epoch, steps = run.steps_per_epoch(len(files.records)), run.total_steps(len(files.records))
    check_streams(streams, run, mesh)
    lists = list_marks(streams)
    evaluators = make_evaluators(config, run, task, mesh, workdir)
    read = {'train': lists, **{name: {'hash': fingerprint(e.files.records)} for name, e in evaluators.items()}}
    processes.check_same('lists', configs.flat(read), 'give all hosts the same lists')
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
        feed = open_feed(streams, run, workdir, start=start, steps=steps, counts=counts, mesh=mesh)
        window = Window()
        host = feed(window)
        task.check(host)

        params = train_state.abstract_params(task, host)
        optimizer = make_optimizer(config, run, task, params, len(files.records))
        state = start_state(config, run, task, optimizer, host, saved, mesh)
        frozen = sharding.place_tree(task.frozen(), mesh)
        sender = sharding.Sender(mesh)
        step_function = compile_step(task, optimizer, run, state, mesh, rows_per_record(streams))
        say(sharding.describe(params, mesh))
        say(_batch_sum(run, mesh, streams, steps))
        rows = run.global_batch * streams[run.stream].data.make().views
        meta = meta_data(config, task, files, main_part(host, run.stream)['video'], before)

        numbers: dict[str, float] = {}
        with closing(feed), MetricWriter(workdir, start) as writer, progress_bar(steps, start, 'step') as bar:
            # The order matters: a checkpoint comes last, so that all that its steps have to say is written when a
            # resumed run starts after it, and a window of metrics never spans one.
            for step in range(start + 1, steps + 1):
                last = step == steps
                jax.block_until_ready(window.values[-1:])  # one step ahead, no more: what is waited for below is data
                state, values = step_function(state, frozen, sender.take(host))
                window.values.append(values)
                window.records += rows
                if not last:
                    host = feed(window)  # read and sent while the devices compute
                    sender.send(host)
                if last or step % run.log_every == 0 or step % run.save_every == 0:
                    numbers = window.close()
                    numbers['substituted'] = sum(processes.exchange('substituted', numbers['substituted']))
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
                    files_read = feed.totals(ahead=not last)
                    position = {'next_sample': step * run.global_batch, 'files': files_read, 'lists': lists}
                    saved.save(state, {**meta, 'step': step, 'data_position': position})
                bar.update(1)
        saved.wait()
    return numbers


def _batch_sum(run: Run, mesh: Mesh, streams: Mapping[str, Stream], steps: int) -> str:
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
    processes.add_arguments(parser)
    parser.add_argument(
        '--workdir', required=True, help='folder of checkpoints, metrics and logs; resumed if not empty'
    )
    parser.epilog = """example:
  mvdjax train --config=configs/videomae/demo_nano.py --workdir=runs/videomae --config.run.seed=1"""


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax train`."""
    config = configs.load(args.config, args.overrides)
    limits: Run = configs.build(Run, configs.section(config, 'run'), 'run')
    processes.start(args, configs.flat(config), args.workdir, limits.init_timeout, limits.heartbeat_timeout)
    compile_cache.use(limits.compile_cache, args.workdir)
    train(config, args.workdir)
    selfcheck.store_once(args.workdir)
    return 0
