"""Configs: Python files that set values. Loading, overriding, and turning each section into a call.

A section is the keyword arguments of exactly one callable, so a misspelt or missing key is an error that names it.

    config.task_name      the module mvdjax/tasks/<task_name>.py
    config.task           Task(**task)
    config.data           data.pipeline.Data(**data), the training set
    config.streams        may be missing: name -> SideStream(**stream), trained on beside it
    config.evals          name -> {'data': Data(**data), 'batch': videos per step}
    config.optim          optimizers.make_optimizer(..., **optim)
    config.init           Init(**init): where the parameters start from
    config.run            Run(**run)
    config.mesh           sharding.make_mesh(**mesh)
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import json
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from mvdjax import keywords, optimizers, sharding
from mvdjax.data.mixing import Source
from mvdjax.data.pipeline import Data, recipe_class
from mvdjax.errors import UserError
from mvdjax.settings import Init, Run, SideStream

# Keys of model sections that change how a model is computed, not what it is: they may be overridden even where the file
# leaves them out.
LEVERS = {'remat': 'none', 'scan': True, 'attention': 'auto', 'dtype': 'float32'}
OPTIONAL = ('streams',)
SECTIONS = ('task_name', 'task', 'data', 'evals', 'optim', 'init', 'run', 'mesh')


def build(function: Callable[..., Any], section: Mapping[str, Any], name: str, *args: Any) -> Any:
    """`function(*args, **section)`, where a wrong key is a UserError that names it and the nearest right one.

    Raises:
      UserError: a key that the function does not take, a missing one, or a value of another type.
    """
    return keywords.build(function, section, f'config.{name}', *args)


def make_task(config: ml_collections.ConfigDict) -> Any:
    """The task of a config.

    Raises:
      UserError: no such task, or a wrong key.
    """
    return build(_task_class(config.task_name), section(config, 'task'), 'task')


def _task_class(name: str) -> Any:
    module = f'mvdjax.tasks.{name}'
    try:
        return importlib.import_module(module).Task
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(f'config.task_name: there is no task {name!r}; see mvdjax/tasks') from error


def section(config: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
    """A section as a plain dict.

    Raises:
      UserError: the config has no such section.
    """
    if name not in config:
        raise UserError(f'the config has no section {name!r}; a config has {", ".join(SECTIONS)}')
    return config[name].to_dict()


def side_streams(config: ml_collections.ConfigDict) -> dict[str, SideStream]:
    """The streams beside config.data, by name.

    Raises:
      UserError: a wrong key.
    """
    sections = section(config, 'streams') if 'streams' in config else {}
    return {name: build(SideStream, options, f'streams.{name}') for name, options in sections.items()}


def load(spec: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Loads a config file.

    Keys that the file leaves to their defaults are filled in, so that every one can be seen and overridden.

    Args:
      spec: 'FILE' or 'FILE:arg'; the argument goes to the file's `get_config`. The file may import modules beside it.
      overrides: '--config.a.b=value' strings.

    Returns:
      The locked config.

    Raises:
      UserError: no such file, a file that fails, an unknown key or a value of another type.
    """
    path, _, arg = (spec, '', '') if os.path.exists(spec) else spec.rpartition(':') if ':' in spec else (spec, '', '')
    config = _call(path, arg)
    for name in config:
        if name not in (*SECTIONS, *OPTIONAL):
            hint = keywords.nearest(name, (*SECTIONS, *OPTIONAL))
            raise UserError(f'{path} has an unknown section {name!r}; {hint}a config has {", ".join(SECTIONS)}')
    for name in OPTIONAL:
        if name not in config:
            config[name] = ml_collections.ConfigDict()
    for name in SECTIONS:
        if name not in config:
            raise UserError(
                f'{path} has no section {name!r}; a config has {", ".join(SECTIONS)} (it may be empty: {{}})'
            )
    for node in (config.evals, config.streams, config.task):
        _unshare(node)
    for node in _nodes(config.task).values():  # the models of teachers, their decoders
        _unshare(node)
    for node in (config.data, *(node.get('data') for node in _nodes(config.streams).values())):
        if isinstance(node, ml_collections.ConfigDict):
            _unshare(node.get('mixture'))
    # What decides which keys there are comes first, then the defaults, then the values.
    early = [text for text in overrides if re.match(r'--config\.(task_name|(.+\.)?data\.recipe)=', text)]
    for override in early:
        _override(config, override)
    for node, function, _, _ in _calls(config):
        _fill(node, function)
    for override in overrides:
        if override not in early:
            _override(config, override)
    for node, function, name, positional in _calls(config):
        keywords.check(function, node.to_dict(), f'config.{name}', positional)
    return config.lock()


@contextlib.contextmanager
def _folder_first(path: str) -> Iterator[None]:
    """A file's own folder comes first on sys.path, as Python has it for a script; afterwards all is as it was before.

    The modules of the folder are forgotten too: another folder's config may have a helper of the same name.
    """
    folder = os.path.dirname(os.path.abspath(path))
    names = {name.removesuffix('.py') for name in os.listdir(folder) if name.endswith('.py')}
    paths, modules = sys.path[:], {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = paths
        for name in names & sys.modules.keys():
            del sys.modules[name]
        sys.modules.update(modules)


def _call(path: str, arg: str) -> ml_collections.ConfigDict:
    """What the file's `get_config` returns."""
    if not os.path.isfile(path):
        raise UserError(f'config file {path} does not exist; the configs that come with mvdjax are in configs/')
    try:
        with _folder_first(path):
            get_config = runpy.run_path(path).get('get_config')
            config = get_config(*([arg] if arg else [])) if callable(get_config) else None
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f'{path}:{lines[-1]}' if lines else path
        raise UserError(f'config {where} failed with {type(error).__name__}: {error}') from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f'config {path} must define get_config(arg), which returns a ml_collections.ConfigDict')
    return config


def _calls(config: ml_collections.ConfigDict) -> Iterator[tuple[ml_collections.ConfigDict, Any, str, int]]:
    """(section, the callable whose keywords it is, its name, leading parameters that come from elsewhere)."""
    for name in (*SECTIONS, *OPTIONAL):
        if name != 'task_name' and not isinstance(config[name], ml_collections.ConfigDict):
            raise UserError(f'config.{name} must be a section of keys, not {config[name]!r}')
    yield config.task, _task_class(config.task_name), 'task', 0
    kinds = [p.kind for p in inspect.signature(optimizers.make_optimizer).parameters.values()]
    yield config.optim, optimizers.make_optimizer, 'optim', len(kinds) - kinds.count(inspect.Parameter.KEYWORD_ONLY)
    yield config.init, Init, 'init', 0
    yield config.run, Run, 'run', 0
    yield config.mesh, sharding.make_mesh, 'mesh', 0
    sets = {'data': config.data, **{f'evals.{n}.data': _data(config.evals[n], f'evals.{n}') for n in config.evals}}
    sets |= {f'streams.{n}.data': _data(config.streams[n], f'streams.{n}') for n in config.streams}
    for name, node in sets.items():
        yield node, Data, name, 0
        for source, part in _nodes(node.get('mixture')).items():
            yield part, Source, f'{name}.mixture.{source}', 0
        if isinstance(node.get('recipe'), str) and isinstance(node.get('options'), ml_collections.ConfigDict):
            yield node.options, recipe_class(node.recipe), f'{name}.options', 0


def _data(node: Any, name: str) -> ml_collections.ConfigDict:
    """The data section of an evaluation set, or of a stream."""
    if not isinstance(node, ml_collections.ConfigDict) or not isinstance(node.get('data'), ml_collections.ConfigDict):
        raise UserError(f"config.{name} must be {{'data': a data section, 'batch': videos per step}}")
    return node.data


def _nodes(node: Any) -> dict[str, ml_collections.ConfigDict]:
    """The sections in a section, by name."""
    found = dict(node.items()) if isinstance(node, ml_collections.ConfigDict) else {}
    return {name: part for name, part in found.items() if isinstance(part, ml_collections.ConfigDict)}


def _unshare(node: Any) -> None:
    """Sections made from one dict share it: an override would reach them all."""
    for name, part in _nodes(node).items():
        node[name] = part.to_dict()


def _fill(node: ml_collections.ConfigDict, function: Callable[..., Any]) -> None:
    """Adds the defaults of the keys that a section leaves out."""
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not inspect.Parameter.empty and key not in node:
            node[key] = parameter.default


def flat(config: Any) -> dict[str, Any]:
    """A config, or the dict that a checkpoint keeps of one, as {'a.b': JSON value}."""
    if isinstance(config, ml_collections.ConfigDict):
        config = json.loads(json.dumps(config.to_dict()))
    found: dict[str, Any] = {}
    for name, child in config.items():
        if isinstance(child, Mapping):
            found |= {f'{name}.{key}': value for key, value in flat(child).items()}
        else:
            found[name] = child
    return found


def from_meta(meta: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config that a checkpoint carries (see `checkpoints.read_meta`)."""
    return ml_collections.ConfigDict(meta['config']).lock()


def _override(config: ml_collections.ConfigDict, text: str) -> None:
    """Applies '--config.a.b=value'."""
    name, equals, raw = text.removeprefix('--config.').partition('=')
    if not equals or not text.startswith('--config.'):
        raise UserError(f'{text!r} is not an override; write --config.section.key=value')
    *parents, key = name.split('.')
    node: Any = config
    lever = key in LEVERS and len(parents) > 1 and parents[0] == 'task'
    for i, parent in enumerate([*parents, key]):
        if lever and i == len(parents) and isinstance(node, ml_collections.ConfigDict) and key not in node:
            node[key] = LEVERS[key]
        if not isinstance(node, ml_collections.ConfigDict) or parent not in node:
            known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
            hint = keywords.nearest(parent, known)
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
    if isinstance(old, ml_collections.ConfigDict) and raw != 'None':
        raise UserError(
            f'{text}: that is a section; change one of its keys, {", ".join(old) or "of which it has none"}'
        )
    value = {'true': True, 'false': False}.get(raw.lower(), _free(raw)) if isinstance(old, bool) else _free(raw)
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, tuple | list) and isinstance(value, tuple | list):
        return type(old)(value)
    if type(old) is int and type(value) in (float, tuple):
        return value  # `epochs: 40` may be 0.5 and `size: 224` (224, 320); `keywords.check` knows what may not
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
