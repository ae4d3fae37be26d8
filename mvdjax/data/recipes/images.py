"""Images for MAE pretraining: random-resized crop, flip, and a mask; or without a mask, to train a tokenizer.

An image is a clip of one frame.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mvdjax.data import ops
from mvdjax.data.limits import check_counts, check_scale, check_shares, mask_grid
from mvdjax.data.masks import make_mask
from mvdjax.data.reading import read_image
from mvdjax.data.schema import Record, Sample


@dataclasses.dataclass(frozen=True)
class Recipe:
    """MAE's augmentation.

    Attributes:
      size: of the crop after resizing, in pixels: the side of a square, or (height, width).
      patch: (1, rows, columns) of a token of the mask.
      mask: {'kind', 'ratio'}, see `data.masks`; None makes none.
      scale: range of the crop's share of the area.
      flip: probability of a horizontal flip.
    """

    size: ops.Size
    patch: tuple[int, int, int] = (1, 16, 16)
    mask: Mapping[str, Any] | None = None
    scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Refuses options that make no sample."""
        check_counts(size=self.size)
        check_scale(self.scale)
        check_shares(flip=self.flip)
        if self.mask is not None:
            mask_grid(1, self.size, self.patch, self.mask)

    @property
    def views(self) -> int:
        """One sample per image."""
        return 1

    def blank(self) -> Sample:
        """Zeros in place of a sample, see `schema.Recipe`."""
        sample: Sample = {'video': ops.blank_clip(1, self.size)}
        if self.mask is not None:
            sample['mask'] = np.zeros(np.prod(mask_grid(1, self.size, self.patch, self.mask)), bool)
        return sample

    def __call__(self, record: Record, rng: np.random.Generator) -> Sample:
        """A sample with `video` of one frame, and `mask` if there is one."""
        image = read_image(record.path)[None]
        height, width = image.shape[1:3]
        box = ops.random_resized_crop_box(rng, height, width, self.scale, ops.crop_ratio(self.size, (3 / 4, 4 / 3)))
        frame = ops.crop_resize_antialias(image, box, self.size, 'bicubic')
        if rng.random() < self.flip:
            frame = ops.flip(frame)
        if self.mask is None:
            return {'video': frame}
        grid = mask_grid(1, self.size, self.patch, self.mask)
        return {'video': frame, 'mask': make_mask(rng=rng, grid=grid, **self.mask)}
