"""The operations of `rand_augment`: each with Pillow, for one image, and the same for whole clips.

PIL is the reference, not a convenience: its fixed-point resampling and truncating blends are what the published
pixels are made of. `clip_tables` and `clip_ops` have the same ops for whole clips, several times faster and, rotation
aside, within one level. Source: the golden cases `randaug_{spec,ops}` (levels and pixels).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mvdjax.data import clip_ops, clip_tables
from mvdjax.data.clip_ops import FrameSize, Part
from mvdjax.data.clip_tables import Mapped
from mvdjax.data.ops import Box

FILL = (clip_ops.FILL,) * 3


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


def inside(box: Box, part: Box) -> Box:
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
        lambda part, factor, _, box: clip_ops.color(part.frames, factor, inside(box, part.box)),
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
