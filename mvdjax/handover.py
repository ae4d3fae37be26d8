"""Parameters from one stage to the next: strictly, with a table of what happened to each tensor."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvdjax import trees
from mvdjax.checkpoints import find_step_folder, read_params
from mvdjax.errors import UserError
from mvdjax.models.resize import inflate_patches, resize_biases, resize_table

POSITION_TABLE = re.compile(r'(^|/)position_table$')  # learned positions (t, h, w, width), see models/embed.py
# Position biases of a stack of blocks, (blocks, t, h, w, heads), see models/window_attention.py.
RELATIVE_TABLE = re.compile(r'(^|/)relative_position_table$')
CLIP_PATCHES, IMAGE_PATCHES = re.compile(r'(?<![^/])patch_embed(?=/)'), 'patch_embed_2d'  # see models/video_swin.py


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
    begin_fresh: Sequence[str] = (),
    use_ema: bool = False,
) -> Loaded:
    """Takes a stage's parameters from another stage's checkpoint, strictly.

    Learned positions of another token grid and position biases of another window are resized for this one, and where
    only images had a patch embedding, the one of clips is inflated from it (see `models.resize`). The table shows it.

    Args:
      path: workdir or checkpoint.
      expected: abstract parameters to fill.
      what: name for the table and for errors, e.g. 'video teacher'.
      subtree: use only this part of the source, its name removed ('backbone' turns 'backbone/x' into 'x').
      allow_fresh: regexes of expected parameters that may be missing from the source; they stay abstract.
      allow_unused: regexes of source parameters that may be left over.
      begin_fresh: regexes of expected parameters that stay abstract whether the source has them or not.
      use_ema: read the moving average.

    Raises:
      UserError: a shape differs, a parameter is missing or left over without being allowed by name, or a regex of
        `begin_fresh` names none.
    """
    source = read_params(path, use_ema)
    if subtree:
        source = {k.removeprefix(subtree + '/'): v for k, v in source.items() if k.startswith(subtree + '/')}
    target = trees.flatten(expected)
    for pattern in begin_fresh:
        if not any(re.search(pattern, k) for k in target):
            raise UserError(f'init.fresh names {pattern!r}, but no parameter of the {what} is called so')
    # What is to start fresh, and a leaf of another shape that may be fresh anyway (a head for other classes), is left
    # out, and shown as both.
    begun = {k for k in target if any(re.search(p, k) for p in begin_fresh)}
    replaced = [
        k
        for k, v in target.items()
        if k in source
        and (k in begun or (source[k].shape != tuple(v.shape) and any(re.search(p, k) for p in allow_fresh)))
    ]
    dropped = {k: source.pop(k) for k in replaced}
    wanted = {k: v for k, v in target.items() if k not in begun}
    resized = _resize(source, wanted)
    inflated = _inflate(source, wanted)
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
    for names, allowed, says in (
        (fresh, (*allow_fresh, *begin_fresh), 'lacks'),
        (unused, allow_unused, 'has the extra'),
    ):
        bad = [k for k in names if not any(re.search(p, k) for p in allowed)]
        if bad:
            raise UserError(
                f'{path} {says} {", ".join(bad[:5])}{" ..." if len(bad) > 5 else ""} for the {what}; '
                'allow it by name (init.allow_fresh, init.allow_unused) if that is meant'
            )
    dtypes = {k: np.asarray(source[k], v.dtype) for k, v in target.items() if k in source}
    flat = {k: dtypes.get(k, v) for k, v in target.items()}
    table = _table(path, what, target, fresh, [*unused, *dropped], {**source, **dropped}, resized | inflated)
    return Loaded(trees.unflatten(flat), table)


def _resize(source: dict[str, np.ndarray], target: Mapping[str, Any]) -> dict[str, str]:
    """Resizes, in `source`, the tables that `target` has for another grid or window.

    Returns:
      {path: what was done, for the table}.
    """
    done = {}
    for name, leaf in target.items():
        if name not in source or source[name].shape == tuple(leaf.shape):
            continue
        old, new = source[name].shape, tuple(leaf.shape)
        if POSITION_TABLE.search(name) and old[3:] == new[3:]:
            source[name] = resize_table(source[name], new[:3])
            done[name] = f'resized {name:<32} {_grid(old)} to {_grid(new)} tokens'
        elif RELATIVE_TABLE.search(name) and (old[0], old[4:]) == (new[0], new[4:]):
            source[name] = resize_biases(source[name], new[1:4])
            done[name] = f'resized {name:<32} {_grid(old[1:])} to {_grid(new[1:])} offsets'
    return done


def _inflate(source: dict[str, np.ndarray], target: Mapping[str, Any]) -> dict[str, str]:
    """Adds to `source` a patch embedding of clips made of the one of images, which goes unless `target` has it too.

    Returns:
      {path: what was done, for the table}.
    """
    made, done = {}, {}
    for name, leaf in target.items():
        origin = CLIP_PATCHES.sub(IMAGE_PATCHES, name)
        if origin == name or name in source or origin not in source:
            continue
        frames = leaf.shape[0] // source[origin].shape[0] if leaf.ndim == 2 else 1
        made[name] = inflate_patches(source[origin], frames) if frames > 1 else source[origin]
        done[name] = f'made    {name:<32} of {IMAGE_PATCHES}' + (f', over {frames} frames' if leaf.ndim == 2 else '')
        if origin not in target:
            del source[origin]
    source |= made
    return done


def _table(
    path: str,
    what: str,
    target: Mapping[str, Any],
    fresh: list[str],
    unused: list[str],
    source: Mapping[str, Any],
    changed: Mapping[str, str],
) -> str:
    """Loaded / fresh / unused, one line a top-level group, and a line for each parameter that was changed."""
    groups: dict[tuple[str, str], list[int]] = {}
    for status, names, sizes in (
        ('loaded', [k for k in target if k not in fresh and k not in changed], target),
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
    lines += [f'  {line}' for line in changed.values()]
    return '\n'.join(lines)


def _grid(shape: tuple[int, ...]) -> str:
    """'8 x 14 x 14' of a (t, h, w, ...) table."""
    return ' x '.join(str(side) for side in shape[:3])
