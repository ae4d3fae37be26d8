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
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from mvdjax import config_file, keywords, optimizers, sharding
from mvdjax.data.mixing import Source
from mvdjax.data.pipeline import Data, recipe_class
from mvdjax.errors import UserError
from mvdjax.settings import Init, Run, SideStream
from mvdjax.tasks import task_class

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
    return build(task_class(config.task_name), section(config, 'task'), 'task')


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
    path, config = config_file.read(spec)
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
        config_file.override(config, override)
    for node, function, _, _ in _calls(config):
        _fill(node, function)
    for override in overrides:
        if override not in early:
            config_file.override(config, override)
    for node, function, name, positional in _calls(config):
        keywords.check(function, node.to_dict(), f'config.{name}', positional)
    return config.lock()


def _calls(config: ml_collections.ConfigDict) -> Iterator[tuple[ml_collections.ConfigDict, Any, str, int]]:
    """(section, the callable whose keywords it is, its name, leading parameters that come from elsewhere)."""
    for name in (*SECTIONS, *OPTIONAL):
        if name != 'task_name' and not isinstance(config[name], ml_collections.ConfigDict):
            raise UserError(f'config.{name} must be a section of keys, not {config[name]!r}')
    yield config.task, task_class(config.task_name), 'task', 0
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


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """The --config argument that train and evaluate share."""
    parser.add_argument(
        '--config',
        required=True,
        metavar='FILE[:ARG]',
        help='a file in configs/, ":debug" for its seconds-long form; change a value with --config.section.key=value',
    )
