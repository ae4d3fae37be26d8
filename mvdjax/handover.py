"""Parameters from one stage to the next: strictly, with a table of what happened to each tensor."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvdjax import trees
from mvdjax.checkpoints import find_step_folder, read_params
from mvdjax.errors import UserError
from mvdjax.models.resize import resize_table

POSITION_TABLE = re.compile(r'(^|/)position_table$')  # learned positions (t, h, w, width), see models/embed.py


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters in the target's structure (abstract where fresh), and the table of what happened to each tensor."""

    params: Any
    table: str


def load_params(
    path: str,
    expected: Any,
    what: str,
    *,
    subtree: str = '',
    allow_fresh: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
    use_ema: bool = False,
) -> Loaded:
    """Takes a stage's parameters from another stage's checkpoint, strictly.

    Learned positions of another token grid are resized for this one (see `models.resize`) and shown as such.

    Args:
      path: workdir or checkpoint.
      expected: abstract parameters to fill.
      what: name for the table and for errors, e.g. 'video teacher'.
      subtree: use only this part of the source, its name removed ('backbone' turns 'backbone/x' into 'x').
      allow_fresh: regexes of expected parameters that may be missing from the source; they stay abstract.
      allow_unused: regexes of source parameters that may be left over.
      use_ema: read the moving average.

    Raises:
      UserError: a shape differs, or a parameter is missing or left over without being allowed by name.
    """
    source = read_params(path, use_ema)
    if subtree:
        source = {k.removeprefix(subtree + '/'): v for k, v in source.items() if k.startswith(subtree + '/')}
    target = trees.flatten(expected)
    # A leaf of another shape that may be fresh anyway (a head for other classes) is left out, and shown as both.
    replaced = [
        k
        for k, v in target.items()
        if k in source and source[k].shape != tuple(v.shape) and any(re.search(p, k) for p in allow_fresh)
    ]
    dropped = {k: source.pop(k) for k in replaced}
    resized = {
        k: source[k].shape
        for k, v in target.items()
        if k in source
        and POSITION_TABLE.search(k)
        and source[k].shape[3:] == v.shape[3:]
        and source[k].shape != v.shape
    }
    source |= {k: resize_table(source[k], target[k].shape[:3]) for k in resized}
    wrong = [
        f'{k} is {tuple(source[k].shape)}, expected {tuple(v.shape)}'
        for k, v in target.items()
        if k in source and tuple(source[k].shape) != tuple(v.shape)
    ]
    if wrong:
        raise UserError(
            f'{path} does not fit the {what}: {"; ".join(wrong[:3])}'
            + (f' and {len(wrong) - 3} more' if len(wrong) > 3 else '')
            + '. Give the config the model size that wrote the checkpoint'
        )
    fresh = [k for k in target if k not in source]
    unused = [k for k in source if k not in target]
    for names, allowed, says in ((fresh, allow_fresh, 'lacks'), (unused, allow_unused, 'has the extra')):
        bad = [k for k in names if not any(re.search(p, k) for p in allowed)]
        if bad:
            raise UserError(
                f'{path} {says} {", ".join(bad[:5])}{" ..." if len(bad) > 5 else ""} for the {what}; '
                'allow it by name (init.allow_fresh, init.allow_unused) if that is meant'
            )
    dtypes = {k: np.asarray(source[k], v.dtype) for k, v in target.items() if k in source}
    flat = {k: dtypes.get(k, v) for k, v in target.items()}
    table = _table(path, what, target, fresh, [*unused, *dropped], {**source, **dropped}, resized)
    return Loaded(trees.unflatten(flat), table)


def _table(
    path: str,
    what: str,
    target: Mapping[str, Any],
    fresh: list[str],
    unused: list[str],
    source: Mapping[str, Any],
    resized: Mapping[str, tuple[int, ...]],
) -> str:
    """Loaded / fresh / unused, one line a top-level group, and a line for each resized table with both grids."""
    groups: dict[tuple[str, str], list[int]] = {}
    for status, names, sizes in (
        ('loaded', [k for k in target if k not in fresh and k not in resized], target),
        ('fresh', fresh, target),
        ('unused', unused, source),
    ):
        for name in names:
            entry = groups.setdefault((status, '/'.join(name.split('/')[:2])), [0, 0])
            entry[0] += 1
            entry[1] += int(np.prod(sizes[name].shape))
    lines = [f'{what} from {find_step_folder(path)}:']
    for (status, group), (tensors, values) in groups.items():
        lines.append(f'  {status:<7} {group:<32} {tensors:4d} tensors {values / 1e6:9.3f} M')
    for name, shape in resized.items():
        lines.append(f'  resized {name:<32} {_grid(shape)} to {_grid(target[name].shape)} tokens')
    return '\n'.join(lines)


def _grid(shape: tuple[int, ...]) -> str:
    """'8 x 14 x 14' of a (t, h, w, width) table."""
    return ' x '.join(str(side) for side in shape[:3])
