"""Vision Transformer for images (one frame) and clips, on all tokens or only on the visible ones."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvdjax.errors import UserError
from mvdjax.models.embed import Grid, patch_embedding, patchify, positions, token_grid
from mvdjax.models.layers import NORM_EPSILON, Transformer, layer_norm, token_init
from mvdjax.models.placement import gathering, keep_rows

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Size:
    """Width, number of blocks and of heads of a ViT."""

    width: int
    depth: int
    heads: int


# S, B, L, H are the published ones (MVD README); the others are ours, for demonstrations and tests.
VARIANTS = {
    'debug': Size(32, 2, 2),
    'nano': Size(96, 4, 3),
    'tiny': Size(192, 12, 3),
    'S': Size(384, 12, 6),
    'B': Size(768, 12, 12),
    'L': Size(1024, 24, 16),
    'H': Size(1280, 32, 16),
}


def variant(name: str) -> dict[str, int]:
    """The size of a named variant as keyword arguments of `ViT`.

    Raises:
      UserError: no such variant; the message lists them.
    """
    if name not in VARIANTS:
        raise UserError(f'no ViT variant {name!r}; there are {", ".join(VARIANTS)}')
    return dataclasses.asdict(VARIANTS[name])


class ViT(nn.Module):
    """A plain Vision Transformer.

    Attributes:
      width, depth, heads, mlp_ratio: its size, see `VARIANTS`.
      patch: (frames, rows, columns) of a token; (1, 16, 16) for an image, (2, 16, 16) for a clip.
      pos_embed: 'sincos1d' (VideoMAE), 'sincos2d' (MAE) or 'sincos3d' (MVD), fixed and recomputed for any grid; or
        'learned', a parameter of one grid, resized when a checkpoint is loaded for another.
      cls_token: prepend a learned token at position zero (MAE).
      qkv_bias: 'full' (MAE) or 'qv' (VideoMAE, MVD).
      final_norm: LayerNorm after the last block.
      mean, std: one value per channel, of pixels in [0, 1]: what the input is expected to be normalised with. The
        module itself computes nothing with them; they travel with the weights, which mean nothing without them.
      drop_path, norm_epsilon, remat, scan, attention, dtype: see `layers.Transformer`.
    """

    width: int
    depth: int
    heads: int
    patch: Grid = (2, 16, 16)
    pos_embed: str = 'sincos3d'
    mlp_ratio: float = 4.0
    cls_token: bool = False
    qkv_bias: str = 'qv'
    final_norm: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    drop_path: float = 0.0
    norm_epsilon: float = NORM_EPSILON
    remat: str = 'none'
    scan: bool = True
    attention: str = 'auto'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, video: jax.Array, visible: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes a video.

        Args:
          video: (b, t, h, w, c) normalised float; an image has t = patch[0].
          visible: (b, n) int token indices to encode, or None for all tokens.
          train: whether drop path acts (then a 'drop_path' rng is needed).

        Returns:
          ((b, [1 +] n, width) tokens, a class token first if there is one,
           {'last_block': (b, n, width) output of the last block before the final norm, class token dropped}).
        """
        grid = token_grid(video.shape, self.patch)
        table = positions(self, self.pos_embed, grid, self.width)
        patches = patchify(video, self.patch).astype(self.dtype)
        position = jnp.broadcast_to(table, (video.shape[0], *table.shape))
        if visible is not None:  # gathered before the embedding: only visible patches cost a matmul
            patches = jnp.take_along_axis(patches, visible[..., None], axis=1)
            position = table[visible]
        x = patch_embedding(self.width, self.dtype)(keep_rows(patches)) + position.astype(self.dtype)
        if self.cls_token:
            cls = self.param('cls_token', token_init, (self.width,)).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], axis=1)
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
            name='encoder',
        )(x, train)
        x = keep_rows(x)
        last_block = x[:, int(self.cls_token) :]
        if self.final_norm:
            x = layer_norm('norm', self.dtype, self.norm_epsilon)(x)
        return x, {'last_block': last_block}


class Classifier(nn.Module):
    """A ViT, the mean of its tokens, a fresh LayerNorm, dropout and a linear head (MVD's fine-tuning model).

    Attributes:
      backbone: the ViT; built with `final_norm=False`, since the pretrained final norm is not reused.
      num_classes: outputs.
      dropout: rate before the head, in [0, 1).
      head_scale: factor on the head's initial weights (`init_scale` of the original: 0.001).
    """

    backbone: ViT
    num_classes: int
    dropout: float = 0.0
    head_scale: float = 0.001

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(b, t, h, w, c) normalised float -> ((b, num_classes) float32 logits, {'pooled': (b, width)})."""
        tokens, _ = self.backbone(video, train=train)
        # Classification heads compute in float32 whatever the backbone does: the logits feed a softmax.
        pooled = layer_norm('fc_norm', jnp.float32, self.backbone.norm_epsilon)(
            jnp.mean(tokens.astype(jnp.float32), axis=1)
        )
        x = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        head_init = nn.initializers.truncated_normal(0.02 * self.head_scale)
        head = gathering(nn.Dense, 'head', None, jnp.float32)(self.num_classes, kernel_init=head_init, name='head')
        return head(x), {'pooled': pooled}
