"""The encoder of DALL-E's discrete VAE (arXiv 2102.12092), whose most probable codes are BEVT's labels.

A convolutional network that makes one of `vocabulary` codes of every 8 x 8 pixels. Facts: the package `dall_e` and the
cases golden/bevt/dalle_*.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvdjax.errors import UserError

GROUPS = (1, 2, 4, 8)  # channels of each group of blocks, in widths; a max pooling between two groups
STRIDE = 2 ** (len(GROUPS) - 1)  # pixels of a code, along height and width
PIXEL_EPSILON = 0.1


def map_pixels(video: jax.Array) -> jax.Array:
    """uint8 pixels -> float32 in [0.1, 0.9]: the published encoder models logits of pixels, which 0 and 1 have not."""
    return (1 - 2 * PIXEL_EPSILON) * (video.astype(jnp.float32) / 255.0) + PIXEL_EPSILON


def _convolution(channels: int, side: int, dtype: Any, name: str, **options: Any) -> nn.Conv:
    return nn.Conv(channels, (side, side), padding='SAME', dtype=dtype, name=name, **options)


class DalleBlock(nn.Module):
    """A residual block: relu before each of three 3 x 3 convolutions and a last 1 x 1, at a quarter of the width.

    Attributes:
      channels: of the output; where the input has others, the shortcut is a 1 x 1 convolution.
      gain: factor of the branch.
      dtype: compute dtype.
    """

    channels: int
    gain: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, h, w, channels)."""
        shortcut = x  # before the relu
        if x.shape[-1] != self.channels:
            shortcut = _convolution(self.channels, 1, self.dtype, 'shortcut')(x)
        y = x
        for i, side in enumerate((3, 3, 3, 1), start=1):
            width = self.channels if i == 4 else self.channels // 4
            y = _convolution(width, side, self.dtype, f'conv{i}')(nn.relu(y))
        return shortcut + self.gain * y


class DalleEncoder(nn.Module):
    """The encoder.

    Attributes:
      width: channels of the first group (published: 256).
      blocks: residual blocks in each of the four groups (published: 2).
      vocabulary: codes (published: 8192).
      dtype: compute dtype of all but the last convolution, which is float32 always. The published encoder computes in
        float16 on a GPU: where two codes are almost equally probable, another one may then win.
    """

    width: int = 256
    blocks: int = 2
    vocabulary: int = 8192
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes.

        Args:
          images: (b, h, w, 3) float, as `map_pixels` makes them; sides are multiples of `STRIDE`.

        Returns:
          ((b, h / 8, w / 8, vocabulary) float32 logits, {'input', 'group1', ..., 'group4'}: the feature maps after the
          first convolution and after each group (and its pooling)).

        Raises:
          UserError: sides that do not divide, or a width that is not a multiple of 4.
        """
        if self.width % 4:
            raise UserError(f'the width of a DALL-E encoder must be a multiple of 4, not {self.width}')
        if any(side % STRIDE for side in images.shape[1:3]):
            raise UserError(f'images of {images.shape[1:3]} pixels do not divide into codes of {STRIDE} x {STRIDE}')
        gain = 1.0 / (len(GROUPS) * self.blocks) ** 2
        x = _convolution(self.width, 7, self.dtype, 'input')(images.astype(self.dtype))
        maps = {'input': x}
        for i, factor in enumerate(GROUPS, start=1):
            for k in range(1, self.blocks + 1):
                x = DalleBlock(factor * self.width, gain, self.dtype, name=f'group{i}_block{k}')(x)
            if i < len(GROUPS):
                x = nn.max_pool(x, (2, 2), (2, 2))
            maps[f'group{i}'] = x
        exact = {'precision': jax.lax.Precision.HIGHEST}  # float32 where accelerators would round: it decides on codes
        logits = _convolution(self.vocabulary, 1, jnp.float32, 'head', **exact)(nn.relu(x).astype(jnp.float32))
        return logits, maps
