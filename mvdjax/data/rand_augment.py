"""RandAugment for clips, as the published MVD and VideoMAE fine-tuning runs apply it.

Host code: NumPy and PIL only. It runs on whole decoded uint8 frames, before normalisation and RandomResizedCrop.
PIL is the reference, not a convenience: its fixed-point resampling and truncating blends are what the published
pixels are made of. Source: the golden cases `randaug_{spec,ops,trace}` (levels, pixels and whole traces).
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mvdjax.errors import UserError

MAX_MAGNITUDE = 10
APPLY_PROBABILITY = 0.5
FILL = (128, 128, 128)  # mid grey, not the ImageNet mean: the published runs pass no mean

_INTERPOLATIONS: dict[str, tuple[Image.Resampling, ...]] = {
    'bicubic': (Image.Resampling.BICUBIC,),
    'bilinear': (Image.Resampling.BILINEAR,),
    'random': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}
_SPEC_FORM = 'rand-m<0..10>-n<ops per clip>[-mstd<standard deviation>]-inc1, for example rand-m7-n4-mstd0.5-inc1'
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


@dataclasses.dataclass(frozen=True)
class Op:
    """One row of the op table.

    Attributes:
      apply: (RGB image, argument, filter) -> image of the same size; only the geometric ops use the filter.
      level: (magnitude / 10 in 0..1, sign 1 or -1) -> the argument of `apply`.
    """

    apply: Callable[[Image.Image, float, Image.Resampling], Image.Image]
    level: Callable[[float, int], float] = _no_level


_ENHANCE_LEVEL = _scaled(0.9, centre=1.0)

# The "increasing" set: a higher magnitude always changes the image more. The draw indexes this order.
OPS: dict[str, Op] = {
    'AutoContrast': Op(lambda image, _, __: ImageOps.autocontrast(image)),
    'Equalize': Op(lambda image, _, __: ImageOps.equalize(image)),
    'Invert': Op(lambda image, _, __: ImageOps.invert(image)),
    'Rotate': Op(_rotate, _scaled(30.0)),
    'PosterizeIncreasing': Op(_posterize, lambda fraction, _: 4 - int(fraction * 4)),
    'SolarizeIncreasing': Op(_solarize, lambda fraction, _: 256 - int(fraction * 256)),
    'SolarizeAdd': Op(_solarize_add, lambda fraction, _: int(fraction * 110)),
    'ColorIncreasing': Op(lambda image, factor, _: ImageEnhance.Color(image).enhance(factor), _ENHANCE_LEVEL),
    'ContrastIncreasing': Op(lambda image, factor, _: ImageEnhance.Contrast(image).enhance(factor), _ENHANCE_LEVEL),
    'BrightnessIncreasing': Op(lambda image, factor, _: ImageEnhance.Brightness(image).enhance(factor), _ENHANCE_LEVEL),
    'SharpnessIncreasing': Op(lambda image, factor, _: ImageEnhance.Sharpness(image).enhance(factor), _ENHANCE_LEVEL),
    'ShearX': Op(lambda image, shear, resample: _affine(image, (1, shear, 0, 0, 1, 0), resample), _scaled(0.3)),
    'ShearY': Op(lambda image, shear, resample: _affine(image, (1, 0, 0, shear, 1, 0), resample), _scaled(0.3)),
    'TranslateXRel': Op(
        lambda image, part, resample: _affine(image, (1, 0, part * image.width, 0, 1, 0), resample), _scaled(0.45)
    ),
    'TranslateYRel': Op(
        lambda image, part, resample: _affine(image, (1, 0, 0, 0, 1, part * image.height), resample), _scaled(0.45)
    ),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One op that is applied to a clip.

    Attributes:
      op: a key of `OPS`.
      arg: the op's argument, the same for every frame; 0 for the ops that take none.
      resample: the filter for each frame, `t` entries.
    """

    op: str
    arg: float
    resample: tuple[Image.Resampling, ...]


@dataclasses.dataclass(frozen=True)
class _Config:
    """A parsed spec: mean magnitude (0..10), its standard deviation, and ops drawn per clip (at least 1)."""

    magnitude: int
    magnitude_std: float
    num_ops: int


def _parse_spec(spec: str) -> _Config:
    """Parses a spec of the form `_SPEC_FORM`; tokens after `rand` come in any order.

    `inc` must be given, as 0 or 1: the published parser takes any value of it, 0 included, for the increasing ops,
    and without it runs other ops, which no published recipe uses and this module does not have.

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
    for key in ('m', 'n', 'inc'):
        if key not in values:
            fail(f'token {key!r} is missing')
    magnitude, num_ops = int(values['m']), int(values['n'])
    if magnitude > MAX_MAGNITUDE:
        fail(f'the magnitude in {"m" + values["m"]!r} is outside 0..{MAX_MAGNITUDE}')
    if num_ops < 1:
        fail(f'{"n" + values["n"]!r} asks for no op at all')
    if values['inc'] not in ('0', '1'):
        fail(f'unknown token {"inc" + values["inc"]!r}')
    return _Config(magnitude, float(values.get('mstd', '0')), num_ops)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies a few randomly drawn image operations to a clip, alike in all of its frames.

    Attributes:
      spec: `rand-m7-n4-mstd0.5-inc1` = mean magnitude 7, 4 ops drawn with replacement (each then applied with
        probability 0.5), standard deviation of the magnitude 0.5 (0 if left out), the increasing op set.
      interpolation: filter of the geometric ops: 'bicubic' (published), 'bilinear', or 'random' (either, per frame).

    Raises:
      UserError: at construction, for a misspelt spec or interpolation.
    """

    spec: str = 'rand-m7-n4-mstd0.5-inc1'
    interpolation: str = 'bicubic'

    def __post_init__(self) -> None:
        _parse_spec(self.spec)
        if self.interpolation not in _INTERPOLATIONS:
            allowed = ', '.join(_INTERPOLATIONS)
            raise UserError(f'RandAugment interpolation {self.interpolation!r} is unknown; choose one of {allowed}.')

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
        return replay(self.plan(rng, len(frames)), frames)

    def plan(self, rng: np.random.Generator, num_frames: int) -> tuple[Step, ...]:
        """Makes all draws for a clip of `num_frames` frames; returns the ops to apply, in order (0 to n of them).

        Skip, magnitude and sign are drawn for every op, used or not, so the number of draws is always the same.
        """
        config = _parse_spec(self.spec)
        n = config.num_ops
        names = list(OPS)
        chosen = rng.integers(len(names), size=n)
        applied = rng.random(n) < APPLY_PROBABILITY
        magnitudes = np.clip(rng.normal(config.magnitude, config.magnitude_std, n), 0, MAX_MAGNITUDE)
        signs = np.where(rng.random(n) < 0.5, 1, -1)
        filters = _INTERPOLATIONS[self.interpolation]
        picks = rng.integers(len(filters), size=(n, num_frames))
        return tuple(
            Step(
                op=names[chosen[i]],
                arg=OPS[names[chosen[i]]].level(float(magnitudes[i]) / MAX_MAGNITUDE, int(signs[i])),
                resample=tuple(filters[pick] for pick in picks[i]),
            )
            for i in range(n)
            if applied[i]
        )


def replay(steps: Sequence[Step], frames: np.ndarray) -> np.ndarray:
    """Applies `steps` in order to every frame, without any draw.

    Args:
      steps: ops with one filter per frame, from `RandAugment.plan` or scripted.
      frames: (t, h, w, 3) uint8 RGB with t >= 1; not modified.

    Returns:
      A new array of the same shape and dtype.

    Raises:
      ValueError: if `frames` has another dtype or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f'RandAugment takes uint8 (t, h, w, 3) frames, not {frames.dtype} {frames.shape}')
    out = np.empty_like(frames, order='C')
    for index, frame in enumerate(frames):
        image = Image.fromarray(frame)
        for step in steps:
            image = OPS[step.op].apply(image, step.arg, step.resample[index])
        out[index] = np.asarray(image)
    return out
