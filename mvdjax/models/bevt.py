"""BEVT's models (2112.01529): a Swin that predicts the tokens of masked patches, and the classifier it becomes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvdjax.errors import UserError
from mvdjax.models.embed import Grid
from mvdjax.models.layers import token_init
from mvdjax.models.placement import gathering, keep_rows
from mvdjax.models.video_swin import VideoSwin, uniform_init


class Upsample(nn.Module):
    """A transposed convolution whose stride is its kernel: every token becomes a cube of tokens of the same width."""

    factors: Grid
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, h, w, c) -> (b, t * factors[0], h * factors[1], w * factors[2], c)."""
        b, t, h, w, c = x.shape
        kt, kh, kw = self.factors
        init = uniform_init(c * kt * kh * kw)
        kernel = self.param('kernel', init, (c, kt, kh, kw, c)).astype(self.dtype)
        bias = self.param('bias', init, (c,)).astype(self.dtype)
        x = jnp.einsum('bthwc,cijko->bthwijko', x, kernel)
        x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(b, t * kt, h * kh, w * kw, c) + bias


class MaskedSwin(nn.Module):
    """A Swin, the fusion of its last two stages, and a head over a tokenizer's vocabulary.

    The last stage is brought to the grid of the stage before it and joined with it, for clips and for images by layers
    of their own; a clip's latent frames then become its frames. Norm (the backbone's) and head are shared.

    Attributes:
      backbone: the encoder.
      vocabulary: number of tokens there are.
    """

    backbone: VideoSwin
    vocabulary: int

    def setup(self) -> None:
        """The layers; those of a stream that never runs have no parameters."""
        backbone = self.backbone
        if len(backbone.depths) < 2:
            raise UserError(f'the fusion needs two stages at least, not depths {backbone.depths}')
        init, dtype = token_init, backbone.dtype

        def upsample(name: str, factors: Grid) -> nn.Module:
            return gathering(Upsample, name, None, dtype)(factors, dtype)

        def dense(name: str, width: int, dtype: Any) -> nn.Module:
            return gathering(nn.Dense, name, None, dtype)(width, kernel_init=init, dtype=dtype)

        self.fpn_s = upsample('fpn_s', (1, 2, 2))
        self.fpn_t = upsample('fpn_t', (backbone.patch[0], 1, 1))
        self.lm_down_st = dense('lm_down_st', backbone.out_width, dtype)
        self.fpn = upsample('fpn', (1, 2, 2))
        self.lm_down = dense('lm_down', backbone.out_width, dtype)
        self.lm_head = dense('lm_head', self.vocabulary, jnp.float32)  # scores differ by little

    def _fuse(self, maps: dict[str, jax.Array], up: nn.Module, down: nn.Module) -> jax.Array:
        last = len(self.backbone.depths)
        fine, coarse = maps[f'stage{last - 1}'], maps[f'stage{last}']
        if fine.shape[2] % 2 or fine.shape[3] % 2:
            raise UserError(
                f'the last two stages cannot be joined: a map of {fine.shape[2]}x{fine.shape[3]} tokens is not twice '
                'the next one; choose another input size'
            )
        joined: jax.Array = down(keep_rows(jnp.concatenate([fine, up(coarse)], axis=-1)))
        return keep_rows(joined)

    def _clip_neck(self, maps: dict[str, jax.Array]) -> jax.Array:
        return self.fpn_t(self._fuse(maps, self.fpn_s, self.lm_down_st))

    def _image_neck(self, maps: dict[str, jax.Array]) -> jax.Array:
        return self._fuse(maps, self.fpn, self.lm_down)

    def __call__(
        self, video: jax.Array, mask: jax.Array | None = None, train: bool = False, image: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scores every token of a clip or an image.

        Args:
          video: (b, t, h, w, c) normalised float; an image has t = 1.
          mask: (b, t', h', w') bool of any grid, see `VideoSwin`.
          train: whether drop path acts.
          image: take the image path.

        Returns:
          ((b, tokens, vocabulary) float32 scores in frame, row, column order,
           {'tokens': (b, t'', h'', w'', c) what the head saw, and what `VideoSwin` returns}). A clip has as many frames
          of tokens as frames (filled up to a multiple of the patch).
        """
        neck = self._image_neck if image else self._clip_neck
        tokens, info = self.backbone(video, mask, train, image, neck)
        scores = keep_rows(self.lm_head(tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])))
        return scores, {'tokens': tokens, **info}

    def two_streams(
        self,
        video: jax.Array,
        video_mask: jax.Array | None,
        images: jax.Array,
        image_mask: jax.Array | None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Scores of clips and of images; `init` with this method makes the parameters of both."""
        return self(video, video_mask, train)[0], self(images, image_mask, train, image=True)[0]


class SwinClassifier(nn.Module):
    """A Swin, the mean over its last map, dropout and a linear head (Video Swin's "I3D head").

    Attributes:
      backbone: the Swin; its norm acts on the last stage.
      num_classes: outputs.
      dropout: rate before the head, in [0, 1).
    """

    backbone: VideoSwin
    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(b, t, h, w, c) normalised float -> ((b, num_classes) float32 logits, {'pooled': (b, c')})."""
        features, _ = self.backbone(video, train=train)
        pooled = jnp.mean(features.astype(jnp.float32), axis=(1, 2, 3))
        x = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        head = gathering(nn.Dense, 'head', None, jnp.float32)
        return head(self.num_classes, kernel_init=nn.initializers.normal(0.01), name='head')(x), {'pooled': pooled}
