"""What a training stage is: the Task protocol, and the few things every ViT task needs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mvdjax import keywords
from mvdjax.data.schema import FileList
from mvdjax.errors import UserError
from mvdjax.metrics import Metrics
from mvdjax.models.dvae import DalleEncoder
from mvdjax.models.embed import Grid, token_grid
from mvdjax.models.layers import NORM_EPSILON
from mvdjax.models.masked_vit import Decoder
from mvdjax.models.video_swin import VideoSwin, swin_variant
from mvdjax.models.vit import IMAGENET_MEAN, IMAGENET_STD, ViT, variant
from mvdjax.models.vq import VQ

DTYPES = ('float32', 'bfloat16')
KINDS = {  # of models, see `describe`
    'vit': 'ViT',
    'swin': 'Video Swin',
    'vq': 'VQ tokenizer',
    'dalle': 'DALL-E encoder',
}

Batch = Mapping[str, Any]  # see data/schema.py


class Evaluator(Protocol):
    """Accumulates the outputs of `Task.predict` over an evaluation set."""

    def update(self, outputs: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]) -> None:
        """Adds a batch: outputs and the batch's `label`, `valid` and `index`, all with the same leading axis."""

    def result(self) -> dict[str, float]:
        """The numbers so far."""


class Encoder(Protocol):
    """An encoder without what its task trains beside it: the features of whole clips, nothing masked or dropped.

    Layer k is the output of its k-th block (ViT) or stage (Swin), counted from 1, before any norm. Without a layer it
    is what the rest of the task's model sees of the encoder. Implementations are in tasks/encoders.py.
    """

    @property
    def unit(self) -> str:
        """What a layer is called: 'block'."""

    @property
    def layers(self) -> int:
        """How many there are to choose from."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Regexes of the task's parameters that it does without, see `handover.load_params`."""

    def init(self, rng: jax.Array, video: jax.Array) -> Any:
        """Fresh parameters, named as in the task's, for uint8 (b, t, h, w, c). Traceable."""

    def tokens(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """uint8 (b, t, h, w, c) -> float32 (b, t', h', w', width) map of tokens. Pure."""

    def pooled(self, params: Any, video: jax.Array, layer: int | None = None) -> jax.Array:
        """uint8 (b, t, h, w, c) -> float32 (b, width): the mean of the tokens, or what a head sees. Pure."""


class Task(Protocol):
    """One stage of training. The loop knows nothing else of it. Implementations are frozen dataclasses."""

    @property
    def rng_names(self) -> tuple[str, ...]:
        """Names of the random keys that `loss` uses when training."""

    def init(self, rng: jax.Array, batch: Batch) -> Any:
        """Fresh float32 parameters for batches shaped like `batch`. Traceable."""

    def check(self, batch: Batch) -> None:
        """Host-side check of a NumPy batch against the task. Raises UserError."""

    def check_files(self, files: FileList) -> None:
        """Check of a whole list against the task, before anything is read. Raises UserError."""

    def backbone(self) -> ViT:
        """The encoder that a later stage takes over."""

    def feature_encoder(self) -> Encoder:
        """The same with what is needed for features of whole clips: see `mvdjax features`."""

    def sources(self) -> list[str]:
        """Checkpoints that `frozen` reads."""

    def frozen(self) -> Any:
        """What the loss needs but never trains or saves (teachers): read once, placed once."""

    def abstract_frozen(self, batch: Batch) -> Any:
        """The shapes of what `frozen` gives for batches like `batch`, without reading it: no checkpoint need exist."""

    def loss(
        self, params: Any, frozen: Any, batch: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, Metrics]:
        """(mean loss, {name: (sum, count)}) of a device batch. Pure. `train` acts on drop path and dropout only."""

    def predict(self, params: Any, frozen: Any, batch: Batch) -> dict[str, jax.Array]:
        """Outputs for evaluation and pictures."""

    def flops(self, batch: Batch) -> dict[str, float]:
        """Model FLOPs of a training step on a batch of these shapes (arrays or abstract), by part; see mvdjax/flops."""

    def evaluators(self) -> Mapping[str, 'Evaluator']:
        """Name -> a fresh accumulator of what `predict` returns."""

    def layer_index(self, path: str, depth: int) -> Any:
        """Layer of a parameter for layer-wise rate decay: an int, or (depth,) ints for a stacked leaf."""


def normalize(
    video: jax.Array, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> jax.Array:
    """Normalises on the device.

    Args:
      video: uint8 (..., c) pixels.
      mean: of each channel of pixels in [0, 1].
      std: likewise.

    Returns:
      float32 of the same shape.

    Raises:
      UserError: not one mean and deviation per channel.
    """
    if not len(mean) == len(std) == video.shape[-1]:
        raise UserError(
            f'pixels of {video.shape[-1]} channels cannot be normalised with mean {tuple(mean)} and std {tuple(std)}: '
            'give the model section one mean and one std per channel'
        )
    return (video.astype(jnp.float32) / 255.0 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def model_input(video: jax.Array, vit: ViT | VideoSwin) -> jax.Array:
    """uint8 (b, t, h, w, c) -> float32, normalised as `vit` expects it. Raises as `normalize`."""
    return normalize(video, vit.mean, vit.std)


def build_module(module: Callable[..., Any], config: Mapping[str, Any], **fixed: Any) -> Any:
    """`module(**config, **fixed)`, config spellings of types resolved; a wrong key is a UserError."""
    options = dict(config)
    for key in ('patch', 'window'):
        if key in options:
            options[key] = tuple(options[key])
            if len(options[key]) != 3:
                raise UserError(f'{key} must be (frames, rows, columns), not {options[key]}')
    for key in ('mean', 'std', 'depths', 'heads'):  # lists in a checkpoint's JSON; a module's attributes are hashable
        if isinstance(options.get(key), list):
            options[key] = tuple(options[key])
    if 'dtype' in options:
        if options['dtype'] not in DTYPES:
            raise UserError(f'dtype must be one of {", ".join(DTYPES)}, not {options["dtype"]!r}')
        options['dtype'] = jnp.dtype(options['dtype'])
    return keywords.build(module, {**fixed, **options}, f'the {module.__name__} section')


def build_vit(config: Mapping[str, Any], **fixed: Any) -> ViT:
    """A ViT from its config section: `variant` names the size, every other key is an attribute of `ViT` and wins.

    Raises:
      UserError: a key that `ViT` does not have, an unknown variant, or a deviation of zero.
    """
    options = dict(config)
    if 'variant' in options:
        options = {**variant(options.pop('variant')), **options}
    vit: ViT = build_module(ViT, options, **fixed)
    _check_statistics(vit)
    return vit


def build_swin(config: Mapping[str, Any], **fixed: Any) -> VideoSwin:
    """A Video Swin from its config section: `variant` names the size, every other key is an attribute and wins.

    Raises:
      UserError: a key that `VideoSwin` does not have, an unknown variant, or a deviation of zero.
    """
    options = dict(config)
    if 'variant' in options:
        options = {**swin_variant(options.pop('variant')), **options}
    swin: VideoSwin = build_module(VideoSwin, options, **fixed)
    _check_statistics(swin)
    return swin


def _check_statistics(backbone: ViT | VideoSwin) -> None:
    if min(backbone.std, default=0) <= 0 or len(backbone.mean) != len(backbone.std):
        raise UserError(f'mean {backbone.mean} and std {backbone.std} need one value per channel each, std above 0')


def build_decoder(config: Mapping[str, Any], **fixed: Any) -> Decoder:
    """A decoder from its config section; `fixed` are defaults that the section may override.

    Raises:
      UserError: a key that `Decoder` does not have.
    """
    return build_module(Decoder, config, **fixed)


KIND_OF: dict[type, str] = {VideoSwin: 'swin', VQ: 'vq', DalleEncoder: 'dalle'}
DESCRIBED = ('patch', 'pos_embed', 'cls_token', 'qkv_bias', 'corrected', 'norm_epsilon', 'mean', 'std')


def describe(model: Any) -> dict[str, Any]:
    """What decides what a model's weights mean, beyond their shapes: it travels in a checkpoint's meta."""
    found = {name: getattr(model, name) for name in DESCRIBED if hasattr(model, name)}
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    return found if isinstance(model, ViT) else {'kind': KIND_OF[type(model)], **found}


def check_backbone(meta: Mapping[str, Any], model: Any, what: str, path: str, *, starts: bool = False) -> str:
    """Refuses weights that would be read with another meaning than they were trained with.

    Args:
      meta: of the checkpoint the weights come from.
      model: the module they go to.
      what: its name for the message.
      path: of the checkpoint.
      starts: a training starts from the weights, and may choose otherwise where it can learn the difference: whether a
        Swin is `corrected`. A corrected image model may become the published video model.

    Returns:
      What the training chose otherwise, a sentence, or ''.

    Raises:
      UserError: another kind of model, or another meaning of its weights.
    """
    # Checkpoints from before there was a choice of pixel statistics or of the epsilon do not state them.
    defaults = {'mean': list(IMAGENET_MEAN), 'std': list(IMAGENET_STD), 'norm_epsilon': NORM_EPSILON}
    theirs = {**defaults, **meta['backbone']}
    mine = describe(model)
    kinds = [KINDS[description.get('kind', 'vit')] for description in (theirs, mine)]
    if kinds[0] != kinds[1]:
        raise UserError(f'{path} is a {kinds[0]}, the {what} here is a {kinds[1]}')
    if isinstance(model, VideoSwin):
        # A kernel's shape says the frames of its patches, and an image's, which has one, is inflated for clips.
        mine, theirs = ({**d, 'patch': d['patch'][1:]} for d in (mine, theirs))
    note = ''
    if starts and theirs.get('corrected') != mine.get('corrected'):
        note = f'{path} was trained with corrected={theirs.get("corrected")}, the {what} here has {mine["corrected"]}'
        del mine['corrected']
    wrong = [f'{key} {theirs.get(key)!r} (here {mine[key]!r})' for key in mine if theirs.get(key) != mine[key]]
    if wrong:
        raise UserError(f'{path} was trained with {", ".join(wrong)}: give the {what} section the same')
    return note


def vit_layer_index(path: str, depth: int) -> int | np.ndarray:
    """Layer 0: patch embedding, positions and class token; i + 1: block i of the backbone; depth + 1: all after it."""
    parts = path.split('/')
    if parts[0] != 'backbone' or parts[1] == 'norm':
        return depth + 1
    if 'blocks' in parts:
        return np.arange(1, depth + 1)
    return 0


def check_mask(batch: Batch, patch: Grid, num_masked: int) -> None:
    """Raises UserError if the masks of a NumPy batch are not what the task was configured for."""
    grid = token_grid(batch['video'].shape, patch)
    expected = (batch['video'].shape[0], int(np.prod(grid)))
    if batch['mask'].shape != expected:
        raise UserError(
            f'the data makes masks of shape {batch["mask"].shape}, the task needs {expected}: '
            "give the data recipe the task's patch size"
        )
    counts = np.unique(batch['mask'].sum(axis=1))
    if counts.tolist() != [num_masked]:
        raise UserError(
            f'the data masks {counts.tolist()} tokens per sample, the task expects {num_masked}: '
            'give task.mask and the data recipe the same mask section'
        )
