"""RandAugment for clips, as the published MVD and VideoMAE fine-tuning runs apply it.

Host code: NumPy, PIL and OpenCV. It runs on whole decoded uint8 frames, before normalisation and RandomResizedCrop.
What an operation does stands in `rand_augment_ops`; here are the draws, and chains of operations. Source: the golden
cases `randaug_{spec,ops,trace}` (levels, pixels and whole traces).
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np
from PIL import Image

from mvdjax.data import clip_tables
from mvdjax.data.clip_ops import Part
from mvdjax.data.clip_tables import Mapped
from mvdjax.data.ops import Box
from mvdjax.data.rand_augment_ops import OPS, PLAIN_OPS, Op, inside
from mvdjax.errors import UserError

MAX_MAGNITUDE = 10
APPLY_PROBABILITY = 0.5
MODES = ('exact', 'fast')

_INTERPOLATIONS: dict[str, tuple[Image.Resampling, ...]] = {
    'bicubic': (Image.Resampling.BICUBIC,),
    'bilinear': (Image.Resampling.BILINEAR,),
    'random': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}
_SPEC_FORM = 'rand-m<0..10>-n<ops per clip>[-mstd<standard deviation>][-inc1], for example rand-m7-n4-mstd0.5-inc1'
_TOKEN = re.compile(r'(m|n|inc)([0-9]+)|(mstd)([0-9]+(?:\.[0-9]+)?)')


@dataclasses.dataclass(frozen=True)
class Step:
    """One op that is applied to a clip.

    Attributes:
      op: a key of `OPS` or `PLAIN_OPS`.
      arg: the op's argument, the same for every frame; 0 for the ops that take none.
      resample: the filter for each frame, `t` entries.
    """

    op: str
    arg: float
    resample: tuple[Image.Resampling, ...]


@dataclasses.dataclass(frozen=True)
class _Config:
    """A parsed spec: mean magnitude (0..10), its standard deviation, ops drawn per clip (at least 1), the op set."""

    magnitude: int
    magnitude_std: float
    num_ops: int
    increasing: bool

    def ops(self) -> Mapping[str, Op]:
        """The op set; the draw indexes its order."""
        if self.increasing:
            return OPS
        plain = {name: name.removesuffix('Increasing') for name in OPS}
        return {name: PLAIN_OPS[name] if name != old else OPS[name] for old, name in plain.items()}


@functools.cache
def _parse_spec(spec: str) -> _Config:
    """Parses a spec of the form `_SPEC_FORM`; tokens after `rand` come in any order.

    `inc`, as 0 or 1, selects the increasing ops: the published parser takes any value of it for that, 0 included.
    Without it the plain ops run (`PLAIN_OPS`), which no published recipe uses.

    Raises:
      UserError: for an unknown, repeated, missing or out-of-range token, naming it and the allowed form.
    """

    def fail(problem: str) -> NoReturn:
        raise UserError(f'RandAugment spec {spec!r}: {problem}; write {_SPEC_FORM}.')

    head, *tokens = spec.split('-')
    if head != 'rand':
        fail(f'it starts with {head!r}, not with rand')
    values: dict[str, str] = {}
    for token in tokens:
        match = _TOKEN.fullmatch(token)
        if match is None:
            fail(f'unknown token {token!r}')
        key, value = match[1] or match[3], match[2] or match[4]
        if key in values:
            fail(f'repeated token {token!r}')
        values[key] = value
    for key in ('m', 'n'):
        if key not in values:
            fail(f'token {key!r} is missing')
    magnitude, num_ops = int(values['m']), int(values['n'])
    if magnitude > MAX_MAGNITUDE:
        fail(f'the magnitude in {"m" + values["m"]!r} is outside 0..{MAX_MAGNITUDE}')
    if num_ops < 1:
        fail(f'{"n" + values["n"]!r} asks for no op at all')
    if values.get('inc', '1') not in ('0', '1'):
        fail(f'unknown token {"inc" + values["inc"]!r}')
    return _Config(magnitude, float(values.get('mstd', '0')), num_ops, 'inc' in values)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies a few randomly drawn image operations to a clip, alike in all of its frames.

    Attributes:
      spec: `rand-m7-n4-mstd0.5-inc1` = mean magnitude 7, 4 ops drawn with replacement (each then applied with
        probability 0.5), standard deviation of the magnitude 0.5 (0 if left out), the increasing op set.
      interpolation: filter of the geometric ops: 'bicubic' (published), 'bilinear', or 'random' (either, per frame).
      mode: 'exact' runs Pillow frame by frame and gives the published pixels; 'fast' runs `clip_ops` on the clip, with
        the same draws: one level off at most, in rotations more.

    Raises:
      UserError: at construction, for a misspelt spec, interpolation or mode.
    """

    spec: str = 'rand-m7-n4-mstd0.5-inc1'
    interpolation: str = 'bicubic'
    mode: str = 'exact'

    def __post_init__(self) -> None:
        _parse_spec(self.spec)
        for name, value, known in (('interpolation', self.interpolation, _INTERPOLATIONS), ('mode', self.mode, MODES)):
            if value not in known:
                raise UserError(f'RandAugment {name} {value!r} is unknown; choose one of {", ".join(known)}.')

    def __call__(self, rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
        """Augments one clip.

        Args:
          rng: supplies every draw; the result depends on nothing else but `frames`.
          frames: (t, h, w, 3) uint8 RGB with t >= 1; not modified.

        Returns:
          A new array of the same shape and dtype.

        Raises:
          ValueError: if `frames` has another dtype or shape.
        """
        return self.apply(self.plan(rng, len(frames)), frames)

    def apply(self, steps: Sequence[Step], frames: np.ndarray, box: Box | None = None) -> np.ndarray:
        """Applies a plan to a clip, and cuts the box out of the result if one is given; arguments as `replay`."""
        if self.mode == 'fast':
            return replay_fast(steps, frames, box)
        out = replay(steps, frames)
        return out if box is None else clip_tables.cut(out, box)

    def each(self, steps: Sequence[Step], frames: np.ndarray, box: Box) -> Iterator[np.ndarray]:
        """The frames that `apply` gives, one by one; each lasts until the next one, and may be one of `frames`."""
        return each_fast(steps, frames, box) if self.mode == 'fast' else iter(self.apply(steps, frames, box))

    def plan(self, rng: np.random.Generator, num_frames: int) -> tuple[Step, ...]:
        """Makes all draws for a clip of `num_frames` frames; returns the ops to apply, in order (0 to n of them).

        Skip, magnitude and sign are drawn for every op, used or not, so the number of draws is always the same.
        """
        config = _parse_spec(self.spec)
        n, ops = config.num_ops, config.ops()
        names = list(ops)
        chosen = rng.integers(len(names), size=n)
        applied = rng.random(n) < APPLY_PROBABILITY
        magnitudes = np.clip(rng.normal(config.magnitude, config.magnitude_std, n), 0, MAX_MAGNITUDE)
        signs = np.where(rng.random(n) < 0.5, 1, -1)
        filters = _INTERPOLATIONS[self.interpolation]
        picks = rng.integers(len(filters), size=(n, num_frames)).tolist()
        return tuple(
            Step(
                op=names[chosen[i]],
                arg=ops[names[chosen[i]]].level(float(magnitudes[i]) / MAX_MAGNITUDE, int(signs[i])),
                resample=tuple(filters[pick] for pick in picks[i]),
            )
            for i in range(n)
            if applied[i]
        )


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f'RandAugment takes uint8 (t, h, w, 3) frames, not {frames.dtype} {frames.shape}')


def _op(step: Step) -> Op:
    return OPS[step.op] if step.op in OPS else PLAIN_OPS[step.op]


def replay(steps: Sequence[Step], frames: np.ndarray) -> np.ndarray:
    """Applies `steps` in order to every frame with Pillow, without any draw.

    Args:
      steps: ops with one filter per frame, from `RandAugment.plan` or scripted.
      frames: (t, h, w, 3) uint8 RGB with t >= 1; not modified.

    Returns:
      A new array of the same shape and dtype.

    Raises:
      ValueError: if `frames` has another dtype or shape.
    """
    _check_frames(frames)
    out = np.empty_like(frames, order='C')
    for index, frame in enumerate(frames):
        image = Image.fromarray(frame)
        for step in steps:
            image = _op(step).apply(image, step.arg, step.resample[index])
        out[index] = np.asarray(image)
    return out


def replay_fast(steps: Sequence[Step], frames: np.ndarray, box: Box | None = None) -> np.ndarray:
    """`replay` by `clip_ops`, of which only the pixels inside `box` are made as far as later ops need no others.

    Args and errors as `replay`; `box` is (top, left, height, width) inside the frame, None the whole frame.

    Returns:
      A new array (t, height, width, 3), the box of what the whole result would be.
    """
    box = (0, 0, *frames.shape[1:3]) if box is None else box
    out = np.empty((len(frames), box[2], box[3], 3), np.uint8)
    for frame, result in zip(each_fast(steps, frames, box), out, strict=True):
        result[...] = frame
    return out


def each_fast(steps: Sequence[Step], frames: np.ndarray, box: Box) -> Iterator[np.ndarray]:
    """`replay_fast` frame by frame; each lasts until the next one, and may be one of `frames`."""
    _check_frames(frames)
    size = frames.shape[1], frames.shape[2]
    # From the last op to the first: what each has to make, and what it needs for that.
    made = [box]
    for step in reversed(steps):
        made.insert(0, _op(step).reach(size, step.arg, made[0]))
    have: Box = (0, 0, *size)
    clip = Mapped(np.ascontiguousarray(frames))
    for step, need, wanted in zip(steps, made[:-1], made[1:], strict=True):
        table = _op(step).table
        if table:
            clip = clip.then(table(clip, step.arg))
            continue
        part = Part(clip.made(inside(need, have)), need, size)
        clip, have = Mapped(_on_clip(step, part, wanted)), wanted
    return clip.each(inside(box, have))


def _on_clip(step: Step, part: Part, box: Box) -> np.ndarray:
    """One op on a clip; where the filter differs between frames, on the frames of each filter."""
    filters, on_clip = np.array(step.resample) == Image.Resampling.BICUBIC, _op(step).on_clip
    assert on_clip is not None  # ops without one have a table
    if filters.all() or not filters.any():
        return on_clip(part, step.arg, bool(filters[0]), box)
    out = np.empty((len(part.frames), box[2], box[3], 3), np.uint8)
    for cubic in (False, True):
        chosen = dataclasses.replace(part, frames=part.frames[filters == cubic])
        out[filters == cubic] = on_clip(chosen, step.arg, cubic, box)
    return out
