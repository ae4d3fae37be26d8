"""Clips for BEVT's two-stream pretraining: random short side, crop, flip, a block mask, and the tokenizer's view."""

import dataclasses

import numpy as np

from mvdjax.data import ops, sampling
from mvdjax.data.limits import check_blocks, check_counts, check_shares, check_short_sides, token_grid
from mvdjax.data.masks import block_tube_mask
from mvdjax.data.reading import read_frames
from mvdjax.data.schema import Record, Sample, stack_views
from mvdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The published augmentation of the video stream; no colour jitter.

    Attributes:
      size: of the crop, in pixels: the side of a square, or (height, width).
      length: frames per clip.
      stride: frames between two of them.
      patch: (frames, rows, columns) of a token of the mask, coarser than the model's own patches.
      masked: tokens to hide in a masked time slot; masks mostly have a few less, see `masks.block_mask`.
      smallest_block: tokens of the smallest rectangle of a mask.
      tube: shortest and longest run of masked time slots, as shares of all.
      short_sides: range of the short side that frames are resized to before the crop.
      token_size: of the same crop for the tokenizer: one of its tokens per 8 x 8 pixels.
      flip: probability of a horizontal flip.
      views: clips per video and step, one from each of as many equal parts of the video, each with a crop, a flip and
        a mask of its own (published: 1).
    """

    size: ops.Size = 224
    length: int = 16
    stride: int = 8
    patch: tuple[int, int, int] = (2, 16, 16)
    masked: int = 98
    smallest_block: int = 16
    tube: tuple[float, float] = (0.5, 1.0)
    short_sides: tuple[int, int] = (256, 320)
    token_size: ops.Size = 112
    flip: float = 0.5
    views: int = 1

    def __post_init__(self) -> None:
        """Refuses options that make no sample."""
        check_counts(size=self.size, length=self.length, stride=self.stride, token_size=self.token_size)
        check_counts(views=self.views)
        check_shares(flip=self.flip)
        check_short_sides(self.short_sides, self.size)
        check_blocks(self._grid(), self.masked, self.smallest_block)
        if not 0 <= self.tube[0] <= self.tube[1] <= 1 or not self.tube[1]:
            raise UserError(f'data options: tube must be two rising shares of the time slots, not {self.tube}')

    def _grid(self) -> tuple[int, int, int]:
        return token_grid(self.length, self.size, self.patch)

    def blank(self) -> Sample:
        """Zeros in place of a sample, see `schema.Recipe`."""
        sample = {
            'video': ops.blank_clip(self.length, self.size),
            'token_video': ops.blank_clip(self.length, self.token_size),
            'mask': np.zeros(np.prod(self._grid()), bool),
        }
        return stack_views([sample] * self.views)

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """A sample with `video`, `token_video` and `mask`, each with a leading axis of `views` if several."""
        frames = read_frames(
            record.path,
            lambda n: sampling.windows_train(n, rng, self.length, self.stride, self.views).reshape(-1),
        )
        return stack_views([self._view(clip, rng) for clip in np.split(frames, self.views)])

    def _view(self, frames: np.ndarray, rng: np.random.Generator) -> Sample:
        clip = ops.random_short_side_crop(rng, frames, self.size, self.short_sides)
        if rng.random() < self.flip:
            clip = ops.flip(clip)
        return {
            'video': clip,
            'token_video': ops.resize_lanczos(clip, self.token_size),
            'mask': block_tube_mask(rng, self._grid(), self.masked, self.smallest_block, self.tube),
        }
