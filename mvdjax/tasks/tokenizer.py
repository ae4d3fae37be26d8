"""Frozen tokenizers: what turns the pixels of an image or a clip into the labels of masked token prediction (BEVT).

A task holds a section of its config, {'kind': ..., ...}, and makes the tokenizer of it with `make_tokenizer`. Another
kind is another class with these seven members, named in `KINDS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from mvdjax import checkpoints, flops_tokenizer, handover, keywords
from mvdjax.console import say
from mvdjax.errors import UserError
from mvdjax.models import dvae, vq
from mvdjax.models.embed import Grid, token_grid
from mvdjax.rng import named_key
from mvdjax.tasks.base import build_module, check_backbone, normalize

RANDOM = 'random'  # instead of a checkpoint: untrained weights, for debugging
VQ_SIZES = ('channels', 'blocks', 'vocabulary', 'code_dim')  # of `models.vq.VQ`


class Tokenizer(Protocol):
    """A frozen tokenizer. Implementations are frozen dataclasses."""

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """(frames, rows, columns) of the tokens of a (..., t, h, w, c) video. Raises UserError if it has none."""

    def sources(self) -> list[str]:
        """Checkpoints that `params` reads."""

    def params(self) -> Any:
        """The weights, loaded strictly. Raises UserError."""

    def tokens(self, params: Any, video: jax.Array) -> jax.Array:
        """uint8 (b, t, h, w, c) -> int32 (b, tokens), in frame, row, column order. Pure."""

    def features(self, params: Any, video: jax.Array) -> jax.Array:
        """uint8 (b, t, h, w, c) -> float32 (b, d): a mean of what decides on the tokens, for `mvdjax selfcheck`."""

    def flops(self, shape: tuple[int, ...]) -> float:
        """Model FLOPs of `tokens` on a (b, t, h, w, c) video."""


def by_frames(function: Callable[[jax.Array], jax.Array], video: jax.Array, at_once: int) -> jax.Array:
    """Applies a function of images to the frames of clips, some frames at a time.

    Every step takes the same frames of all clips, so a batch that is split over devices stays so, and the feature maps
    of one step are all that lies in memory: the first ones are as large as the video, times the width of the model.

    Args:
      function: (n, h, w, c) -> (n, ...).
      video: (b, t, h, w, c).
      at_once: frames of each clip in a step, lowered to a divisor of t; 0 takes all.

    Returns:
      (b, t, ...).
    """
    b, t = video.shape[:2]
    step = next(n for n in range(min(at_once or t, t), 0, -1) if t % n == 0)
    parts = jnp.moveaxis(video.reshape(b, t // step, step, *video.shape[2:]), 1, 0)

    def part(frames: jax.Array) -> jax.Array:
        found = function(frames.reshape(b * step, *frames.shape[2:]))
        return found.reshape(b, step, *found.shape[1:])

    found = part(parts[0])[None] if step == t else jax.lax.map(part, parts)  # (t / step, b, step, ...)
    return jnp.moveaxis(found, 0, 1).reshape(b, t, *found.shape[3:])


def _load(checkpoint: str, expected: Any, init: Callable[[jax.Array], Any], **allowed: Any) -> Any:
    """The weights of a checkpoint, or fresh ones for 'random'."""
    if checkpoint == RANDOM:
        return jax.jit(init)(named_key(0, 'tokenizer'))
    loaded = handover.load_params(checkpoint, expected, 'tokenizer', **allowed)
    say(loaded.table)
    return loaded.params


def _check_frames(frames_at_once: int) -> None:
    if frames_at_once < 0:
        raise UserError(f'tokenizer.frames_at_once must be at least 0, not {frames_at_once}')


@dataclasses.dataclass(frozen=True)
class Dalle:
    """DALL-E's encoder: the most probable of its codes. BEVT's published tokenizer.

    Attributes:
      checkpoint: what `mvdjax convert encoder.pkl` wrote, or 'random'.
      model: section of `models.dvae.DalleEncoder`.
      frames_at_once: see `by_frames`.
    """

    checkpoint: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames_at_once: int = 4

    def __post_init__(self) -> None:
        """Refuses a negative count."""
        _check_frames(self.frames_at_once)

    def encoder(self) -> dvae.DalleEncoder:
        """The Linen module."""
        return build_module(dvae.DalleEncoder, self.model)

    @property
    def vocabulary(self) -> int:
        """Its codes."""
        return self.encoder().vocabulary

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """See `Tokenizer`."""
        return token_grid(shape, (1, dvae.STRIDE, dvae.STRIDE))

    def sources(self) -> list[str]:
        """See `Tokenizer`."""
        return [] if self.checkpoint == RANDOM else [self.checkpoint]

    def params(self) -> Any:
        """See `Tokenizer`."""
        image = jnp.zeros((1, dvae.STRIDE, dvae.STRIDE, 3))

        def init(key: jax.Array) -> Any:
            return self.encoder().init(key, image)['params']

        if self.checkpoint != RANDOM:
            check_backbone(checkpoints.read_meta(self.checkpoint), self.encoder(), 'tokenizer', self.checkpoint)
        return _load(self.checkpoint, jax.eval_shape(init, jax.random.key(0)), init)

    def tokens(self, params: Any, video: jax.Array) -> jax.Array:
        """See `Tokenizer`."""
        encoder = self.encoder()

        def best(images: jax.Array) -> jax.Array:
            logits, _ = encoder.apply({'params': params}, dvae.map_pixels(images))
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)

        return by_frames(best, video, self.frames_at_once).reshape(video.shape[0], -1)

    def features(self, params: Any, video: jax.Array) -> jax.Array:
        """See `Tokenizer`: the mean of the logits."""

        def logits(images: jax.Array) -> jax.Array:
            return jnp.mean(self.encoder().apply({'params': params}, dvae.map_pixels(images))[0], axis=(1, 2))

        return jnp.mean(by_frames(logits, video, self.frames_at_once), axis=1)

    def flops(self, shape: tuple[int, ...]) -> float:
        """See `Tokenizer`."""
        return shape[0] * shape[1] * flops_tokenizer.dalle(self.encoder(), shape[2], shape[3])


@dataclasses.dataclass(frozen=True)
class Codebook:
    """The encoder and codebook of a tokenizer trained with tasks/tokenizer_vq.py.

    Attributes:
      checkpoint: its workdir or checkpoint, or 'random'.
      model: section of `models.vq.VQ`, the one that it was trained with (see `complete`).
      frames_at_once: see `by_frames`.
    """

    checkpoint: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames_at_once: int = 0

    def __post_init__(self) -> None:
        """Refuses a negative count."""
        _check_frames(self.frames_at_once)

    def codebook(self) -> vq.VQ:
        """The Linen module."""
        return build_vq(self.model)

    @property
    def vocabulary(self) -> int:
        """Its codes."""
        return self.codebook().vocabulary

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """See `Tokenizer`."""
        return token_grid(shape, self.codebook().patch)

    def sources(self) -> list[str]:
        """See `Tokenizer`."""
        return [] if self.checkpoint == RANDOM else [self.checkpoint]

    def params(self) -> Any:
        """See `Tokenizer`. The decoder is left behind."""
        model = self.codebook()
        image = jnp.zeros((1, *model.patch[1:], len(model.mean)))

        def init(key: jax.Array) -> Any:
            return model.init(key, image, method='tokens')['params']

        if self.checkpoint != RANDOM:
            check_backbone(checkpoints.read_meta(self.checkpoint), model, 'tokenizer', self.checkpoint)
        expected = jax.eval_shape(init, jax.random.key(0))
        return _load(self.checkpoint, expected, init, allow_unused=('^decoder_', '^from_code/'))

    def tokens(self, params: Any, video: jax.Array) -> jax.Array:
        """See `Tokenizer`."""
        model = self.codebook()

        def nearest(images: jax.Array) -> jax.Array:
            return model.apply({'params': params}, normalize(images, model.mean, model.std), method='tokens')

        return by_frames(nearest, video, self.frames_at_once).reshape(video.shape[0], -1)

    def features(self, params: Any, video: jax.Array) -> jax.Array:
        """See `Tokenizer`: the mean of the encoder's vectors."""
        model = self.codebook()

        def vectors(images: jax.Array) -> jax.Array:
            found = model.apply({'params': params}, normalize(images, model.mean, model.std), method='encode')
            return jnp.mean(found, axis=(1, 2))

        return jnp.mean(by_frames(vectors, video, self.frames_at_once), axis=1)

    def flops(self, shape: tuple[int, ...]) -> float:
        """See `Tokenizer`."""
        return shape[0] * shape[1] * flops_tokenizer.codebook(self.codebook(), shape[2], shape[3])


KINDS: dict[str, Callable[..., Tokenizer]] = {'dalle': Dalle, 'vq': Codebook}


def build_vq(config: Mapping[str, Any]) -> vq.VQ:
    """A VQ tokenizer with its decoder from its config section.

    Raises:
      UserError: a key that `VQ` does not have, or sizes that make no model.
    """
    model: vq.VQ = build_module(
        vq.VQ, {**config, **({'channels': tuple(config['channels'])} if 'channels' in config else {})}
    )
    if not model.channels or min(*model.channels, model.vocabulary, model.code_dim) < 1 or model.blocks < 0:
        raise UserError(
            f'a VQ tokenizer needs channels for each level, a vocabulary and a code_dim, not {model.channels}, '
            f'{model.vocabulary} and {model.code_dim}'
        )
    return model


def complete(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tokenizer section that states the model: a `vq` one without sizes takes the model from its checkpoint.

    So `kind` and `checkpoint` are all that a recipe has to be given. What the section does state, as a dtype, stays.

    Raises:
      UserError: the model is not stated, and there is no checkpoint, or one of another task.
    """
    checkpoint, model = section.get('checkpoint', RANDOM), section.get('model', {})
    if section.get('kind') != 'vq' or checkpoint == RANDOM or any(size in model for size in VQ_SIZES):
        return section
    config = checkpoints.read_meta(checkpoint)['config']
    if config.get('task_name') != 'tokenizer_vq':
        task = config.get('task_name', 'converted')
        raise UserError(f'{checkpoint} is a {task} checkpoint; a vq tokenizer needs one of tokenizer_vq')
    return {**section, 'model': {**config['task']['model'], **model}}


def make_tokenizer(section: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a config section: `kind` names the class, every other key is an argument of it.

    Raises:
      UserError: an unknown kind, a key that it does not take, or as `complete`.
    """
    options = dict(complete(section))
    kind = options.pop('kind', None)
    if kind not in KINDS:
        raise UserError(f'tokenizer.kind must be one of {", ".join(KINDS)}, not {kind!r}')
    tokenizer: Tokenizer = keywords.build(KINDS[kind], options, 'the tokenizer section')
    tokenizer.vocabulary  # noqa: B018 - builds the module, and with it refuses a wrong key of its section
    return tokenizer
