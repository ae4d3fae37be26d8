"""Masked autoencoding of pixels: MAE (arXiv 2111.06377) on images and VideoMAE (arXiv 2203.12602) on clips.

Both are one task: an image is a clip of one frame. They differ in the tokens they mask (the data's business), in the
position table and biases (the model section) and in the pixel target (`target`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvdjax import flops, losses
from mvdjax.data.masks import num_masked
from mvdjax.data.schema import FileList
from mvdjax.errors import UserError
from mvdjax.evaluation.means import Means
from mvdjax.metrics import Metrics, weighted
from mvdjax.models.embed import patchify, token_grid
from mvdjax.models.masked_vit import Decoder, MaskedViT
from mvdjax.models.vit import ViT
from mvdjax.tasks.base import Batch, build_decoder, build_vit, check_mask, model_input, vit_layer_index
from mvdjax.tasks.encoders import VitEncoder

TARGETS = ('mae', 'mae_raw', 'videomae', 'videomae_raw')


@dataclasses.dataclass(frozen=True)
class Task:
    """Predict the pixels of masked patches.

    Attributes:
      encoder: section of `models.vit.ViT`, `variant` naming the size.
      decoder: section of `models.masked_vit.Decoder`, without `out_dim`.
      mask: {'kind', 'ratio'}, the same section that the data recipe gets.
      target: 'mae' (pixels as the encoder sees them, normalised per patch), 'videomae' (pixels in [0, 1], normalised
        per cube and channel), or either with '_raw' for no normalisation per patch.
    """

    encoder: Mapping[str, Any]
    decoder: Mapping[str, Any]
    mask: Mapping[str, Any]
    target: str

    def __post_init__(self) -> None:
        """Refuses an unknown target."""
        if self.target not in TARGETS:
            raise UserError(f'task.target must be one of {", ".join(TARGETS)}, not {self.target!r}')

    @property
    def rng_names(self) -> tuple[str, ...]:
        """Drop path only: the masks are data."""
        return ('drop_path',)

    def model(self) -> MaskedViT:
        """The Linen module."""
        backbone = build_vit(self.encoder)
        values = math.prod(backbone.patch) * len(backbone.mean)
        decoder: Decoder = build_decoder(self.decoder, out_dim=values, dtype=backbone.dtype)
        return MaskedViT(backbone, {'pixels': decoder})

    def num_masked(self, video_shape: tuple[int, ...]) -> int:
        """Masked tokens per sample for videos of this (..., t, h, w, c) shape."""
        return num_masked(grid=token_grid(video_shape, build_vit(self.encoder).patch), **self.mask)

    def check(self, batch: Batch) -> None:
        """The masks of the data must be the configured ones."""
        check_mask(batch, build_vit(self.encoder).patch, self.num_masked(batch['video'].shape))

    def init(self, rng: jax.Array, batch: Batch) -> Any:
        """Fresh parameters."""
        video = model_input(batch['video'], self.backbone())
        return self.model().init(rng, video, batch['mask'], self.num_masked(video.shape))['params']

    def check_files(self, files: FileList) -> None:
        """Any list will do: labels are not used."""

    def backbone(self) -> ViT:
        """The encoder."""
        return build_vit(self.encoder)

    def feature_encoder(self) -> VitEncoder:
        """The encoder."""
        return VitEncoder(self.backbone())

    def sources(self) -> list[str]:
        """None."""
        return []

    def frozen(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def abstract_frozen(self, batch: Batch) -> dict[str, Any]:
        """Nothing."""
        return {}

    def targets(self, video: jax.Array) -> jax.Array:
        """uint8 (b, t, h, w, c) -> (b, tokens, values) float32 targets of every token."""
        vit = self.backbone()
        if self.target.startswith('mae'):
            patches = patchify(model_input(video, vit), vit.patch)
            return losses.normalize_patches_mae(patches) if self.target == 'mae' else patches
        patches = patchify(video.astype(jnp.float32) / 255.0, vit.patch)
        if self.target == 'videomae':
            return losses.normalize_patches_videomae(patches, video.shape[-1])
        return patches

    def reconstruct(
        self, params: Any, batch: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(prediction (b, masked, values), target of the same shape, masked token indices (b, masked))."""
        video = batch['video']
        model = self.model()
        inputs, masked = model_input(video, model.backbone), self.num_masked(video.shape)
        predictions, info = model.apply({'params': params}, inputs, batch['mask'], masked, train, rngs=rngs)
        target = jnp.take_along_axis(self.targets(video), info['masked'][..., None], axis=1)
        return predictions['pixels'], target, info['masked']

    def _sample_losses(self, params: Any, batch: Batch, rngs: Mapping[str, jax.Array], train: bool) -> jax.Array:
        prediction, target, _ = self.reconstruct(params, batch, rngs, train)
        return losses.per_sample(losses.l2(prediction, target))

    def loss(
        self, params: Any, frozen: Any, batch: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Mean squared error over masked tokens and their values."""
        del frozen
        values = self._sample_losses(params, batch, rngs, train)
        return jnp.mean(values), {'loss': weighted(values, None)}

    def predict(self, params: Any, frozen: Any, batch: Batch) -> dict[str, jax.Array]:
        """{'loss': (b,)} of each sample."""
        del frozen
        return {'loss': self._sample_losses(params, batch, {}, train=False)}

    def flops(self, batch: Batch) -> dict[str, float]:
        """{'encoder', 'decoders'}: model FLOPs of a training step."""
        shape = tuple(batch['video'].shape)
        return flops.masked_vit(self.model(), shape, self.num_masked(shape))

    def evaluators(self) -> dict[str, Means]:
        """The mean loss."""
        return {'reconstruction': Means()}

    def layer_index(self, path: str, depth: int) -> Any:
        """See `base.vit_layer_index`."""
        return vit_layer_index(path, depth)
