"""A codebook of image patches that trains here, from scratch: an encoder, vector quantisation, a decoder.

After VQ-VAE (arXiv 1711.00937) and PeCo (arXiv 2111.12710), whose codes BEVT was trained on beside DALL-E's. Codes are
short vectors compared by their angle (arXiv 2110.04627), which keeps many of them in use.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvdjax.errors import UserError

NORM_GROUPS = 8
STATISTICS = (0.5, 0.5, 0.5)  # mean and deviation of the input: pixels from -1 to 1
# Of a fresh code's values. Only directions count, so short codes turn fast: Adam's steps have the size of the rate.
CODE_DEVIATION = 0.03

# Variance scaling by the inputs, for convolutions followed by a SiLU; the last one of a branch starts at zero, so that
# every block starts as the identity.
_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'truncated_normal')


def unit(x: jax.Array) -> jax.Array:
    """Vectors (..., d) of length one, float32; the zero vector stays near zero and has a gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def _norm(name: str, channels: int, dtype: Any) -> nn.GroupNorm:
    return nn.GroupNorm(min(NORM_GROUPS, channels), use_fast_variance=False, dtype=dtype, name=name)


class ConvBlock(nn.Module):
    """Residual: twice norm, SiLU and a 3 x 3 convolution. Keeps the channels."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, h, w, c)."""
        y, channels = x, x.shape[-1]
        for i, init in enumerate((_init, nn.initializers.zeros), start=1):
            y = nn.silu(_norm(f'norm{i}', channels, self.dtype)(y))
            y = nn.Conv(channels, (3, 3), kernel_init=init, dtype=self.dtype, name=f'conv{i}')(y)
        return x + y


class VQ(nn.Module):
    """The tokenizer with its decoder.

    Attributes:
      channels: of each level of the encoder, the decoder mirrored; every level halves height and width, so a code
        stands for 2^levels x 2^levels pixels.
      blocks: residual blocks in each level of either side.
      vocabulary: codes.
      code_dim: values of a code.
      mean, std: of pixels in [0, 1], one value per channel, that the input is normalised with.
      dtype: compute dtype; codes and reconstructions are float32 always.
    """

    channels: Sequence[int] = (64, 128, 256)
    blocks: int = 2
    vocabulary: int = 8192
    code_dim: int = 32
    mean: tuple[float, ...] = STATISTICS
    std: tuple[float, ...] = STATISTICS
    dtype: Any = jnp.float32

    @property
    def patch(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of a code."""
        side = 2 ** len(self.channels)
        return 1, side, side

    def setup(self) -> None:
        """Encoder, codebook, decoder."""
        levels = len(self.channels)
        self.down = [
            nn.Conv(c, (2, 2), (2, 2), kernel_init=_init, dtype=self.dtype, name=f'encoder_down{i}')
            for i, c in enumerate(self.channels)
        ]
        self.encoder = [
            [ConvBlock(self.dtype, name=f'encoder_level{i}_block{k}') for k in range(self.blocks)]
            for i in range(levels)
        ]
        self.encoder_norm = _norm('encoder_norm', self.channels[-1], self.dtype)
        self.to_code = nn.Dense(self.code_dim, dtype=jnp.float32, name='to_code')
        self.code_table = self.param(
            'code_table', nn.initializers.normal(CODE_DEVIATION), (self.vocabulary, self.code_dim)
        )
        self.from_code = nn.Dense(self.channels[-1], dtype=self.dtype, name='from_code')
        self.decoder = [
            [ConvBlock(self.dtype, name=f'decoder_level{i}_block{k}') for k in range(self.blocks)]
            for i in range(levels)
        ]
        self.decoder_norms = [_norm(f'decoder_norm{i}', c, self.dtype) for i, c in enumerate(self.channels)]
        outputs = (len(self.mean), *self.channels[:-1])  # of each level, on the way up
        self.up = [
            nn.Dense(4 * c, dtype=self.dtype if i else jnp.float32, name=f'decoder_up{i}')
            for i, c in enumerate(outputs)
        ]

    def encode(self, images: jax.Array) -> jax.Array:
        """Normalised (b, h, w, c) images -> (b, h', w', code_dim) float32 vectors of length one.

        Raises:
          UserError: sides that do not divide into codes.
        """
        if any(side % self.patch[1] for side in images.shape[1:3]):
            raise UserError(f'images of {images.shape[1:3]} pixels do not divide into codes of {self.patch[1:]} pixels')
        x = images.astype(self.dtype)
        for down, level in zip(self.down, self.encoder, strict=True):
            x = down(x)
            for block in level:
                x = block(x)
        return unit(self.to_code(nn.silu(self.encoder_norm(x))))

    def codes(self) -> jax.Array:
        """The codebook: (vocabulary, code_dim) float32 vectors of length one."""
        return unit(self.code_table)

    def nearest(self, vectors: jax.Array) -> jax.Array:
        """(..., code_dim) vectors of length one -> (...) int32 codes with the smallest angle to them."""
        # In float32 where accelerators would round: angles to codes that lie close differ by little.
        contracted = (((vectors.ndim - 1,), (1,)), ((), ()))
        likeness = jax.lax.dot_general(vectors, self.codes(), contracted, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmax(likeness, axis=-1).astype(jnp.int32)

    def tokens(self, images: jax.Array) -> jax.Array:
        """Normalised (b, h, w, c) images -> (b, h', w') int32 codes."""
        return self.nearest(self.encode(images))

    def decode(self, vectors: jax.Array) -> jax.Array:
        """(b, h', w', code_dim) codes' vectors -> (b, h, w, c) float32, normalised as the input."""
        x = self.from_code(vectors.astype(self.dtype))
        for i in reversed(range(len(self.channels))):
            for block in self.decoder[i]:
                x = block(x)
            x = self.up[i](nn.silu(self.decoder_norms[i](x)))
            b, h, w, c = x.shape
            x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)
        return x

    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Reconstructs normalised (b, h, w, c) images from their codes.

        The gradient passes the quantisation straight through, from the chosen code to the encoder's vector.

        Returns:
          ((b, h, w, c) float32, {'vectors': (b, h', w', code_dim) of the encoder, 'tokens': (b, h', w') int32,
          'chosen': the codes' vectors, 'codes': (vocabulary, code_dim)}).
        """
        vectors = self.encode(images)
        tokens, codes = self.nearest(vectors), self.codes()
        chosen = codes[tokens]
        straight = vectors + jax.lax.stop_gradient(chosen - vectors)
        return self.decode(straight), {'vectors': vectors, 'tokens': tokens, 'chosen': chosen, 'codes': codes}
