"""Masked autoencoder: an encoder of the visible tokens and one (MAE, VideoMAE) or two (MVD) decoders."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvdjax.models.embed import Grid, positions, token_grid
from mvdjax.models.layers import NORM_EPSILON, Transformer, layer_norm, linear_init, token_init
from mvdjax.models.placement import gathering, keep_rows
from mvdjax.models.vit import ViT


def split_mask(mask: jax.Array, num_masked: int) -> tuple[jax.Array, jax.Array]:
    """Token indices of both sides of a mask.

    Args:
      mask: (b, tokens) bool, True = masked, with exactly `num_masked` True in each row.
      num_masked: static count.

    Returns:
      ((b, tokens - num_masked) visible, (b, num_masked) masked) int indices, each in token order.
    """
    order = jnp.argsort(mask, axis=1, stable=True)  # False sorts first
    visible = mask.shape[1] - num_masked
    return order[:, :visible], order[:, visible:]


class Decoder(nn.Module):
    """Predicts something about the masked tokens from the encoded visible ones.

    Attributes:
      width, depth, heads, mlp_ratio: its size.
      out_dim: values predicted per token.
      embed_bias: bias of the projection from encoder to decoder width (MAE and MVD: yes; VideoMAE: no).
      pos_embed, qkv_bias: as in the encoder, see `ViT`.
      drop_path, norm_epsilon, remat, scan, attention, dtype: see `layers.Transformer`.
    """

    width: int
    depth: int
    heads: int
    out_dim: int
    embed_bias: bool = True
    pos_embed: str = 'sincos3d'
    qkv_bias: str = 'qv'
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    norm_epsilon: float = NORM_EPSILON
    remat: str = 'none'
    scan: bool = True
    attention: str = 'auto'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, encoded: jax.Array, visible: jax.Array, masked: jax.Array, grid: Grid, train: bool = False
    ) -> jax.Array:
        """Decodes.

        Args:
          encoded: (b, [1 +] visible, d) encoder output; extra leading tokens (a class token) get no position.
          visible: (b, visible) int token indices.
          masked: (b, masked) int token indices.
          grid: (t, h, w) tokens.
          train: whether drop path acts.

        Returns:
          (b, masked, out_dim) float32 predictions in the order of `masked`.
        """
        table = positions(self, self.pos_embed, grid, self.width).astype(self.dtype)
        embed = gathering(nn.Dense, 'embed', None, self.dtype)
        x = embed(self.width, use_bias=self.embed_bias, kernel_init=linear_init, dtype=self.dtype, name='embed')(
            encoded
        )
        x = keep_rows(x)
        prefix = encoded.shape[1] - visible.shape[1]
        token = self.param('mask_token', token_init, (self.width,)).astype(self.dtype)
        x = jnp.concatenate([x[:, :prefix], x[:, prefix:] + table[visible], token + table[masked]], axis=1)
        x = Transformer(
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.qkv_bias,
            self.drop_path,
            self.norm_epsilon,
            self.remat,
            self.scan,
            self.attention,
            self.dtype,
            name='decoder',
        )(x, train)
        # Normed and projected after the cut: the visible part of the output is of no use to any loss.
        x = layer_norm('norm', self.dtype, self.norm_epsilon)(x[:, -masked.shape[1] :])
        head = gathering(nn.Dense, 'head', None, self.dtype)
        x = head(self.out_dim, kernel_init=linear_init, dtype=self.dtype, name='head')(x)
        return keep_rows(x.astype(jnp.float32))


class MaskedViT(nn.Module):
    """An encoder that sees the visible tokens only, and named decoders for the masked ones.

    Attributes:
      backbone: the encoder.
      decoders: name -> decoder; MAE and VideoMAE have one ('pixels'), MVD two ('image' and 'video').
    """

    backbone: ViT
    decoders: dict[str, Decoder]

    @nn.compact
    def __call__(
        self, video: jax.Array, mask: jax.Array, num_masked: int, train: bool = False
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Encodes the visible tokens and predicts at the masked ones.

        Args:
          video: (b, t, h, w, c) normalised float.
          mask: (b, tokens) bool, True = masked, `num_masked` in each row.
          num_masked: static count of masked tokens.
          train: whether drop path acts.

        Returns:
          ({decoder: (b, num_masked, out_dim)}, {'encoded': (b, [1 +] visible, width), 'masked': (b, num_masked)}).
        """
        visible, masked = split_mask(mask, num_masked)
        encoded, _ = self.backbone(video, visible, train=train)
        grid = token_grid(video.shape, self.backbone.patch)
        predictions = {n: d(encoded, visible, masked, grid, train=train) for n, d in self.decoders.items()}
        return predictions, {'encoded': encoded, 'masked': masked}
