"""Images for BEVT's pretraining: random short side, crop, flip, colour jitter, a block mask, the tokenizer's view."""

import dataclasses

import numpy as np

from mvdjax.data import color, ops
from mvdjax.data.limits import check_blocks, check_counts, check_shares, check_short_sides, token_grid
from mvdjax.data.masks import block_mask
from mvdjax.data.reading import read_image
from mvdjax.data.schema import Record, Sample


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The published augmentation of the image stream. An image is a clip of one frame.

    Attributes:
      size: of the crop, in pixels: the side of a square, or (height, width).
      patch: (1, rows, columns) of a token of the mask, coarser than the model's own patches.
      masked: tokens to hide; masks mostly have a few less, see `masks.block_mask`.
      smallest_block: tokens of the smallest rectangle of a mask.
      short_sides: range of the short side that images are resized to before the crop.
      token_size: of the same crop for the tokenizer: one of its tokens per 8 x 8 pixels.
      flip: probability of a horizontal flip.
      color_jitter: largest change of brightness, contrast, saturation and hue, see `color.color_jitter`.
    """

    size: ops.Size = 224
    patch: tuple[int, int, int] = (1, 16, 16)
    masked: int = 98
    smallest_block: int = 16
    short_sides: tuple[int, int] = (256, 320)
    token_size: ops.Size = 112
    flip: float = 0.5
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0)

    def __post_init__(self) -> None:
        """Refuses options that make no sample."""
        check_counts(size=self.size, token_size=self.token_size)
        check_shares(flip=self.flip)
        check_short_sides(self.short_sides, self.size)
        check_blocks(self._grid(), self.masked, self.smallest_block)
        color.check_jitter(self.color_jitter)

    def _grid(self) -> tuple[int, int, int]:
        return token_grid(1, self.size, self.patch)

    @property
    def views(self) -> int:
        """One sample per image."""
        return 1

    def blank(self) -> Sample:
        """Zeros in place of a sample, see `schema.Recipe`."""
        return {
            'video': ops.blank_clip(1, self.size),
            'token_video': ops.blank_clip(1, self.token_size),
            'mask': np.zeros(np.prod(self._grid()), bool),
        }

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """A sample with `video` and `token_video` of one frame, and `mask`."""
        image = read_image(record.path)[None]
        frame = ops.random_short_side_crop(rng, image, self.size, self.short_sides)
        if rng.random() < self.flip:
            frame = ops.flip(frame)
        frame = color.color_jitter(rng, frame, *self.color_jitter)
        _, height, width = self._grid()
        return {
            'video': frame,
            'token_video': ops.resize_lanczos(frame, self.token_size),
            'mask': block_mask(rng, (height, width), self.masked, self.smallest_block).reshape(-1),
        }
