"""The training loop: the same for every stage, read from top to bottom."""

import argparse
import dataclasses
import os
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from mvdjax import compile_cache, hang, optimizers, preemption, processes, selfcheck, sharding, train_state
from mvdjax import config as configs
from mvdjax.console import progress_bar, say
from mvdjax.data.pipeline import Data, Stream
from mvdjax.data.sources import FileList, check_same_classes, fingerprint
from mvdjax.evaluate import SetEvaluator, eval_set, make_writable
from mvdjax.evaluations import Evaluations, owed
from mvdjax.feed import list_marks, main_part, open_feed, read_streams, rows_per_record
from mvdjax.metric_writer import MetricWriter
from mvdjax.monitor import Monitor
from mvdjax.resume import find_place, meta_data, start_state
from mvdjax.rollback import Health
from mvdjax.saving import Checkpoints, SaveTimer
from mvdjax.settings import Run
from mvdjax.sharding import Sender
from mvdjax.tasks.base import Task
from mvdjax.train_step import compile_step
from mvdjax.workdir_lock import WorkdirLock


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
    if run.eval_sets and not run.eval_every:
        say(f'note: run.eval_sets names {", ".join(run.eval_sets)}, but run.eval_every is 0: nothing is evaluated')
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


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a config and its lists decide before anything is computed.

    Attributes:
      run: the run section.
      mesh: of the devices.
      task: the stage.
      streams: by name, lists read.
      lists: see `feed.list_marks`.
      evaluators: that run during training.
      steps_per_epoch: of the main list.
      steps: of the run.
    """

    run: Run
    mesh: Mesh
    task: Task
    streams: Mapping[str, Stream]
    lists: Mapping[str, Any]
    evaluators: Mapping[str, SetEvaluator]
    steps_per_epoch: int
    steps: int

    @property
    def rows(self) -> int:
        """Rows of a step, over all processes; a record may give several."""
        return self.run.global_batch * self.streams[self.run.stream].data.make().views

    @property
    def files(self) -> FileList:
        """The list in which epochs are counted."""
        return self.streams[self.run.stream].files


def prepare(config: ml_collections.ConfigDict, workdir: str) -> Setup:
    """Reads the lists of a config and checks that all of it fits together.

    Raises:
      UserError: it does not.
    """
    run: Run = configs.build(Run, configs.section(config, 'run'), 'run')
    mesh = configs.build(sharding.make_mesh, configs.section(config, 'mesh'), 'mesh')
    task: Task = configs.make_task(config)
    streams = read_streams(config, run)
    files = streams[run.stream].files
    task.check_files(files)
    steps_per_epoch, steps = run.steps_per_epoch(len(files.records)), run.total_steps(len(files.records))
    check_streams(streams, run, mesh)
    lists, evaluators = list_marks(streams), make_evaluators(config, run, task, mesh, workdir)
    read = {'train': lists, **{name: {'hash': fingerprint(e.files.records)} for name, e in evaluators.items()}}
    processes.check_same('lists', configs.flat(read), 'give all hosts the same lists')
    for evaluator in evaluators.values():
        check_same_classes(files.class_names, files.path, evaluator.files)
    return Setup(run, mesh, task, streams, lists, evaluators, steps_per_epoch, steps)


def train(config: ml_collections.ConfigDict, workdir: str, profile: str = '') -> dict[str, float]:
    """Trains a stage, or continues it where its workdir's last checkpoint stands.

    Args:
      config: a locked config, see mvdjax/config.py.
      workdir: folder of checkpoints, metrics and logs.
      profile: steps to trace, see `profiler.Profiler`.

    Returns:
      The last window's metrics.

    Raises:
      UserError: anything wrong with config, data, checkpoints or workdir (another run may be in it), or with the run's
        health.
      Stopped: the run was told to stop, and has saved.
    """
    make_writable(workdir)
    setup = prepare(config, workdir)
    run, mesh, task, steps = setup.run, setup.mesh, setup.task, setup.steps
    with (
        WorkdirLock(workdir),
        preemption.Notice() as notice,
        Checkpoints(workdir, run.keep, run.keep_every) as saved,  # leaving it waits for the last save
        hang.Watch(run.hang_minutes) as watch,
        Monitor(workdir, profile) as monitor,
    ):
        before = saved.latest_meta()
        place = find_place(before, config, setup.lists, workdir)
        missing = owed(place, setup.evaluators, workdir)
        if place.step >= steps and not missing:
            say(f'{workdir} is finished: step {place.step} of {steps}')
            return {}
        feed = open_feed(setup.streams, run, workdir, place, max(steps, place.step + 1), mesh)
        window = monitor.window()
        host = feed(window)
        task.check(host)
        monitor.know_work(task, host, setup.rows / len(main_part(host, run.stream)['video']), mesh)
        params = train_state.abstract_params(task, host)
        optimizer = make_optimizer(config, run, task, params, len(setup.files.records))
        state = start_state(config, run, task, optimizer, host, saved, mesh)
        frozen = sharding.place_tree(task.frozen(), mesh)
        step_function = compile_step(task, optimizer, run, state, mesh, rows_per_record(setup.streams))
        say(sharding.describe(params, mesh) + '\n' + _batch_sum(setup))
        meta = meta_data(config, task, setup.files, main_part(host, run.stream)['video'], before)
        health, timer, sender = Health(workdir, run, setup.streams, place), SaveTimer(run.save_minutes), Sender(mesh)

        numbers: dict[str, float] = {}
        step = place.step
        writer = MetricWriter(workdir, step, run.wandb, meta['config'])
        with closing(feed), writer, progress_bar(steps, step, 'step') as bar:
            monitor.start(step)
            evaluations = Evaluations(setup.evaluators, run.eval_every, writer, watch, notice)
            stop = evaluations(step, state.tested, frozen, missing)
            # The order matters: metrics before a checkpoint, so that all that its steps have to say is written when a
            # resumed run starts after it, and a window of metrics never spans one. An evaluation, which may take hours,
            # comes after it: the checkpoint owes it, and a resumed run makes up for what has no line in the metrics.
            while step < steps and not stop:
                step += 1
                last = step == steps
                jax.block_until_ready(window.values[-2:-1])  # two steps are on their way, no more
                with monitor.step(step, window):
                    state, values = step_function(state, frozen, sender.take(host))
                monitor.started(values, setup.rows, window)
                if not last:
                    host = feed(window)  # read and sent while the devices compute
                    sender.send(host)
                watch.beat(step)
                saved.check()
                evaluate = evaluations.due(step, last)
                stop = notice.reached() and (evaluate or not last)
                log = last or evaluate or step % run.log_every == 0
                save = last or stop or step % run.save_every == 0 or timer.due(ask=log)
                if log or save:
                    numbers = monitor.numbers(window)
                    if health.diverged(step, window.fetched):
                        del state  # the devices have no room for two
                        place = health.go_back(saved, feed, writer, steps)
                        state = start_state(config, run, task, optimizer, host, saved, mesh)
                        step, bar.n, window = place.step, place.step, monitor.window()
                        monitor.start(step)
                        host = feed(window)
                        continue
                    window = monitor.window()
                    writer.write(step, 'train', {'epoch': step / setup.steps_per_epoch, **numbers})
                    _show(bar, step, steps, numbers)
                if evaluate and not save:
                    with window.losing('evaluate'):
                        stop = save = evaluate = evaluations(step, state.tested, frozen)  # told to stop meanwhile
                if save:
                    here = health.here(step, feed.totals(ahead=not last), owes_evaluation=evaluate)
                    with window.losing('save'):
                        saved.save(state, {**meta, **here.meta(run.global_batch, setup.lists)})
                    timer.restart()
                if evaluate and not stop:
                    with window.losing('evaluate'):
                        stop = evaluations(step, state.tested, frozen)
                bar.update(1)
    if stop:
        raise notice.stopped(f'after step {step}, which is saved')
    return numbers


def _batch_sum(setup: Setup) -> str:
    shards, accumulate = setup.mesh.shape['data'] * setup.mesh.shape['fsdp'], setup.run.accumulate
    lines = []
    for name, stream in setup.streams.items():
        what = 'batch' if len(setup.streams) == 1 else f'{name} batch'
        per = stream.batch // (shards * accumulate)
        lines.append(
            f'{what} {stream.batch} = {per} per device x {shards} batch shards x {accumulate} accumulation; '
            f'{len(stream.files.records)} files'
        )
    return '\n'.join(lines) + f', {setup.steps} steps'


def _show(bar: Any, step: int, steps: int, numbers: Mapping[str, float]) -> None:
    """A line of metrics: on the bar of a terminal, or printed."""
    hidden = ('update_norm', 'substituted', 'skipped', 'steps_per_second', 'useful_seconds', 'starts')
    shown = {k: f'{v:.4g}' for k, v in numbers.items() if k not in hidden and not k.endswith('_mib')}
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
    parser.add_argument(
        '--profile',
        default='',
        metavar='FIRST:STEPS',
        help='trace these steps: 20:5 is steps 20 to 24, see WORKDIR/profile',
    )
    parser.epilog = """example:
  mvdjax train --config=configs/videomae/demo_nano.py --workdir=runs/videomae --config.run.seed=1

exit codes: 0 finished, 75 stopped (SIGTERM) or lost, start the same command again, 130 stopped by Ctrl-C, 1 failed,
2 wrong usage; see docs/checkpoints.md"""


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax train`."""
    config = configs.load(args.config, args.overrides)
    limits: Run = configs.build(Run, configs.section(config, 'run'), 'run')
    processes.start(args, configs.flat(config), args.workdir, limits.init_timeout, limits.heartbeat_timeout)
    compile_cache.use(limits.compile_cache, args.workdir)
    train(config, args.workdir, args.profile)
    selfcheck.store_once(args.workdir)
    return 0
