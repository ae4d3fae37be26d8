"""Hugging Face's config.json: what it tells about a model, and one for a model of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from mvdjax.convert.architecture import Architecture, Given
from mvdjax.convert.families import Family
from mvdjax.errors import UserError

# Hugging Face's default, which is not the originals' 1e-6. In its pretraining decoder's and its classifier's own norm it
# has 1e-5 whatever the config says: what follows these agrees to about 1e-5, not to the bit.
EPSILON = 1e-12
LARGEST_EPSILON = 1e-4  # none is trained with more: it would be another unit, or a mistake


def read(config: Mapping[str, Any], given: Given) -> Given:
    """What the tensors do not say, from a config.json ({} if there is none); what the user gave comes first.

    Raises:
      UserError: the model computes something that ours cannot.
    """
    if not config:
        return given
    if config.get('hidden_act', 'gelu') != 'gelu':
        raise UserError(f'config.json has hidden_act {config["hidden_act"]!r}; these models are built with gelu')
    epsilon = config.get('layer_norm_eps', EPSILON)
    if not isinstance(epsilon, float) or not 0 < epsilon <= LARGEST_EPSILON:
        raise UserError(
            f'config.json has layer_norm_eps {epsilon!r}, which should be above 0 and at most {LARGEST_EPSILON}'
        )
    size = config.get('image_size', 224)
    height, width = (size, size) if isinstance(size, int) else size
    frames = config.get('num_frames', 1 if config.get('model_type') == 'vit_mae' else 16)
    mean, std = (tuple(map(float, config[k])) if k in config else None for k in ('image_mean', 'image_std'))
    return Given(
        given.heads or config.get('num_attention_heads'),
        given.decoder_heads or config.get('decoder_num_attention_heads'),
        given.input_size or (frames, height, width),
        mean,
        std,
        norm_epsilon=epsilon,
    )


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The class names of a config.json, or [] where it has placeholders only."""
    names = {int(i): str(name) for i, name in (config.get('id2label') or {}).items() if str(i).isdigit()}
    if all(name == f'LABEL_{i}' for i, name in names.items()):
        return []
    return [names[i] for i in sorted(names)]


def preprocessor(model: Architecture) -> dict[str, Any]:
    """A preprocessor_config.json: what the pixels are normalised with."""
    vit = model.vit()
    _, height, width, _ = model.input_shape
    return {
        'image_processor_type': 'ViTImageProcessor' if model.input_shape[0] == 1 else 'VideoMAEImageProcessor',
        'do_rescale': True,
        'do_normalize': True,
        'image_mean': list(vit.mean),
        'image_std': list(vit.std),
        'size': {'height': height, 'width': width},
    }


def write(family: Family, model: Architecture, names: Sequence[str], normalised_pixels: bool) -> dict[str, Any]:
    """A config.json.

    Args:
      family: one of Hugging Face's.
      model: the model.
      names: class names, or none.
      normalised_pixels: whether the pretraining target is normalised per patch.

    Raises:
      UserError: Hugging Face's model cannot be of this shape.
    """
    vit = model.vit()
    frames, height, width, channels = model.input_shape
    if vit.patch[1] != vit.patch[2]:
        raise UserError(f'Hugging Face has square patches only, not {vit.patch[1:]}')
    config: dict[str, Any] = {
        'architectures': [family.hub_class],
        'model_type': 'vit_mae' if family.image else 'videomae',
        'image_size': height if height == width else [height, width],
        'patch_size': vit.patch[1],
        'num_channels': channels,
        'hidden_size': vit.width,
        'num_hidden_layers': vit.depth,
        'num_attention_heads': vit.heads,
        'intermediate_size': round(vit.mlp_ratio * vit.width),
        'hidden_act': 'gelu',
        'layer_norm_eps': vit.norm_epsilon,
        'qkv_bias': True,
        'dtype': 'float32',
    }
    if not family.image:
        config |= {'num_frames': frames, 'tubelet_size': vit.patch[0]}
        config['use_mean_pooling'] = model.num_classes is not None or not vit.final_norm
    if model.num_classes is None:
        if 'pixels' not in model.decoders:
            raise UserError(f'the family {family.name} is a pretraining model; the checkpoint is an encoder alone')
        decoder = model.decoders['pixels']
        config |= {
            'decoder_hidden_size': decoder['width'],
            'decoder_num_hidden_layers': decoder['depth'],
            'decoder_num_attention_heads': decoder['heads'],
            'decoder_intermediate_size': round(decoder['mlp_ratio'] * decoder['width']),
            'norm_pix_loss': normalised_pixels,
        }
    else:
        labels = list(names) or [f'LABEL_{i}' for i in range(model.num_classes)]
        config['id2label'] = {str(i): name for i, name in enumerate(labels)}
        config['label2id'] = {name: i for i, name in enumerate(labels)}
    return config
