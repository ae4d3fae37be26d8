"""Clips for VideoMAE pretraining and MVD distillation: the published multi-scale crop, and a mask."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mvdjax.data import ops, sampling
from mvdjax.data.limits import check_counts, mask_grid
from mvdjax.data.masks import make_mask
from mvdjax.data.reading import read_frames
from mvdjax.data.schema import Record, Sample, stack_views
from mvdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Random clips of a video: multi-scale crop, bilinear resize, no flip, no colour jitter (as published).

    Attributes:
      size: of the student's and the video teacher's frames, in pixels: the side of a square, or (height, width).
      patch: (frames, rows, columns) of a token.
      mask: {'kind', 'ratio'}, see `data.masks`.
      length: frames per clip.
      stride: frames between two of them.
      teacher_size: likewise, of a second resize of the same crop for the image teacher, or 0 for none.
      resize: 'fast', or 'exact' for Pillow's pixels everywhere: one level apart at most where the crop is no larger
        than `size`, else half a level in the mean (docs/data.md).
      views: clips per video and step, one from each of as many equal parts of the video, each with a crop and a mask
        of its own (`num_sample` of the published code, which has 1 in every run).
    """

    size: ops.Size
    patch: tuple[int, int, int]
    mask: Mapping[str, Any]
    length: int = 16
    stride: int = 4
    teacher_size: ops.Size = 0
    resize: str = 'fast'
    views: int = 1

    def __post_init__(self) -> None:
        """Refuses options that make no sample."""
        check_counts(size=self.size, length=self.length, stride=self.stride, views=self.views)
        check_counts(0, teacher_size=self.teacher_size)
        if self.resize not in ('exact', 'fast'):
            raise UserError(f"data options: resize must be 'exact' or 'fast', not {self.resize!r}")
        mask_grid(self.length, self.size, self.patch, self.mask)

    def blank(self) -> Sample:
        """Zeros in place of a sample, see `schema.Recipe`."""
        sample = {
            'video': ops.blank_clip(self.length, self.size),
            'mask': np.zeros(np.prod(mask_grid(self.length, self.size, self.patch, self.mask)), bool),
        }
        if self.teacher_size:
            sample['teacher_video'] = ops.blank_clip(self.length, self.teacher_size)
        return stack_views([sample] * self.views)

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """A sample with `video`, `mask`, maybe `teacher_video`, each with a leading axis of `views` if several."""
        frames = read_frames(
            record.path,
            lambda n: sampling.pretrain_clip(n, rng, self.length, self.stride, self.views).reshape(-1),
        )
        return stack_views([self._view(clip, rng) for clip in np.split(frames, self.views)])

    def _view(self, frames: np.ndarray, rng: np.random.Generator) -> Sample:
        height, width = frames.shape[1:3]
        box = ops.multiscale_crop_box(rng, height, width, self.size)
        grid = mask_grid(self.length, self.size, self.patch, self.mask)
        fast = self.resize == 'fast'
        sample = {
            'video': ops.crop_resize_antialias(frames, box, self.size, fast=fast),
            'mask': make_mask(rng=rng, grid=grid, **self.mask),
        }
        if self.teacher_size:
            sample['teacher_video'] = ops.crop_resize_antialias(frames, box, self.teacher_size, fast=fast)
        return sample
