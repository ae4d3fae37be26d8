"""The model that a checkpoint belongs to: read off its tensors or off our own meta, and the rules that follow."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvdjax import trees
from mvdjax.convert.families import BlockNames, DecoderNames, Family
from mvdjax.convert.layouts import Convolution, Linear, Shape, Token, Vector
from mvdjax.convert.rules import Rule
from mvdjax.errors import UserError
from mvdjax.models.embed import Grid, position_table, token_grid
from mvdjax.models.layers import NORM_EPSILON
from mvdjax.models.masked_vit import MaskedViT
from mvdjax.models.vit import VARIANTS, Classifier, ViT
from mvdjax.tasks.base import build_decoder, build_vit

SMALL_GRID = (4, 6, 6)  # tokens at most, where positions can be had for any grid
ENCODER_HEADS = {size.width: size.heads for name, size in VARIANTS.items() if name in 'SBLH'}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model of one of the families.

    Attributes:
      backbone: section of `models.vit.ViT`, complete.
      decoders: name -> section of `models.masked_vit.Decoder`, complete; empty for an encoder or classifier.
      num_classes: of a classifier, else None.
      input_shape: (frames, height, width, channels); decides the grid of position tables, nothing else.
    """

    backbone: Mapping[str, Any]
    decoders: Mapping[str, Mapping[str, Any]]
    num_classes: int | None
    input_shape: tuple[int, int, int, int]

    def vit(self) -> ViT:
        """The encoder."""
        return build_vit(self.backbone)

    def module(self) -> ViT:
        """The backbone."""
        return self.vit()

    def small_input(self) -> tuple[int, int, int, int]:
        """(frames, height, width, channels) that the model answers in seconds: its input, cut if positions allow."""
        vit, (frames, height, width, channels) = self.vit(), self.input_shape
        if vit.pos_embed == 'learned':
            return frames, height, width, channels
        t, h, w = (min(n, most) * p for n, most, p in zip(self.grid(), SMALL_GRID, vit.patch, strict=True))
        return t, h, w, channels

    def text(self) -> str:
        """What it is, in a line."""
        vit, (frames, height, width, _) = self.vit(), self.input_shape
        size = f'ViT {vit.width} wide, {vit.depth} deep, {vit.heads} heads'
        return f'{size}; input {frames}x{height}x{width} (--heads, --input)'

    def grid(self) -> Grid:
        """Tokens of an input.

        Raises:
          UserError: the input does not divide into patches.
        """
        return token_grid(self.input_shape, self.vit().patch)

    def shapes(self) -> dict[str, Shape]:
        """Shapes of all our leaves: {path: shape}, from the modules themselves."""
        vit = self.vit()
        video = jax.ShapeDtypeStruct((1, *self.input_shape), jnp.float32)
        key = jax.random.key(0)
        if self.num_classes is not None:
            tree = jax.eval_shape(Classifier(vit, self.num_classes).init, key, video)['params']
        elif self.decoders:
            model = MaskedViT(vit, {name: build_decoder(section) for name, section in self.decoders.items()})
            tokens = math.prod(self.grid())
            mask = jnp.arange(tokens)[None] > 0
            tree = jax.eval_shape(lambda k, x: model.init(k, x, mask, tokens - 1), key, video)['params']
        else:
            tree = {'backbone': jax.eval_shape(vit.init, key, video)['params']}
        return {path: tuple(leaf.shape) for path, leaf in trees.flatten(tree).items()}


def _block_rules(ours: str, theirs: str, depth: int, names: BlockNames, qkv_bias: str) -> list[Rule]:
    """Rules of a stack of blocks: `theirs` contains '{}'."""

    def rule(leaf: str, layout: Any, *modules: str) -> Rule:
        return Rule(f'{ours}/blocks/{leaf}', tuple(f'{theirs}.{module}' for module in modules), layout, depth)

    weights = [f'{module}.weight' for module in names.qkv]
    rules = [rule('attn/qkv/kernel', Linear(1, len(weights)), *weights)]
    if qkv_bias == 'full':
        rules.append(rule('attn/qkv/bias', Vector(len(weights)), *(f'{module}.bias' for module in names.qkv)))
    else:
        rules += [rule(f'attn/{x}_bias', Vector(), name) for x, name in zip('qv', names.qv_biases, strict=True)]
    rules += [rule('attn/proj/kernel', Linear(2), f'{names.proj}.weight')]
    rules += [rule('attn/proj/bias', Vector(), f'{names.proj}.bias')]
    for i in range(2):
        rules += [rule(f'norm{i + 1}/scale', Vector(), f'{names.norms[i]}.weight')]
        rules += [rule(f'norm{i + 1}/bias', Vector(), f'{names.norms[i]}.bias')]
        rules += [rule(f'mlp/fc{i + 1}/kernel', Linear(), f'{names.fc[i]}.weight')]
        rules += [rule(f'mlp/fc{i + 1}/bias', Vector(), f'{names.fc[i]}.bias')]
    return rules


def _norm_rules(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f'{ours}/scale', (f'{theirs}.weight',), Vector()),
        Rule(f'{ours}/bias', (f'{theirs}.bias',), Vector()),
    ]


def _linear_rules(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
    rules = [Rule(f'{ours}/kernel', (f'{theirs}.weight',), Linear())]
    return [*rules, Rule(f'{ours}/bias', (f'{theirs}.bias',), Vector())] if bias else rules


def make_rules(family: Family, model: Architecture) -> list[Rule]:
    """All rules of a model."""
    vit, names = model.vit(), family.encoder
    kernel = vit.patch[1:] if family.image else vit.patch
    rules = [
        Rule('backbone/patch_embed/kernel', (f'{names.patch}.weight',), Convolution(kernel, model.input_shape[-1])),
        Rule('backbone/patch_embed/bias', (f'{names.patch}.bias',), Vector()),
    ]
    if vit.cls_token:
        rules.append(Rule('backbone/cls_token', (names.cls_token,), Token()))
    if vit.pos_embed == 'learned':
        rules.append(Rule('backbone/position_table', (names.position,), Token()))
    rules += _block_rules('backbone/encoder', names.blocks, vit.depth, family.block, vit.qkv_bias)
    if vit.final_norm and model.num_classes is None:
        rules += _norm_rules('backbone/norm', names.norm)
    for name, section in model.decoders.items():
        theirs, ours, decoder = family.decoders[name], f'decoders_{name}', build_decoder(section)
        rules += _linear_rules(f'{ours}/embed', theirs.embed, decoder.embed_bias)
        rules.append(Rule(f'{ours}/mask_token', (theirs.mask_token,), Token()))
        rules += _block_rules(f'{ours}/decoder', theirs.blocks, decoder.depth, family.block, decoder.qkv_bias)
        rules += _norm_rules(f'{ours}/norm', theirs.norm) + _linear_rules(f'{ours}/head', theirs.head)
    if model.num_classes is not None and family.classifier:
        norm, head = family.classifier
        rules += _norm_rules('fc_norm', norm) + _linear_rules('head', head)
    return rules


def make_tables(family: Family, model: Architecture) -> dict[str, np.ndarray]:
    """The fixed position tables that files of this family hold, a row of zeros for the class token in front."""
    tables: dict[str, np.ndarray] = {}
    if not family.stores_tables:
        return tables
    pairs = [(family.encoder.position, model.backbone['width'])]
    pairs += [(family.decoders[name].position, section['width']) for name, section in model.decoders.items()]
    for name, width in pairs:
        table = position_table(family.pos_embed, model.grid(), width)
        tables[name] = np.concatenate([np.zeros((1, width), np.float32), table])[None]
    return tables


@dataclasses.dataclass(frozen=True)
class Given:
    """What tensors do not say; each None is filled with what the published models have.

    Attributes:
      heads: of the encoder.
      decoder_heads: of the decoders.
      input_size: (frames, height, width).
      mean, std: of the pixels, one value per channel.
      window: of a Swin, in tokens along time, height, width.
      norm_epsilon: of the LayerNorms.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    window: Grid | None = None
    norm_epsilon: float | None = None


def _heads(width: int, known: Mapping[int, int], given: int | None, option: str) -> int:
    heads = given or known.get(width)
    if heads is None:
        raise UserError(
            f'a width of {width} is of no published model, and tensors do not say the number of heads: give {option}'
        )
    if heads < 1 or width % heads:
        raise UserError(f'{option}={heads} does not divide the width {width}')
    return heads


def shape_of(name: str, axes: int, shapes: Mapping[str, Shape]) -> Shape:
    """The shape of a tensor that must be there, with that many axes."""
    if len(shapes.get(name, ())) != axes:
        state = f'has the shape {shapes[name]}' if name in shapes else 'is missing'
        raise UserError(f'{name} {state} in the file; this family has it, with {axes} axes')
    return shapes[name]


def _depth(blocks: str, shapes: Mapping[str, Shape]) -> int:
    """Blocks of a stack: one more than the highest number in the names."""
    pattern = re.compile(re.escape(blocks).replace(r'\{\}', r'(\d+)') + r'\.')
    return max((int(found[1]) + 1 for name in shapes if (found := pattern.match(name))), default=0)


def _stack(blocks: str, names: BlockNames, width: int, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    hidden = shape_of(f'{blocks.format(0)}.{names.fc[0]}.weight', 2, shapes)[0]
    return {'width': width, 'depth': _depth(blocks, shapes), 'mlp_ratio': hidden / width}


def _decoder(family: Family, names: DecoderNames, shapes: Mapping[str, Shape], given: Given) -> dict[str, Any]:
    width, out_dim = (shape_of(f'{module}.weight', 2, shapes)[0] for module in (names.embed, names.head))
    return {
        **_stack(names.blocks, family.block, width, shapes),
        'heads': _heads(width, family.decoder_heads, given.decoder_heads, '--decoder-heads'),
        'out_dim': out_dim,
        'embed_bias': f'{names.embed}.bias' in shapes,
        'pos_embed': family.pos_embed,
        'qkv_bias': family.qkv_bias,
        'norm_epsilon': given.norm_epsilon or NORM_EPSILON,
    }


def read_architecture(family: Family, shapes: Mapping[str, Shape], given: Given) -> Architecture:
    """The model that tensors of these names and shapes belong to.

    Raises:
      UserError: tensors are missing, or the number of heads is not known for these widths.
    """
    names = family.encoder
    width, channels, *kernel = shape_of(f'{names.patch}.weight', 4 if family.image else 5, shapes)
    patch = (1, *kernel) if family.image else tuple(kernel)
    learned = not family.stores_tables and bool(names.position) and names.position in shapes
    decoders = {
        name: _decoder(family, decoder, shapes, given)
        for name, decoder in family.decoders.items()
        if any(key.startswith((f'{decoder.embed}.', f'{decoder.mask_token}')) for key in shapes)
    }
    backbone = {
        **_stack(names.blocks, family.block, width, shapes),
        'heads': _heads(width, ENCODER_HEADS, given.heads, '--heads'),
        'patch': patch,
        'pos_embed': 'learned' if learned else family.pos_embed,
        'cls_token': bool(names.cls_token),
        'qkv_bias': family.qkv_bias,
        'final_norm': f'{names.norm}.weight' in shapes and not family.classifier,
        'norm_epsilon': given.norm_epsilon or NORM_EPSILON,
    }
    if given.mean and given.std:
        backbone |= {'mean': given.mean, 'std': given.std}
    elif channels != 3:  # nobody published statistics for other channels: the input is taken as it is
        backbone |= {'mean': (0.0,) * channels, 'std': (1.0,) * channels}
    size = given.input_size or _input_size(family, shapes, patch)
    classes = shape_of(f'{family.classifier[1]}.weight', 2, shapes)[0] if family.classifier else None
    return Architecture(backbone, decoders, classes, (*size, channels))


def _input_size(family: Family, shapes: Mapping[str, Shape], patch: tuple[int, ...]) -> tuple[int, int, int]:
    """The published input; for a file with a square table of positions, the one of that table."""
    if not family.image:
        return (16, 224, 224)
    tokens = 14 * 14
    if family.encoder.position in shapes:
        tokens = shape_of(family.encoder.position, 3, shapes)[1] - 1
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f'{family.encoder.position} has {tokens} tokens, which make no square: give --input')
    return (1, side * patch[1], side * patch[2])


def of_checkpoint(shapes: Mapping[str, Shape], meta: Mapping[str, Any]) -> Architecture:
    """The model of one of our checkpoints.

    Args:
      shapes: of its leaves, {path: shape}.
      meta: its meta, see `checkpoints.read_meta`.

    Raises:
      UserError: a model that is none of MAE's, VideoMAE's or MVD's kind.
    """
    if 'backbone/patch_embed/kernel' not in shapes:
        raise UserError(f'a {meta["config"]["task_name"]} checkpoint holds no ViT, and ViTs are what convert knows')
    backbone = {**meta['backbone'], **_our_stack('backbone/encoder', shapes)}
    backbone['final_norm'] = 'backbone/norm/scale' in shapes
    task = meta['config']['task']
    decoders = {}
    for name in sorted({path.split('/')[0] for path in shapes if path.startswith('decoders_')}):
        short = name.removeprefix('decoders_')
        section = task['decoder'] if short == 'pixels' else task['teachers'][short]['decoder']
        stated = build_decoder(
            {k: section[k] for k in ('pos_embed', 'qkv_bias', 'norm_epsilon') if k in section}, **_NO_SIZE
        )
        decoders[short] = {
            **_our_stack(f'{name}/decoder', shapes),
            'out_dim': shapes[f'{name}/head/kernel'][1],
            'embed_bias': f'{name}/embed/bias' in shapes,
            'pos_embed': stated.pos_embed,
            'qkv_bias': stated.qkv_bias,
            'norm_epsilon': stated.norm_epsilon,
        }
    classes = shapes['head/kernel'][1] if 'head/kernel' in shapes else None
    frames, height, width, channels = meta['input_shape'][-4:]
    return Architecture(backbone, decoders, classes, (frames, height, width, channels))


_NO_SIZE = {'width': 1, 'depth': 1, 'heads': 1, 'out_dim': 1}


def _our_stack(path: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    name = f'{path}/blocks/attn/qkv/kernel'
    if name not in shapes:
        raise UserError(
            f'the checkpoint has no {name}: it is of a model that is not scanned, which convert does not know'
        )
    depth, width, _, heads, _ = shapes[name]
    hidden = shapes[f'{path}/blocks/mlp/fc1/kernel'][2]
    return {'width': width, 'depth': depth, 'heads': heads, 'mlp_ratio': hidden / width}


def differences(family: Family, model: Architecture) -> list[str]:
    """Why a model cannot be written as a family; nothing if it can."""
    vit = model.vit()
    wrong = []
    if (model.num_classes is None) != (family.classifier is None):
        wrong.append('one is a classifier, the other is not')
    if set(model.decoders) - set(family.decoders):
        wrong.append(f'it has decoders for {", ".join(model.decoders)}')
    positions = {vit.pos_embed, *(section['pos_embed'] for section in model.decoders.values())}
    learned = vit.pos_embed == 'learned' and bool(family.encoder.position) and not family.stores_tables
    if positions - {family.pos_embed} - ({'learned'} if learned else set()):
        wrong.append(f'its positions are {" and ".join(sorted(positions))}, the family has {family.pos_embed}')
    biases = {vit.qkv_bias, *(section['qkv_bias'] for section in model.decoders.values())}
    if biases != {family.qkv_bias}:
        wrong.append(f'its attention has {" and ".join(sorted(biases))} biases, the family has {family.qkv_bias}')
    if not family.hub_class and vit.norm_epsilon != NORM_EPSILON:
        wrong.append(f'its LayerNorms have an epsilon of {vit.norm_epsilon}, the family of {NORM_EPSILON}')
    if vit.cls_token != bool(family.encoder.cls_token):
        wrong.append('one has a class token, the other has none')
    if family.image and vit.patch[0] != 1:
        wrong.append('it sees clips, the family images')
    return wrong
