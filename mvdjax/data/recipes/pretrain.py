"""Clips for VideoMAE pretraining and MVD distillation: the published multi-scale crop, and a mask."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mvdjax.data import ops, sampling
from mvdjax.data.decode import read_frames
from mvdjax.data.masks import make_mask
from mvdjax.data.schema import Record, Sample


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One random clip per video: multi-scale crop, bilinear resize, no flip, no colour jitter (as published).

    Attributes:
      size: side of the student's and the video teacher's frames, in pixels.
      patch: (frames, rows, columns) of a token.
      mask: {'kind', 'ratio'}, see `data.masks`.
      length: frames per clip.
      stride: frames between two of them.
      teacher_size: side of a second resize of the same crop for the image teacher, or 0 for none.
    """

    size: int
    patch: tuple[int, int, int]
    mask: Mapping[str, Any]
    length: int = 16
    stride: int = 4
    teacher_size: int = 0

    @property
    def views(self) -> int:
        """One sample per video."""
        return 1

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """A sample with `video`, `mask` and maybe `teacher_video`."""
        frames = read_frames(record.path, lambda n: sampling.pretrain_clip(n, rng, self.length, self.stride)[0])
        height, width = frames.shape[1:3]
        box = ops.multiscale_crop_box(rng, height, width, self.size)
        grid = (self.length // self.patch[0], self.size // self.patch[1], self.size // self.patch[2])
        sample = {
            'video': ops.crop_resize_antialias(frames, box, self.size),
            'mask': make_mask(rng=rng, grid=grid, **self.mask),
        }
        if self.teacher_size:
            sample['teacher_video'] = ops.crop_resize_antialias(frames, box, self.teacher_size)
        return sample
