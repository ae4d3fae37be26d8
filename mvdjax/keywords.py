"""Calls with keyword arguments that a user wrote: a wrong key or value is a sentence that names it, not a traceback."""

import collections.abc
import difflib
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mvdjax.errors import UserError

# What a parameter may be annotated with, what fits it, and its name in messages.
_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, 'True or False'),
    int: (numbers.Integral, 'a whole number'),
    float: (numbers.Real, 'a number'),
    str: (str, 'a string'),
    types.NoneType: (types.NoneType, 'None'),
    collections.abc.Mapping: (collections.abc.Mapping, 'a section of keys'),
    collections.abc.Sequence: ((tuple, list), 'a tuple'),
    tuple: ((tuple, list), 'a tuple'),
}


def nearest(key: str, known: Iterable[str]) -> str:
    """'did you mean ...? ', or '' if nothing is near."""
    near = difflib.get_close_matches(key, known, 1)
    return f'did you mean {near[0]!r}? ' if near else ''


def build(function: Callable[..., Any], section: Mapping[str, Any], what: str, *args: Any) -> Any:
    """`function(*args, **section)` after `check`."""
    check(function, section, what, len(args))
    return function(*args, **section)


def check(function: Callable[..., Any], section: Mapping[str, Any], what: str, positional: int = 0) -> None:
    """Raises UserError unless `section` can be the keyword arguments of `function`.

    Args:
      function: any callable; annotations of plain types, tuples, sequences and mappings are held against the values.
      section: what the user wrote.
      what: its name in messages.
      positional: how many leading parameters come from elsewhere.
    """
    if not isinstance(section, Mapping):
        raise UserError(f'{what} must be a section of keys, not {section!r}')
    parameters = dict(list(inspect.signature(function, eval_str=True).parameters.items())[positional:])
    for key, value in section.items():
        if key not in parameters:
            raise UserError(f'{what} has no key {key!r}; {nearest(key, parameters)}it takes {", ".join(parameters)}')
        allowed = _allowed(parameters[key].annotation)
        if allowed and not any(_fits(value, kind) for kind in allowed):
            names = ' or '.join(_name(kind) for kind in allowed)
            raise UserError(f'{what}.{key} must be {names}, not {value!r}')
    missing = [k for k, p in parameters.items() if k not in section and p.default is inspect.Parameter.empty]
    if missing:
        raise UserError(f'{what} lacks {", ".join(missing)}')


def _allowed(annotation: Any) -> tuple[Any, ...]:
    """The kinds that an annotation allows; () if it is not one that can be checked."""
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    kinds = typing.get_args(annotation) if union else (annotation,)
    return kinds if all((typing.get_origin(kind) or kind) in _KINDS for kind in kinds) else ()


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    length = _length(kind)
    return isinstance(value, _KINDS[typing.get_origin(kind) or kind][0]) and (length is None or len(value) == length)


def _length(kind: Any) -> int | None:
    """Values of a tuple of fixed length, else None."""
    values = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
    return len(values) if values and ... not in values else None


def _name(kind: Any) -> str:
    name, length = _KINDS[typing.get_origin(kind) or kind][1], _length(kind)
    return name if length is None else f'{name} of {length} values'
