"""Test views of a video: several clips times several crops, all from one decode."""

import dataclasses

import numpy as np

from mvdjax.data import ops, sampling
from mvdjax.data.limits import check_counts
from mvdjax.data.reading import read_picked
from mvdjax.data.schema import Record, Sample
from mvdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The published test protocol: short side resized, windows spread over the video, crops along the long side.

    Attributes:
      size: short side after the resize and side of the square crops, in pixels; or the (height, width) of the crops
        and of the resize, which just covers them.
      sampling: a key of `sampling.RULES`, as in training.
      length: frames per clip.
      stride: of 'dense' and 'windows'.
      clips: temporal windows.
      crops: spatial crops of each.
      crop_rule: 'even', or 'bevt' for BEVT's three crops, see `ops.spatial_crops`.
    """

    size: ops.Size
    sampling: str = 'dense'
    length: int = 16
    stride: int = 4
    clips: int = 5
    crops: int = 3
    crop_rule: str = 'even'

    def __post_init__(self) -> None:
        """Refuses options that make no sample."""
        counts = {'length': self.length, 'stride': self.stride, 'clips': self.clips, 'crops': self.crops}
        check_counts(size=self.size, **counts)
        sampling.check_rule(self.sampling)
        if self.crop_rule not in ops.CROP_RULES:
            raise UserError(f'crop_rule must be one of {", ".join(ops.CROP_RULES)}, not {self.crop_rule!r}')
        if self.crop_rule == 'bevt' and self.crops != 3:
            raise UserError(f"crop_rule 'bevt' makes 3 crops, not {self.crops}")

    @property
    def views(self) -> int:
        """One sample per video; its `video` has the test views as leading axis."""
        return 1

    def indices(self, num_frames: int) -> np.ndarray:
        """(clips, length) frame numbers."""
        return sampling.RULES[self.sampling].test(num_frames, self.length, self.stride, self.clips)

    def blank(self) -> Sample:
        """Zeros in place of a sample, see `schema.Recipe`."""
        return {'video': ops.blank_clip((self.clips * self.crops, self.length), self.size), 'label': np.int32(0)}

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """A sample with `video` (clips * crops, length, height, width, 3), clip-major, and `label`."""
        del rng
        wanted: list[np.ndarray] = []

        def pick(num_frames: int) -> np.ndarray:
            unique, inverse = np.unique(self.indices(num_frames), return_inverse=True)
            wanted[:] = [inverse.reshape(self.clips, self.length)]
            return unique

        frames = ops.short_side_resize(read_picked(record.path, pick), self.size)
        crops = ops.spatial_crops(frames, self.size, self.crops, self.crop_rule)  # (crops, unique frames, ...)
        video = crops[:, wanted[0]].swapaxes(0, 1)  # (clips, crops, length, height, width, 3)
        return {'video': video.reshape(-1, *video.shape[2:]), 'label': np.int32(record.label)}
