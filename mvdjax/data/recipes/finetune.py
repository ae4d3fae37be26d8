"""Clips for fine-tuning a classifier: random-resized crop, flip, RandAugment, random erasing, repeated augmentation."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mvdjax.data import clip_tables, color, ops, sampling
from mvdjax.data.limits import check_counts, check_scale, check_shares
from mvdjax.data.rand_augment import RandAugment
from mvdjax.data.reading import read_frames
from mvdjax.data.schema import Record, Sample, stack_views
from mvdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One clip per video, `views` augmentations of it.

    The published order: RandAugment on the decoded frames, random-resized crop, flip; erasing is drawn here and filled
    with noise on the device. The resize rounds to uint8, where the original keeps floats. Colour jitter, which no
    published fine-tuning run uses, comes after the flip.

    Attributes:
      size: of the crop after resizing, in pixels: the side of a square, or (height, width).
      sampling: a key of `sampling.RULES`: 'dense' (Kinetics: a window of length * stride frames), 'segments'
        (Something-Something), 'floor_segments' (the same, VideoMAE's rule) or 'windows' (Kinetics, BEVT's rule).
      length: frames per clip.
      stride: of 'dense' and 'windows'.
      scale: range of the crop's share of the area.
      flip: probability of a horizontal flip; 0 where left and right matter.
      flip_swaps: pairs of classes that a flip turns into each other, as ((93, 94),): the label follows the picture.
      rand_augment: specification such as 'rand-m7-n4-mstd0.5-inc1', or '' for none.
      rand_augment_mode: 'fast' or 'exact' (Pillow's pixels, several times slower), see `rand_augment.RandAugment`.
      color_jitter: largest change of brightness, contrast, saturation and hue, see `color.color_jitter`.
      erasing: probability of random erasing.
      views: repeated augmentation: crops of the same frames per video (the published runs: 2).
    """

    size: ops.Size
    sampling: str = 'dense'
    length: int = 16
    stride: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    flip_swaps: Sequence[tuple[int, int]] = ()
    rand_augment: str = ''
    rand_augment_mode: str = 'fast'
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    erasing: float = 0.0
    views: int = 1

    def __post_init__(self) -> None:
        """Refuses options that make no sample."""
        check_counts(size=self.size, length=self.length, stride=self.stride, views=self.views)
        check_scale(self.scale)
        check_shares(flip=self.flip, erasing=self.erasing)
        sampling.check_rule(self.sampling)
        self._check_swaps()
        color.check_jitter(self.color_jitter)
        self._augment  # noqa: B018 - refuses a wrong specification

    def _check_swaps(self) -> None:
        swaps = [tuple(pair) if isinstance(pair, (tuple, list)) else (pair,) for pair in self.flip_swaps]
        classes = [label for pair in swaps for label in pair]
        if any(len(pair) != 2 or not all(isinstance(label, int) and label >= 0 for label in pair) for pair in swaps):
            raise UserError(f'data options: flip_swaps must be pairs of class numbers, not {self.flip_swaps!r}')
        if len(set(classes)) < len(classes):
            raise UserError(f'data options: flip_swaps names a class twice: {self.flip_swaps!r}')
        if swaps and not self.flip:
            raise UserError('data options: flip_swaps does nothing where flip is 0: state the probability of a flip')

    @functools.cached_property
    def _augment(self) -> RandAugment | None:
        return RandAugment(self.rand_augment, mode=self.rand_augment_mode) if self.rand_augment else None

    def _flipped(self, label: int) -> int:
        swaps = {old: new for a, b in self.flip_swaps for old, new in ((a, b), (b, a))}
        return swaps.get(label, label)

    def _view(self, frames: np.ndarray, label: int, rng: np.random.Generator, video: np.ndarray) -> Sample:
        """Draws a view, puts its clip into `video` and returns the rest of the sample."""
        height, width = frames.shape[1:3]
        augment = self._augment
        steps = augment.plan(rng, len(frames)) if augment else ()
        box = ops.random_resized_crop_box(rng, height, width, self.scale, ops.crop_ratio(self.size))
        flip = rng.random() < self.flip
        # The operations see whole frames, of which only the box is wanted.
        parts = augment.each(steps, frames, box) if augment else clip_tables.cut(frames, box)
        ops.resize_into(parts, video, mirrored=flip)
        if any(self.color_jitter):
            video[...] = color.color_jitter(rng, video, *self.color_jitter)
        sample: Sample = {'label': np.int32(self._flipped(label) if flip else label)}
        if self.erasing:
            sample['erase'] = ops.random_erasing_box(rng, *ops.height_width(self.size), self.erasing)
        return sample

    def blank(self) -> Sample:
        """Zeros in place of a sample, see `schema.Recipe`."""
        sample: Sample = {'video': ops.blank_clip(self.length, self.size), 'label': np.int32(0)}
        if self.erasing:
            sample['erase'] = np.zeros(4, np.int32)
        return stack_views([sample] * self.views)

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """A sample with `video`, `label`, maybe `erase`, each with a leading axis of `views` if there are several."""
        pick = sampling.RULES[self.sampling].train
        frames = read_frames(record.path, lambda n: pick(n, rng, self.length, self.stride))
        video = np.empty((self.views, len(frames), *ops.height_width(self.size), 3), np.uint8)
        rest = stack_views([self._view(frames, record.label, rng, clip) for clip in video])
        return {'video': video if self.views > 1 else video[0], **rest}
