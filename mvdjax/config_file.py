"""Config files as such: running one, and overriding a value. What may stand in them is for `config` to say."""

import ast
import contextlib
import os
import runpy
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import ml_collections

from mvdjax import keywords
from mvdjax.errors import UserError

# Keys of model sections that change how a model is computed, not what it is: they may be overridden even where the file
# leaves them out.
LEVERS = {'remat': 'none', 'scan': True, 'attention': 'auto', 'dtype': 'float32'}


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


def read(spec: str) -> tuple[str, ml_collections.ConfigDict]:
    """Runs a config file.

    Args:
      spec: 'FILE' or 'FILE:arg'; the argument goes to the file's `get_config`. The file may import modules beside it.

    Returns:
      (the file, what its `get_config` returns).

    Raises:
      UserError: no such file, or one that fails.
    """
    path, _, arg = (spec, '', '') if os.path.exists(spec) else spec.rpartition(':') if ':' in spec else (spec, '', '')
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
    return path, config


def override(config: ml_collections.ConfigDict, text: str) -> None:
    """Applies '--config.a.b=value'.

    Raises:
      UserError: no such key, or a value of another type.
    """
    name, equals, raw = text.removeprefix('--config.').partition('=')
    if not equals or not text.startswith('--config.'):
        raise UserError(f'{text!r} is not an override; write --config.section.key=value')
    *parents, key = name.split('.')
    node: Any = config
    lever = key in LEVERS and len(parents) > 1 and parents[0] == 'task'
    for i, parent in enumerate([*parents, key]):
        if lever and i == len(parents) and isinstance(node, ml_collections.ConfigDict):
            node.setdefault(key, LEVERS[key])
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
