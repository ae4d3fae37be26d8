"""RandAugment for clips, as the published MVD and VideoMAE fine-tuning runs apply it.

Host code: NumPy, PIL and OpenCV. It runs on whole decoded uint8 frames, before normalisation and RandomResizedCrop.
PIL is the reference, not a convenience: its fixed-point resampling and truncating blends are what the published
pixels are made of. `clip_tables` and `clip_ops` have the same ops for whole clips, several times faster and, rotation
aside, within one level. Source: the golden cases `randaug_{spec,ops,trace}` (levels, pixels and whole traces).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mvdjax.data import clip_ops, clip_tables
from mvdjax.data.clip_ops import FrameSize, Part
from mvdjax.data.clip_tables import Mapped
from mvdjax.data.ops import Box
from mvdjax.errors import UserError

MAX_MAGNITUDE = 10
APPLY_PROBABILITY = 0.5
MODES = ('exact', 'fast')
FILL = (clip_ops.FILL,) * 3

_INTERPOLATIONS: dict[str, tuple[Image.Resampling, ...]] = {
    'bicubic': (Image.Resampling.BICUBIC,),
    'bilinear': (Image.Resampling.BILINEAR,),
    'random': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}
_SPEC_FORM = 'rand-m<0..10>-n<ops per clip>[-mstd<standard deviation>][-inc1], for example rand-m7-n4-mstd0.5-inc1'
_TOKEN = re.compile(r'(m|n|inc)([0-9]+)|(mstd)([0-9]+(?:\.[0-9]+)?)')


def _scaled(scale: float, centre: float = 0.0) -> Callable[[float, int], float]:
    """Returns the level function `centre + sign * fraction * scale`."""
    return lambda fraction, sign: centre + sign * (fraction * scale)


def _no_level(fraction: float, sign: int) -> float:
    """The level function of an op that takes no argument."""
    return 0.0


def _by_table(image: Image.Image, table: np.ndarray) -> Image.Image:
    """Maps each value of each channel through `table`, (256,) integers 0..255."""
    return image.point(table.tolist() * 3)


def _posterize(image: Image.Image, bits: float, resample: Image.Resampling) -> Image.Image:
    """Keeps the highest `bits` (0..8) bits; 0, which magnitude 10 gives, is black (ImageOps refuses it from 13 on)."""
    return _by_table(image, np.arange(256) & (0xFF00 >> int(bits)))


def _solarize(image: Image.Image, threshold: float, resample: Image.Resampling) -> Image.Image:
    """Inverts the values from `threshold` (0..256) up."""
    values = np.arange(256)
    return _by_table(image, np.where(values < threshold, values, 255 - values))


def _solarize_add(image: Image.Image, addend: float, resample: Image.Resampling) -> Image.Image:
    """Adds `addend` (0..110) to the values below 128, saturating at 255."""
    values = np.arange(256)
    return _by_table(image, np.where(values < 128, np.minimum(values + int(addend), 255), values))


def _rotate(image: Image.Image, degrees: float, resample: Image.Resampling) -> Image.Image:
    """Rotates counter-clockwise about the centre, keeping the size."""
    return image.rotate(degrees, resample=resample, fillcolor=FILL)


def _affine(image: Image.Image, matrix: Sequence[float], resample: Image.Resampling) -> Image.Image:
    """Fills output (x, y) from input (a x + b y + c, d x + e y + f), with `matrix` = (a, b, c, d, e, f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=FILL)


def _inside(box: Box, part: Box) -> Box:
    """A box of the frame as one of a part of it."""
    return box[0] - part[0], box[1] - part[1], *box[2:]


_Apply = Callable[[Image.Image, float, Image.Resampling], Image.Image]
_OnClip = Callable[[Part, float, bool, Box], np.ndarray]
_Table = Callable[[Mapped, float], np.ndarray]
_Reach = Callable[[FrameSize, float, Box], Box]


def _same_place(size: FrameSize, arg: float, box: Box) -> Box:
    """Of an op whose pixels depend on the pixel at their place alone."""
    return box


def _everywhere(size: FrameSize, arg: float, box: Box) -> Box:
    """Of an op that looks at the whole frame."""
    return 0, 0, *size


@dataclasses.dataclass(frozen=True)
class Op:
    """One row of the op table.

    Attributes:
      apply: (RGB image, argument, filter) -> image of the same size; only the geometric ops use the filter.
      on_clip: the same for a clip: (part of its frames, argument, bicubic or else bilinear, box) -> the box of the
        result, see `clip_ops`. None for the ops that have a table.
      table: (clip, argument) -> the table that maps the clip's values, see `clip_tables`.
      level: (magnitude / 10 in 0..1, sign 1 or -1) -> the argument of `apply`.
      reach: (size of the frames, argument, box of the result) -> the box of the frames that it depends on.
    """

    apply: _Apply
    on_clip: _OnClip | None = None
    table: _Table | None = None
    level: Callable[[float, int], float] = _no_level
    reach: _Reach = _same_place


def _by_value(apply: _Apply, level: Callable[[float, int], float] = _no_level) -> Op:
    """The row of an op that maps each value by itself: its table is what `apply` makes of all values."""

    def table(clip: Mapped, arg: float) -> np.ndarray:
        return clip_tables.table_of(lambda image: apply(image, arg, Image.Resampling.BILINEAR))

    return Op(apply, table=table, level=level)


_ENHANCE_LEVEL = _scaled(0.9, centre=1.0)

# The "increasing" set: a higher magnitude always changes the image more. The draw indexes this order.
OPS: dict[str, Op] = {
    'AutoContrast': Op(
        lambda image, _, __: ImageOps.autocontrast(image),
        table=lambda clip, _: clip_tables.auto_contrast(clip),
        reach=_everywhere,
    ),
    'Equalize': Op(
        lambda image, _, __: ImageOps.equalize(image),
        table=lambda clip, _: clip_tables.equalize(clip),
        reach=_everywhere,
    ),
    'Invert': _by_value(lambda image, _, __: ImageOps.invert(image)),
    'Rotate': Op(_rotate, clip_ops.rotate, level=_scaled(30.0), reach=clip_ops.rotate_reach),
    'PosterizeIncreasing': _by_value(_posterize, lambda fraction, _: 4 - int(fraction * 4)),
    'SolarizeIncreasing': _by_value(_solarize, lambda fraction, _: 256 - int(fraction * 256)),
    'SolarizeAdd': _by_value(_solarize_add, lambda fraction, _: int(fraction * 110)),
    'ColorIncreasing': Op(
        lambda image, factor, _: ImageEnhance.Color(image).enhance(factor),
        lambda part, factor, _, box: clip_ops.color(part.frames, factor, _inside(box, part.box)),
        level=_ENHANCE_LEVEL,
    ),
    'ContrastIncreasing': Op(
        lambda image, factor, _: ImageEnhance.Contrast(image).enhance(factor),
        table=clip_tables.contrast,
        level=_ENHANCE_LEVEL,
        reach=_everywhere,
    ),
    'BrightnessIncreasing': _by_value(
        lambda image, factor, _: ImageEnhance.Brightness(image).enhance(factor), _ENHANCE_LEVEL
    ),
    'SharpnessIncreasing': Op(
        lambda image, factor, _: ImageEnhance.Sharpness(image).enhance(factor),
        lambda part, factor, _, box: clip_ops.sharpness(part, factor, box),
        level=_ENHANCE_LEVEL,
        reach=clip_ops.sharpness_reach,
    ),
    'ShearX': Op(
        lambda image, shear, resample: _affine(image, (1, shear, 0, 0, 1, 0), resample),
        clip_ops.shear_x,
        level=_scaled(0.3),
        reach=clip_ops.shear_x_reach,
    ),
    'ShearY': Op(
        lambda image, shear, resample: _affine(image, (1, 0, 0, shear, 1, 0), resample),
        clip_ops.shear_y,
        level=_scaled(0.3),
        reach=clip_ops.shear_y_reach,
    ),
    'TranslateXRel': Op(
        lambda image, part, resample: _affine(image, (1, 0, part * image.width, 0, 1, 0), resample),
        lambda part, share, cubic, box: clip_ops.translate_x(part, share * part.size[1], cubic, box),
        level=_scaled(0.45),
        reach=lambda size, share, box: clip_ops.translate_x_reach(size, share * size[1], box),
    ),
    'TranslateYRel': Op(
        lambda image, part, resample: _affine(image, (1, 0, 0, 0, 1, part * image.height), resample),
        lambda part, share, cubic, box: clip_ops.translate_y(part, share * part.size[0], cubic, box),
        level=_scaled(0.45),
        reach=lambda size, share, box: clip_ops.translate_y_reach(size, share * size[0], box),
    ),
}


def _with_level(name: str, level: Callable[[float, int], float]) -> Op:
    return dataclasses.replace(OPS[name], level=level)


# What a spec without `inc` has in place of the ops that end in Increasing: posterize and solarize change less with a
# higher magnitude, and the factors of the others go from 0.1 to 1.9, whatever the sign.
PLAIN_OPS: dict[str, Op] = {
    'Posterize': _with_level('PosterizeIncreasing', lambda fraction, _: int(fraction * 4)),
    'Solarize': _with_level('SolarizeIncreasing', lambda fraction, _: int(fraction * 256)),
    **{
        name: _with_level(f'{name}Increasing', lambda fraction, _: fraction * 1.8 + 0.1)
        for name in ('Color', 'Contrast', 'Brightness', 'Sharpness')
    },
}


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
        part = Part(clip.made(_inside(need, have)), need, size)
        clip, have = Mapped(_on_clip(step, part, wanted)), wanted
    return clip.each(_inside(box, have))


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
