"""Fine-tuning a video classifier, with the published recipe's mixing, smoothing and erasing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvdjax import flops, flops_swin, keywords, losses
from mvdjax.data.schema import FileList
from mvdjax.errors import UserError
from mvdjax.evaluation.multiview import TopK
from mvdjax.metrics import Metrics, weighted
from mvdjax.models.bevt import SwinClassifier
from mvdjax.models.vit import Classifier
from mvdjax.tasks.backbones import Backbone, build_classifier, layer_index
from mvdjax.tasks.base import Batch, model_input
from mvdjax.tasks.encoders import ClassifierEncoder
from mvdjax.tasks.mixup import Mix, mix


def erase(key: jax.Array, video: jax.Array, boxes: jax.Array) -> jax.Array:
    """Random erasing: fills a box of every frame with fresh normal noise, in normalised units.

    Args:
      key: PRNG key of the noise.
      video: (b, t, h, w, c) normalised float.
      boxes: (b, 4) int top, left, height, width; zeros erase nothing.

    Returns:
      The clips, erased.
    """
    h, w = video.shape[2:4]
    top, left, height, width = (boxes[:, i].reshape(-1, 1, 1, 1, 1) for i in range(4))
    row, column = jnp.arange(h).reshape(1, 1, h, 1, 1), jnp.arange(w).reshape(1, 1, 1, w, 1)
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return jnp.where(inside, jax.random.normal(key, video.shape, video.dtype), video)


@dataclasses.dataclass(frozen=True)
class Task:
    """Classify clips.

    Attributes:
      model: section of the encoder, see `backbones.build_backbone` (a ViT's final norm is always off: its head has
        its own).
      num_classes: outputs.
      dropout: before the head.
      head_scale: factor on the initial weights of a ViT's head, MVD's if None. A Swin's has none.
      label_smoothing: mass spread evenly over all classes, in [0, 1).
      mix: section of `mixup.Mix`, or None for no mixing.
    """

    model: Mapping[str, Any]
    num_classes: int
    dropout: float = 0.0
    head_scale: float | None = None
    label_smoothing: float = 0.1
    mix: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuses values out of range, and a mixing section with unknown keys."""
        if self.num_classes < 1 or not 0 <= self.label_smoothing < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f'task.num_classes {self.num_classes} must be at least 1, label_smoothing {self.label_smoothing} and '
                f'dropout {self.dropout} in [0, 1)'
            )
        self._mix()

    @property
    def rng_names(self) -> tuple[str, ...]:
        """Drop path, dropout, mixing and erasing noise."""
        return ('drop_path', 'dropout', 'mix', 'erase')

    def _mix(self) -> Mix | None:
        return None if self.mix is None else keywords.build(Mix, self.mix, 'config.task.mix')

    def classifier(self) -> Classifier | SwinClassifier:
        """The Linen module."""
        return build_classifier(self.model, self.num_classes, self.dropout, self.head_scale)

    def check(self, batch: Batch) -> None:
        """Nothing: `check_files` has seen every label."""

    def init(self, rng: jax.Array, batch: Batch) -> Any:
        """Fresh parameters, for training batches or for evaluation batches with an axis of views."""
        video = batch['video'][:, 0] if batch['video'].ndim == 6 else batch['video']
        return self.classifier().init(rng, model_input(video, self.backbone()))['params']

    def check_files(self, files: FileList) -> None:
        """Every label below `num_classes`, and a name for each class if there are names."""
        for record in files.records:
            if record.label < 0:
                raise UserError(
                    f'{files.path}:{record.line}: {record.path} has no label, which only pretraining can do without'
                )
            if record.label >= self.num_classes:
                raise UserError(
                    f'{files.path}:{record.line}: label {record.label}, but task.num_classes is {self.num_classes}'
                )
        if files.class_names and len(files.class_names) != self.num_classes:
            raise UserError(
                f'{files.path} has {len(files.class_names)} class names, task.num_classes is {self.num_classes}'
            )

    def backbone(self) -> Backbone:
        """The encoder."""
        return self.classifier().backbone

    def feature_encoder(self) -> ClassifierEncoder:
        """The encoder, pooled as the head sees it."""
        return ClassifierEncoder(self.classifier())

    def sources(self) -> list[str]:
        """None."""
        return []

    def frozen(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def abstract_frozen(self, batch: Batch) -> dict[str, Any]:
        """Nothing."""
        return {}

    def loss(
        self, params: Any, frozen: Any, batch: Batch, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[jax.Array, Metrics]:
        """Cross-entropy with (mixed, smoothed) targets; `accuracy` counts the unmixed label."""
        del frozen
        video = model_input(batch['video'], self.backbone())
        targets = jax.nn.one_hot(batch['label'], self.num_classes)
        targets = targets * (1.0 - self.label_smoothing) + self.label_smoothing / self.num_classes
        if train and 'erase' in batch:
            video = erase(rngs['erase'], video, batch['erase'])
        mixing = self._mix()
        if train and mixing:
            video, targets = mix(rngs['mix'], video, targets, mixing)
        logits, _ = self.classifier().apply({'params': params}, video, train, rngs=rngs)
        values = losses.soft_cross_entropy(logits, targets)
        correct = (jnp.argmax(logits, axis=-1) == batch['label']).astype(jnp.float32)
        return jnp.mean(values), {'loss': weighted(values, None), 'accuracy': weighted(correct, None)}

    def predict(self, params: Any, frozen: Any, batch: Batch) -> dict[str, jax.Array]:
        """{'probability': (b, classes)}: softmax of each view of (b, views, t, h, w, c) `video`, then their mean."""
        del frozen

        def view(video: jax.Array) -> jax.Array:
            logits, _ = self.classifier().apply({'params': params}, model_input(video, self.backbone()))
            return jax.nn.softmax(logits)

        # Views one after the other: the memory of an evaluation step does not grow with their number.
        return {'probability': jnp.mean(jax.lax.map(view, jnp.swapaxes(batch['video'], 0, 1)), axis=0)}

    def flops(self, batch: Batch) -> dict[str, float]:
        """{'encoder', 'head'}: model FLOPs of a training step."""
        model, shape = self.classifier(), tuple(batch['video'].shape)
        if isinstance(model, SwinClassifier):
            return flops_swin.classifier(model, shape)
        return flops.classifier(model.backbone, self.num_classes, shape)

    def evaluators(self) -> dict[str, TopK]:
        """Top-1 and top-5 accuracy."""
        return {'accuracy': TopK((1, min(5, self.num_classes)) if self.num_classes > 1 else (1,))}

    def layer_index(self, path: str, depth: int) -> Any:
        """See `backbones.layer_index`."""
        return layer_index(self.backbone(), path, depth)
