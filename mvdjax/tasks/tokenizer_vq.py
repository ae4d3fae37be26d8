"""Training a codebook of image patches: the tokenizer of a BEVT chain that downloads nothing.

In the manner of PeCo (arXiv 2111.12710): reconstruct the pixels from quantised vectors, and, where a self-supervised
encoder is at hand (an `mae` stage of one's own), its features too. Codes that a batch does not use are drawn towards
the encoder's vectors nearest to them, so that none stays dead; the loss says all, and no state beside the parameters
is kept: accumulation, sharding and resuming are those of every other stage.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvdjax import flops, flops_tokenizer, keywords, losses
from mvdjax.data.schema import FileList
from mvdjax.errors import UserError
from mvdjax.evaluation.codebook import CodebookUse
from mvdjax.metrics import Metrics, scalar, weighted
from mvdjax.models.embed import token_grid
from mvdjax.models.vq import VQ
from mvdjax.tasks.base import Batch, model_input, normalize
from mvdjax.tasks.encoders import CodeEncoder
from mvdjax.tasks.mvd import Teacher
from mvdjax.tasks.tokenizer import build_vq


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """The loss on features.

    Attributes:
      model: section of `models.vit.ViT`: an image encoder, patch (1, p, p).
      checkpoint: of an `mae` stage, or 'random' (debugging).
      weight: of the mean squared difference of its normalised features, before its final norm.
    """

    model: Mapping[str, Any]
    checkpoint: str
    weight: float = 1.0

    def teacher(self) -> Teacher:
        """The frozen encoder."""
        return Teacher(self.model, self.checkpoint, {}, self.weight, 'l2')


@dataclasses.dataclass(frozen=True)
class Task:
    """Reconstruct images (or every frame of clips, each by itself) from a codebook.

    Attributes:
      model: section of `models.vq.VQ`.
      commitment: weight of drawing the encoder's vectors to their codes (VQ-VAE: 0.25); codes are drawn to the
        vectors with weight 1.
      spare: weight of drawing the codes that a batch does not use to the vectors nearest to them; 0 lets codes die.
      perceptual: arguments of `Perceptual`, or None for pixels alone.
    """

    model: Mapping[str, Any]
    commitment: float = 0.25
    spare: float = 0.3
    perceptual: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuses negative weights and a wrong section."""
        if min(self.commitment, self.spare) < 0:
            raise UserError(f'task.commitment and task.spare must not be negative: {self.commitment}, {self.spare}')
        self._perceptual()

    @property
    def rng_names(self) -> tuple[str, ...]:
        """None: nothing is drawn."""
        return ()

    def backbone(self) -> VQ:
        """The whole model: a later stage takes the encoder and the codebook (see tasks/tokenizer.py)."""
        return build_vq(self.model)

    def feature_encoder(self) -> CodeEncoder:
        """The encoder, before its vectors become codes."""
        return CodeEncoder(self.backbone())

    def _perceptual(self) -> Perceptual | None:
        if self.perceptual is None:
            return None
        found: Perceptual = keywords.build(Perceptual, self.perceptual, 'config.task.perceptual')
        vit = found.teacher().vit()
        if vit.patch[0] != 1:
            raise UserError(f'task.perceptual takes an image encoder, patch (1, p, p), not {vit.patch}')
        return found

    def check(self, batch: Batch) -> None:
        """Images must divide into codes, and into the perceptual encoder's patches."""
        shape = batch['video'].shape
        model = self.backbone()
        token_grid(shape, model.patch)
        if shape[-1] != len(model.mean):
            raise UserError(f'images have {shape[-1]} channels, task.model.mean has {len(model.mean)} values')
        perceptual = self._perceptual()
        if perceptual:
            image = (*shape[:-4], 1, *shape[-3:])
            perceptual.teacher().check_grid('perceptual', token_grid(image, perceptual.teacher().vit().patch))

    def check_files(self, files: FileList) -> None:
        """Any list will do: labels are not used."""

    def init(self, rng: jax.Array, batch: Batch) -> Any:
        """Fresh parameters."""
        return self.backbone().init(rng, self._frames(batch['video'])[:1])['params']

    def sources(self) -> list[str]:
        """The perceptual encoder's."""
        found = self._perceptual()
        return [found.checkpoint] if found and found.checkpoint != 'random' else []

    def frozen(self) -> dict[str, Any]:
        """The perceptual encoder's parameters."""
        found = self._perceptual()
        return {'perceptual': found.teacher().params('perceptual')} if found else {}

    def abstract_frozen(self, batch: Batch) -> dict[str, Any]:
        """The shapes of the perceptual encoder's parameters."""
        found = self._perceptual()
        return {'perceptual': found.teacher().shapes(_single_frames(batch))} if found else {}

    def _frames(self, video: jax.Array) -> jax.Array:
        """uint8 (b, t, h, w, c) -> normalised (b * t, h, w, c)."""
        images = model_input(video, self.backbone())
        return images.reshape(-1, *images.shape[2:])

    def reconstruct(self, params: Any, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        """uint8 (b, t, h, w, c) -> (float32 (b, t, h, w, c) in [0, 1], int32 (b, t, h', w') codes)."""
        model = self.backbone()
        output, info = model.apply({'params': params}, self._frames(video))
        pixels = jnp.clip(output * jnp.asarray(model.std) + jnp.asarray(model.mean), 0.0, 1.0)
        b, t = video.shape[:2]
        return pixels.reshape(video.shape), info['tokens'].reshape(b, t, *info['tokens'].shape[1:])

    def _perceptual_losses(self, frozen: Any, images: jax.Array, output: jax.Array) -> jax.Array:
        """(n,) mean squared differences of the features of normalised (n, h, w, c) images."""
        found = self._perceptual()
        assert found is not None
        model, vit = self.backbone(), found.teacher().vit()

        def features(x: jax.Array) -> jax.Array:
            pixels = 255.0 * (x * jnp.asarray(model.std) + jnp.asarray(model.mean))
            _, info = vit.apply({'params': frozen['perceptual']}, normalize(pixels, vit.mean, vit.std)[:, None])
            return losses.normalize_features(info['last_block'].astype(jnp.float32))

        return losses.per_sample(losses.l2(features(output), jax.lax.stop_gradient(features(images))))

    def loss(
        self, params: Any, frozen: Any, batch: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Reconstruction, commitment, codebook, spare codes, and features."""
        del rngs, train
        images = self._frames(batch['video'])
        output, info = self.backbone().apply({'params': params}, images)
        vectors, chosen, codes, tokens = (info[k] for k in ('vectors', 'chosen', 'codes', 'tokens'))
        frozen_vectors = jax.lax.stop_gradient(vectors)
        values = {
            'loss_pixels': losses.per_sample(losses.l2(output, images)),
            'loss_commitment': _apart(vectors, jax.lax.stop_gradient(chosen)),
            'loss_codebook': _apart(frozen_vectors, chosen),
        }
        used = jnp.bincount(tokens.reshape(-1), length=len(codes))
        total = values['loss_pixels'] + self.commitment * values['loss_commitment'] + values['loss_codebook']
        if self.spare:
            flat = frozen_vectors.reshape(-1, frozen_vectors.shape[-1])
            angles = jnp.max(codes @ flat.T, axis=1)  # the gradient moves each code to its own nearest vector
            values['loss_spare'] = jnp.broadcast_to(jnp.mean(jnp.where(used > 0, 0.0, 2 - 2 * angles)), total.shape)
            total += self.spare * values['loss_spare']
        found = self._perceptual()
        if found:
            values['loss_features'] = self._perceptual_losses(frozen, images, output)
            total += found.weight * values['loss_features']
        metrics = {'loss': weighted(total, None), **{name: weighted(v, None) for name, v in values.items()}}
        share = used / jnp.sum(used)
        perplexity = jnp.exp(-jnp.sum(jnp.where(used > 0, share * jnp.log(jnp.maximum(share, 1e-12)), 0.0)))
        metrics['perplexity'] = scalar(perplexity)  # of a batch; an evaluation has that of the whole list
        return jnp.mean(total), metrics

    def predict(self, params: Any, frozen: Any, batch: Batch) -> dict[str, jax.Array]:
        """{'psnr': (b,) in decibels, of pixels in [0, 1], 'tokens': (b, tokens) int32}."""
        del frozen
        video = batch['video']
        pixels, tokens = self.reconstruct(params, video)
        error = losses.per_sample(losses.l2(pixels, video.astype(jnp.float32) / 255.0))
        psnr = -10.0 * jnp.log10(jnp.maximum(error, 1e-10))
        return {'psnr': psnr, 'tokens': tokens.reshape(video.shape[0], -1)}

    def flops(self, batch: Batch) -> dict[str, float]:
        """{'encoder', 'decoder', 'spare', 'perceptual'}: model FLOPs of a training step."""
        model, (images, _, height, width, _) = self.backbone(), _single_frames(batch)
        parts = flops_tokenizer.trained_codebook(model, images, height, width)
        if self.spare:  # forward, and the gradient of the codes
            codes = images * height * width // model.patch[1] ** 2
            parts['spare'] = 2 * flops.linear(codes, model.code_dim, model.vocabulary)
        found = self._perceptual()
        if found:  # the image, the reconstruction, and the gradient of its pixels: of attention's products, both sides
            vit, shape = found.teacher().vit(), _single_frames(batch)
            tokens = math.prod(token_grid(shape, vit.patch)) + int(vit.cls_token)
            attention = images * vit.depth * 2 * flops.linear(tokens, vit.width, tokens)
            parts['perceptual'] = 3 * flops.teacher(vit, shape) + attention
        return parts

    def evaluators(self) -> dict[str, CodebookUse]:
        """The quality of the reconstructions, and how much of the codebook the whole list uses."""
        return {'codebook': CodebookUse(self.backbone().vocabulary)}

    def layer_index(self, path: str, depth: int) -> int | np.ndarray:
        """One layer: its rate is not decayed."""
        return depth + 1


def _single_frames(batch: Batch) -> tuple[int, ...]:
    """Shape of a batch's frames as clips of one frame: (b * t, 1, h, w, c)."""
    b, t, *rest = batch['video'].shape
    return (b * t, 1, *rest)


def _apart(a: jax.Array, b: jax.Array) -> jax.Array:
    """(n, h, w, d) vectors of length one, twice -> (n,) mean squared distances."""
    return jnp.mean(jnp.sum(losses.l2(a, b), axis=-1), axis=(1, 2))
