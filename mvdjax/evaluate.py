"""Evaluation: every video once, all views from one decode, nothing replaced, nothing counted twice."""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from mvdjax import checkpoints, handover, processes, sharding, topology
from mvdjax import config as configs
from mvdjax.console import progress_bar, say
from mvdjax.data.pipeline import (
    BadFiles,
    Data,
    empty_sample,
    eval_batches,
    merge_bad_files,
    read_bad_files,
    remove_bad_files,
)
from mvdjax.data.sources import check_same_classes, fingerprint
from mvdjax.errors import UserError
from mvdjax.settings import Run
from mvdjax.tasks.base import Task, check_backbone


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """A set of config.evals.

    Attributes:
      data: section of `data.pipeline.Data`, usually with the recipe 'views'.
      batch: videos per step over all devices; changes the speed and the memory, never the result.
      note: what to know about the scores of this set; printed with them.
    """

    data: Mapping[str, Any]
    batch: int
    note: str = ''

    def __post_init__(self) -> None:
        """Refuses an empty batch."""
        if self.batch < 1:
            raise UserError(f'evals.<set>.batch must be at least 1, not {self.batch}')

    def make_data(self) -> Data:
        """The data section, checked."""
        data: Data = configs.build(Data, self.data, 'evals.<set>.data')
        if data.mixture:
            raise UserError(
                'evals.<set>.data takes one list: make the sources of a mixture evaluation sets of their own'
            )
        return data


def eval_set(config: ml_collections.ConfigDict, name: str) -> EvalSet:
    """A named set of a config.

    Raises:
      UserError: no such set.
    """
    sets = configs.section(config, 'evals')
    if name not in sets:
        raise UserError(f'config.evals has no set {name!r}; it has {", ".join(sorted(sets)) or "none"}')
    return configs.build(EvalSet, sets[name], f'evals.{name}')


class SetEvaluator:
    """Runs a task's evaluators on one set. Made once and called often, it compiles once."""

    def __init__(
        self, task: Task, spec: EvalSet, mesh: Mesh, bad_file: str | None, precision: str | None = None
    ) -> None:
        """`bad_file` is where unreadable files are listed, or None; `precision`: see `settings.Run`."""
        self._task, self._mesh, self._bad_file = task, mesh, bad_file
        self._data = spec.make_data()
        self.files = self._data.read()
        task.check_files(self.files)
        for note in self.files.notes:
            say(f'note: {note}')
        if self._data.make().views != 1:
            raise UserError('an evaluation set takes one sample of each file: set views to 1 in its data options')
        rows = mesh.shape['data'] * mesh.shape['fsdp']
        self._batch = -(-spec.batch // rows) * rows  # padded rows are masked, so rounding up costs nothing but time
        self._empty = empty_sample(self._data, self.files)
        predict = sharding.traced_on(mesh, task.predict, precision)
        self._predict = jax.jit(predict, out_shardings=sharding.replicated(mesh))

    def __call__(self, params: Any, frozen: Any, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Evaluates.

        Args:
          params: of the task.
          frozen: what the task does not train.
          stop: asked after every batch, by every process; True, the same on all of them, ends the evaluation there.

        Returns:
          {metric: number, 'scored': videos that count, 'videos': videos in the list}; {} if it was told to stop.
        """
        evaluators = self._task.evaluators()
        scored = 0
        parts, of = topology.batch_parts(self._mesh, processes.index())
        batches = eval_batches(
            self._data,
            self.files,
            batch=self._batch,
            empty=self._empty,
            bad=BadFiles(self._bad_file, processes.index()),
            parts=parts,
            of=of,
        )
        with progress_bar(len(self.files.records), 0, 'video') as bar, closing(batches):
            for host in batches:
                batch = sharding.place_batch(host, self._mesh)
                outputs = jax.device_get(self._predict(params, frozen, batch))
                info: dict[str, Any] = {n: sharding.gather(batch[n]) for n in ('label', 'valid', 'index') if n in batch}
                for evaluator in evaluators.values():
                    evaluator.update(outputs, info)
                scored += int(info['valid'].sum())
                bar.update(len(info['valid']))
                if stop():
                    return {}
        numbers = {name: value for e in evaluators.values() for name, value in e.result().items()}
        return {**numbers, 'scored': scored, 'videos': len(self.files.records)}


def load_frozen_and_params(task: Task, checkpoint: str, use_ema: bool, mesh: Mesh, batch: Any) -> tuple[Any, Any]:
    """(frozen, params) on the devices, params strictly from a checkpoint of the same task."""
    check_backbone(checkpoints.read_meta(checkpoint), task.backbone(), 'model', checkpoint)
    expected = jax.eval_shape(task.init, jax.random.key(0), batch)
    loaded = handover.load_params(checkpoint, expected, 'model', use_ema=use_ema)
    say(loaded.table)
    return sharding.place_tree(task.frozen(), mesh), sharding.place_tree(loaded.params, mesh)


def evaluate(
    config: ml_collections.ConfigDict, checkpoint: str, output: str, set_name: str, use_ema: bool
) -> dict[str, Any]:
    """Scores a checkpoint on one set of its config and writes `results.json`.

    Args:
      config: the run's config.
      checkpoint: workdir or checkpoint.
      output: folder for `results.json` and `bad_videos.jsonl`.
      set_name: a name in config.evals.
      use_ema: score the moving average.

    Returns:
      What `results.json` holds.

    Raises:
      UserError: no such set, a checkpoint that does not fit, an output folder that cannot be written.
    """
    start = time.time()
    folder = str(checkpoints.find_step_folder(checkpoint))
    make_writable(output)
    bad_file = os.path.join(output, 'bad_videos.jsonl')
    if processes.is_main():
        remove_bad_files(bad_file)
    processes.barrier('old record removed')
    mesh = configs.build(sharding.make_mesh, configs.section(config, 'mesh'), 'mesh')
    task = configs.make_task(config)
    spec = eval_set(config, set_name)
    data = spec.make_data()
    files = data.read()
    mark = {set_name: fingerprint(files.records), 'records': len(files.records)}
    processes.check_same('list', mark, 'give all hosts the same list')
    check_same_classes(checkpoints.read_meta(checkpoint)['class_names'], checkpoint, files)
    one = {name: value[None] for name, value in empty_sample(data, files).items()}
    frozen, params = load_frozen_and_params(task, checkpoint, use_ema, mesh, one)
    run: Run = configs.build(Run, configs.section(config, 'run'), 'run')
    numbers = SetEvaluator(task, spec, mesh, bad_file, run.matmul_precision)(params, frozen)
    processes.barrier('evaluated')
    bad = read_bad_files(bad_file)
    processes.barrier('record read')
    results = {
        'checkpoint': folder,
        'set': set_name,
        'use_ema': use_ema,
        'list': data.files,
        'recipe': {'name': data.recipe, **data.options},
        **numbers,
        'undecodable': bad,
        'seconds': round(time.time() - start, 1),
    }
    if processes.is_main():
        merge_bad_files(bad_file)
        path = os.path.join(output, 'results.json')
        with open(path + '.tmp', 'w', encoding='utf-8') as file:
            json.dump(results, file, indent=1)
        os.replace(path + '.tmp', path)
    say(summary(numbers, bad_file if bad else None))
    if spec.note:
        say(f'note: {spec.note}')
    return results


def summary(numbers: Mapping[str, Any], bad_file: str | None) -> str:
    """One line: the metrics, and over how many videos."""
    metrics = ', '.join(f'{k} {v:.4g}' for k, v in numbers.items() if k not in ('scored', 'videos'))
    text = f'{metrics}: evaluated {numbers["scored"]} of {numbers["videos"]} videos'
    missing = numbers['videos'] - numbers['scored']
    if missing:
        text += f'; {missing} undecodable' + (f' (listed in {bad_file})' if bad_file else '')
    return text


def make_writable(folder: str) -> None:
    """Makes a folder and proves that it can be written.

    Raises:
      UserError: it cannot.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        token = os.path.join(folder, f'.write_test_{processes.index()}_{os.getpid()}')
        with open(token, 'w', encoding='utf-8') as file:
            file.write('x')
        os.remove(token)
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error.strerror}): choose another folder or fix it') from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax evaluate`."""
    configs.add_config_argument(parser)
    processes.add_arguments(parser)
    parser.add_argument('--checkpoint', required=True, help='workdir, or one of its checkpoints/<step>')
    parser.add_argument('--output', help='folder for results.json (default: the workdir of the checkpoint)')
    parser.add_argument('--set', default='test', help='a name in config.evals (default: test)')
    parser.add_argument('--ema', action='store_true', help='score the moving average of the parameters')
    parser.epilog = """example:
  mvdjax evaluate --config=configs/finetune/demo_nano.py:motion --checkpoint=runs/motion"""


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax evaluate`."""
    config = configs.load(args.config, args.overrides)
    output = args.output or checkpoints.workdir_of(args.checkpoint)
    limits: Run = configs.build(Run, configs.section(config, 'run'), 'run')
    processes.start(args, configs.flat(config), output, limits.init_timeout, limits.heartbeat_timeout)
    evaluate(config, args.checkpoint, output, args.set, args.ema)
    return 0
