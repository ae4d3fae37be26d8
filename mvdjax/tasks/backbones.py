"""The encoders that tasks are made of, by the `kind` of their config section."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mvdjax import keywords
from mvdjax.errors import UserError
from mvdjax.models.bevt import SwinClassifier
from mvdjax.models.video_swin import VideoSwin
from mvdjax.models.vit import Classifier, ViT
from mvdjax.tasks.base import build_swin, build_vit, vit_layer_index

Backbone = ViT | VideoSwin


BUILDERS: dict[str, Callable[..., Backbone]] = {'vit': build_vit, 'swin': build_swin}


def build_backbone(config: Mapping[str, Any]) -> Backbone:
    """The encoder of a config section: `kind`, 'vit' where it is not stated, and the attributes of its module.

    Raises:
      UserError: an unknown kind, or what its builder raises.
    """
    kind = config.get('kind', 'vit')
    if kind not in BUILDERS:
        raise UserError(
            f'the model section has kind {kind!r}; {keywords.nearest(kind, BUILDERS)}there are {", ".join(BUILDERS)}'
        )
    return BUILDERS[kind](_without_kind(config))


def build_classifier(
    config: Mapping[str, Any], num_classes: int, dropout: float, head_scale: float | None = None
) -> Classifier | SwinClassifier:
    """A classifier on the encoder of a config section.

    Args:
      config: of the encoder, see `build_backbone`. A ViT is built without its final norm.
      num_classes: outputs.
      dropout: before the head.
      head_scale: of a ViT's head, see `models.vit.Classifier`; None takes its default.

    Raises:
      UserError: as `build_backbone`, or a `head_scale` for a Swin.
    """
    if config.get('kind', 'vit') == 'vit':
        scale = {} if head_scale is None else {'head_scale': head_scale}
        return Classifier(build_vit({**_without_kind(config), 'final_norm': False}), num_classes, dropout, **scale)
    backbone = build_backbone(config)
    if head_scale is not None:
        raise UserError("task.head_scale is of a ViT's head; the head of a Swin starts as published: leave it out")
    return SwinClassifier(backbone, num_classes, dropout)


def _without_kind(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != 'kind'}


def swin_layer_index(path: str, depths: tuple[int, ...]) -> int | np.ndarray:
    """Layers of a Swin as the published Kinetics recipe of BEVT counts them (golden: bevt/param_groups_k400).

    Layer 0: patch embeddings and mask token; then each block and each patch merging is one; the final norm belongs to
    the last block. All after it, also what joins two stages in pretraining, is one layer more.
    """
    total = sum(depths) + len(depths) - 1
    parts = path.split('/')
    if parts[0] != 'backbone':
        return total + 1
    if parts[1] == 'norm':
        return total
    if parts[1].startswith('merge'):  # merge1 follows the blocks of stage1
        stage = int(parts[1].removeprefix('merge'))
        return sum(depths[:stage]) + stage
    if parts[1].startswith('stage'):
        stage = int(parts[1].removeprefix('stage'))
        return sum(depths[: stage - 1]) + stage - 1 + np.arange(1, depths[stage - 1] + 1)
    return 0


def layer_index(backbone: Backbone, path: str, depth: int) -> int | np.ndarray:
    """Layer of a parameter of a model on this encoder, for layer-wise rate decay; see `Task.layer_index`."""
    if isinstance(backbone, VideoSwin):
        return swin_layer_index(path, backbone.depths)
    return vit_layer_index(path, depth)
