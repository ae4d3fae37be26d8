"""Encoders by themselves, for the features of whole clips: what tasks hand out, see `base.Encoder`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mvdjax.errors import UserError
from mvdjax.models.bevt import SwinClassifier
from mvdjax.models.embed import token_grid
from mvdjax.models.video_swin import VideoSwin
from mvdjax.models.vit import Classifier, ViT
from mvdjax.models.vq import VQ
from mvdjax.tasks.base import Encoder, model_input

REST = ('^(?!backbone/)',)  # of a task's parameters: decoders, heads


@dataclasses.dataclass(frozen=True)
class VitEncoder:
    """A ViT. Without a layer: its tokens after the final norm, if it has one, as decoders take them."""

    vit: ViT
    unit = 'block'
    unused = REST

    @property
    def layers(self) -> int:
        """See `Encoder`."""
        return self.vit.depth

    def init(self, rng: jax.Array, video: jax.Array) -> Any:
        """See `Encoder`."""
        return {'backbone': self.vit.init(rng, model_input(video, self.vit))['params']}

    def tokens(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """See `Encoder`. A class token is left out."""
        vit, weights = self.vit, params['backbone']
        if layer is not None:  # the blocks above it are not computed
            vit = vit.clone(depth=layer, final_norm=False)
            blocks = jax.tree.map(lambda stack: stack[:layer], weights['encoder'])
            weights = {**{name: leaf for name, leaf in weights.items() if name != 'norm'}, 'encoder': blocks}
        x, _ = vit.apply({'params': weights}, model_input(video, vit))
        grid = token_grid(video.shape, vit.patch)
        return x[:, int(vit.cls_token) :].reshape(len(video), *grid, -1).astype(jnp.float32)

    def pooled(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """See `Encoder`."""
        return _mean(self.tokens(params, video, layer))


@dataclasses.dataclass(frozen=True)
class SwinEncoder:
    """A Swin.

    Attributes:
      swin: the module.
      image: take the image path.
      normed: what there is without a layer: the last map after the final norm, or before it. In BEVT's pretraining the
        norm is that of the fusion of two stages, and means nothing to the last one.
    """

    swin: VideoSwin
    image: bool = False
    normed: bool = True
    unit = 'stage'
    # Of a model of both streams, the other one's patches; without a mask, its token.
    unused = (*REST, '^backbone/mask_token$', '^backbone/patch_embed')

    @property
    def layers(self) -> int:
        """See `Encoder`."""
        return len(self.swin.depths)

    def init(self, rng: jax.Array, video: jax.Array) -> Any:
        """See `Encoder`."""
        return {'backbone': self.swin.init(rng, model_input(video, self.swin), image=self.image)['params']}

    def tokens(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """See `Encoder`."""
        x = model_input(video, self.swin)
        output, info = self.swin.apply({'params': params['backbone']}, x, image=self.image)
        if layer is None and not self.normed:
            layer = self.layers
        return (output if layer is None else info[f'stage{layer}']).astype(jnp.float32)

    def pooled(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """See `Encoder`."""
        return _mean(self.tokens(params, video, layer))


@dataclasses.dataclass(frozen=True)
class ClassifierEncoder:
    """The encoder of a classifier, which pools, without a layer, as its head sees it.

    Attributes:
      model: the classifier.
    """

    model: Classifier | SwinClassifier
    unused = ()

    @property
    def _inner(self) -> VitEncoder | SwinEncoder:
        backbone = self.model.backbone
        return SwinEncoder(backbone) if isinstance(backbone, VideoSwin) else VitEncoder(backbone)

    @property
    def layers(self) -> int:
        """See `Encoder`."""
        return self._inner.layers

    @property
    def unit(self) -> str:
        """See `Encoder`."""
        return self._inner.unit

    def init(self, rng: jax.Array, video: jax.Array) -> Any:
        """See `Encoder`."""
        return self.model.init(rng, model_input(video, self.model.backbone))['params']

    def tokens(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """See `Encoder`."""
        return self._inner.tokens(params, video, layer)

    def pooled(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """See `Encoder`."""
        if layer is not None:
            return self._inner.pooled(params, video, layer)
        _, info = self.model.apply({'params': params}, model_input(video, self.model.backbone))
        return info['pooled'].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class CodeEncoder:
    """The encoder of a codebook: of every frame by itself, its vectors before they become codes."""

    vq: VQ
    unit = 'layer'
    layers = 0
    unused = ()

    def init(self, rng: jax.Array, video: jax.Array) -> Any:
        """See `Encoder`."""
        return self.vq.init(rng, model_input(video, self.vq)[:, 0])['params']

    def tokens(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """See `Encoder`."""
        check_layer(self, layer)
        x = model_input(video, self.vq)
        vectors = self.vq.apply({'params': params}, x.reshape(-1, *x.shape[2:]), method='encode')
        return vectors.reshape(*x.shape[:2], *vectors.shape[1:])

    def pooled(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """See `Encoder`."""
        return _mean(self.tokens(params, video, layer))


def _mean(tokens: jax.Array) -> jax.Array:
    """(b, t, h, w, c) -> (b, c)."""
    return jnp.mean(tokens, axis=(1, 2, 3))


def check_layer(encoder: Encoder, layer: int | None) -> None:
    """Raises UserError for a layer that the encoder does not have."""
    if layer is None or 1 <= layer <= encoder.layers:
        return
    if not encoder.layers:
        raise UserError(f'there is no layer {layer}: this encoder has none to choose from, leave the layer out')
    raise UserError(
        f'there is no layer {layer}: the encoder has {encoder.layers} {encoder.unit}s, counted from 1; leave the layer '
        'out for what follows the last one'
    )


def encode_views(
    encoder: Encoder,
    params: Any,
    video: jax.Array,
    *,
    dense: bool,
    layer: int | None,
    each_view: bool,
    single_frames: bool,
) -> jax.Array:
    """Features of videos of which there are several views. Pure.

    Args:
      encoder: of a task.
      params: its.
      video: uint8 (b, views, t, h, w, c).
      dense: maps of tokens instead of vectors.
      layer: see `Encoder`.
      each_view: of vectors, those of every view instead of their mean; maps are always of every view.
      single_frames: the encoder takes images: every frame is one, and the rows of a map's time are frames.

    Returns:
      float32 (b, c), (b, views, c) or (b, views, t', h', w', c).
    """
    read = encoder.tokens if dense else encoder.pooled

    def one(clips: jax.Array) -> jax.Array:
        if not single_frames:
            return read(params, clips, layer)
        b, t, *rest = clips.shape
        found = read(params, clips.reshape(b * t, 1, *rest), layer)
        if dense:
            return found.reshape(b, t * found.shape[1], *found.shape[2:])
        return jnp.mean(found.reshape(b, t, -1), axis=1)

    # Views one after the other, as in a test: memory does not grow with their number.
    found = jnp.swapaxes(jax.lax.map(one, jnp.swapaxes(video, 0, 1)), 0, 1)
    return found if dense or each_view else jnp.mean(found, axis=1)
