"""Clips for fine-tuning a classifier: random-resized crop, flip, RandAugment, random erasing, repeated augmentation."""

import dataclasses
import functools

import numpy as np

from mvdjax.data import media, ops, sampling
from mvdjax.data.decode import read_frames
from mvdjax.data.limits import check_counts, check_scale, check_shares
from mvdjax.data.rand_augment import RandAugment
from mvdjax.data.schema import Record, Sample, stack_views
from mvdjax.errors import UserError

SAMPLINGS = ('dense', 'segments')


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One clip per video, `views` augmentations of it.

    The published order: RandAugment on the decoded frames, random-resized crop, flip; erasing is drawn here and filled
    with noise on the device. The resize rounds to uint8, where the original keeps floats.

    Attributes:
      size: of the crop after resizing, in pixels: the side of a square, or (height, width).
      sampling: 'dense' (Kinetics: a window of length * stride frames) or 'segments' (Something-Something).
      length: frames per clip.
      stride: of 'dense' sampling.
      scale: range of the crop's share of the area.
      flip: probability of a horizontal flip; 0 where left and right matter.
      rand_augment: specification such as 'rand-m7-n4-mstd0.5-inc1', or '' for none.
      erasing: probability of random erasing.
      views: repeated augmentation: crops of the same frames per video (the published runs: 2).
    """

    size: ops.Size
    sampling: str = 'dense'
    length: int = 16
    stride: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    rand_augment: str = ''
    erasing: float = 0.0
    views: int = 1

    def __post_init__(self) -> None:
        """Refuses options that make no sample."""
        check_counts(size=self.size, length=self.length, stride=self.stride, views=self.views)
        check_scale(self.scale)
        check_shares(flip=self.flip, erasing=self.erasing)
        if self.sampling not in SAMPLINGS:
            raise UserError(f'sampling must be one of {", ".join(SAMPLINGS)}, not {self.sampling!r}')
        if self.rand_augment:
            self._augment()

    def _augment(self) -> RandAugment:
        return RandAugment(self.rand_augment)

    def _indices(self, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        if self.sampling == 'dense':
            return sampling.kinetics_train(num_frames, rng, self.length, self.stride)
        return sampling.segments_train(num_frames, rng, self.length)

    def _view(self, frames: np.ndarray, label: int, rng: np.random.Generator) -> Sample:
        if self.rand_augment:
            frames = self._augment()(rng, frames)
        height, width = frames.shape[1:3]
        box = ops.random_resized_crop_box(rng, height, width, self.scale, ops.crop_ratio(self.size))
        clip = ops.crop_resize_bilinear(frames, box, self.size)
        if rng.random() < self.flip:
            clip = ops.flip(clip)
        sample = {'video': clip, 'label': np.int32(label)}
        if self.erasing:
            sample['erase'] = ops.random_erasing_box(rng, *ops.height_width(self.size), self.erasing)
        return sample

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """A sample with `video`, `label`, maybe `erase`, each with a leading axis of `views` if there are several."""
        frames = read_frames(media.fetch(record.path), functools.partial(self._indices, rng=rng))
        return stack_views([self._view(frames, record.label, rng) for _ in range(self.views)])
