"""Configs: Python files that set values. Loading, overriding, and turning each section into a call.

A section is the keyword arguments of exactly one callable, so a misspelt or missing key is an error that names it.

    config.task_name      the module mvdjax/tasks/<task_name>.py
    config.task           Task(**task)
    config.data           data.pipeline.Data(**data), the training set
    config.evals          name -> {'data': Data(**data), 'batch': videos per step}
    config.optim          optimizers.make_optimizer(..., **optim)
    config.init           Init(**init): where the parameters start from
    config.run            Run(**run)
    config.mesh           sharding.make_mesh(**mesh)
"""

import argparse
import ast
import dataclasses
import difflib
import importlib
import inspect
import os
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from mvdjax import optimizers, sharding
from mvdjax.data.pipeline import Data
from mvdjax.errors import UserError

SECTIONS = ('task_name', 'task', 'data', 'evals', 'optim', 'init', 'run', 'mesh')


@dataclasses.dataclass(frozen=True)
class Init:
    """Where the parameters start from.

    Attributes:
      checkpoint: workdir or checkpoint of an earlier stage; '' starts from scratch.
      allow_fresh: regexes of parameters that may be missing there.
      allow_unused: regexes of parameters there that may be left over.
      use_ema: take that run's moving average.
    """

    checkpoint: str = ''
    allow_fresh: Sequence[str] = ()
    allow_unused: Sequence[str] = ()
    use_ema: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """How long and how often.

    Attributes:
      global_batch: records per optimizer step over all devices and processes (a record may give several views).
      epochs: length in passes over the training list; or give `steps`.
      steps: length in optimizer steps.
      schedule_epochs: length that the rate schedule is computed for, if not the run's (the published runs schedule
        401 epochs and use the checkpoint after 400).
      seed: of initialisation, data order, augmentation, masks and dropout.
      accumulate: micro-batches per optimizer step.
      ema_decay: decay of the moving average of the parameters; 0 keeps none.
      log_every: steps per line of metrics.
      save_every: steps between checkpoints; the last step is saved always.
      keep: newest checkpoints kept.
      eval_every: steps between evaluations of `eval_sets`; 0 for none.
      eval_sets: names in config.evals.
    """

    global_batch: int
    epochs: float | None = None
    steps: int | None = None
    schedule_epochs: float | None = None
    seed: int = 0
    accumulate: int = 1
    ema_decay: float = 0.0
    log_every: int = 50
    save_every: int = 1000
    keep: int = 3
    eval_every: int = 0
    eval_sets: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuses two spellings of the length, and counts that cannot be."""
        if (self.epochs is None) == (self.steps is None):
            raise UserError('config.run: give the length either as epochs or as steps')
        for name in ('global_batch', 'accumulate', 'log_every', 'save_every', 'keep'):
            if getattr(self, name) < 1:
                raise UserError(f'config.run.{name} must be at least 1, not {getattr(self, name)}')
        if not 0 <= self.ema_decay < 1:
            raise UserError(f'config.run.ema_decay must lie in [0, 1), not {self.ema_decay}')

    def steps_per_epoch(self, records: int) -> int:
        """Full batches in a pass over the list.

        Raises:
          UserError: the list is smaller than a batch.
        """
        if records < self.global_batch:
            raise UserError(
                f'the training list has {records} files, fewer than run.global_batch {self.global_batch}: '
                'use a smaller batch (and rate)'
            )
        return records // self.global_batch

    def total_steps(self, records: int) -> int:
        """Optimizer steps of the run."""
        return self.steps or max(1, round((self.epochs or 0) * self.steps_per_epoch(records)))

    def schedule_steps(self, records: int) -> int:
        """Optimizer steps that the rate schedule spans."""
        if self.schedule_epochs is None:
            return self.total_steps(records)
        return round(self.schedule_epochs * self.steps_per_epoch(records))


def build(function: Callable[..., Any], section: Mapping[str, Any], name: str, *args: Any) -> Any:
    """`function(*args, **section)`, where a wrong key is a UserError that names it and the nearest right one.

    Raises:
      UserError: a key that the function does not take, or a missing one.
    """
    parameters = inspect.signature(function).parameters
    known = list(parameters)[len(args) :]
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f'did you mean {near[0]!r}? ' if near else ''
            raise UserError(f'config.{name} has no key {key!r}; {hint}it takes {", ".join(known)}')
    missing = [k for k in known if k not in section and parameters[k].default is inspect.Parameter.empty]
    if missing:
        raise UserError(f'config.{name} lacks {", ".join(missing)}')
    return function(*args, **section)


def make_task(config: ml_collections.ConfigDict) -> Any:
    """The task of a config.

    Raises:
      UserError: no such task, or a wrong key.
    """
    try:
        module = importlib.import_module(f'mvdjax.tasks.{config.task_name}')
    except ModuleNotFoundError as error:
        raise UserError(f'no task {config.task_name!r}; see mvdjax/tasks') from error
    return build(module.Task, section(config, 'task'), 'task')


def section(config: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
    """A section as a plain dict.

    Raises:
      UserError: the config has no such section.
    """
    if name not in config:
        raise UserError(f'the config has no section {name!r}; a config has {", ".join(SECTIONS)}')
    return config[name].to_dict()


def load(spec: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Loads a config file.

    Keys that the file leaves to their defaults are filled in, so that every one can be seen and overridden.

    Args:
      spec: 'FILE' or 'FILE:arg'; the argument goes to the file's `get_config`.
      overrides: '--config.a.b=value' strings.

    Returns:
      The locked config.

    Raises:
      UserError: no such file, a file that fails, an unknown key or a value of another type.
    """
    path, _, arg = (spec, '', '') if os.path.exists(spec) else spec.rpartition(':') if ':' in spec else (spec, '', '')
    if not os.path.isfile(path):
        raise UserError(f'config file {path} does not exist')
    try:
        get_config = runpy.run_path(path)['get_config']
        config = get_config(arg) if arg else get_config()
    except Exception as error:
        raise UserError(f'config {spec} failed: {type(error).__name__}: {error}') from error
    unknown = sorted(set(config) ^ set(SECTIONS))
    if unknown:
        raise UserError(f'{path}: sections {", ".join(unknown)} unknown or missing; a config has {", ".join(SECTIONS)}')
    for name, function in (
        ('data', Data),
        ('optim', optimizers.make_optimizer),
        ('init', Init),
        ('run', Run),
        ('mesh', sharding.make_mesh),
    ):
        for key, parameter in inspect.signature(function).parameters.items():
            if parameter.default is not inspect.Parameter.empty and key not in config[name]:
                config[name][key] = parameter.default
    for override in overrides:
        _override(config, override)
    return config.lock()


def _override(config: ml_collections.ConfigDict, text: str) -> None:
    """Applies '--config.a.b=value'."""
    name, equals, raw = text.removeprefix('--config.').partition('=')
    if not equals or not text.startswith('--config.'):
        raise UserError(f'{text!r} is not an override; write --config.section.key=value')
    *parents, key = name.split('.')
    node: Any = config
    for i, parent in enumerate([*parents, key]):
        if not isinstance(node, ml_collections.ConfigDict) or parent not in node:
            known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
            near = difflib.get_close_matches(parent, known, 1)
            hint = f'did you mean {near[0]!r}? ' if near else ''
            where = '.'.join(['config', *parents[:i]])
            raise UserError(f'{text}: {where} has no key {parent!r}; {hint}it has {", ".join(known) or "no keys"}')
        if i < len(parents):
            node = node[parent]
    old = node[key]
    with node.ignore_type():  # _parse has checked the type, and None may become anything
        node[key] = _free(raw) if old is None else _parse(raw, old, text)


def _free(raw: str) -> Any:
    """A value of no known type: a Python literal if it is one, else the string itself."""
    try:
        return ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        return raw


def _parse(raw: str, old: Any, text: str) -> Any:
    """`raw` as the type of the value it replaces.

    Raises:
      UserError: it is of another type.
    """
    if isinstance(old, str):
        return raw
    value = {'true': True, 'false': False}.get(raw.lower(), _free(raw)) if isinstance(old, bool) else _free(raw)
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, tuple | list) and isinstance(value, tuple | list):
        return type(old)(value)
    if value is not None and type(value) is not type(old):
        raise UserError(f'{text}: {raw!r} is not of type {type(old).__name__}, like {old!r} that it would replace')
    return value


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """The --config argument that train and evaluate share."""
    parser.add_argument(
        '--config',
        required=True,
        metavar='FILE[:ARG]',
        help='a file in configs/, ":debug" for its seconds-long form; change a value with --config.section.key=value',
    )
