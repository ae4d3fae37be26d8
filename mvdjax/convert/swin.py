"""Swin checkpoints: the model read off their tensors or off our own meta, and the rules that follow."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvdjax import trees
from mvdjax.convert.architecture import Given, shape_of
from mvdjax.convert.files import Source
from mvdjax.convert.layouts import BiasTable, Convolution, Layout, Linear, Shape, Token, TransposedConvolution, Vector
from mvdjax.convert.rules import Rule
from mvdjax.convert.swin_families import AVERAGE, BLOCK, PATCHES, SwinFamily
from mvdjax.errors import UserError
from mvdjax.models.bevt import MaskedSwin, SwinClassifier
from mvdjax.models.embed import Grid
from mvdjax.models.video_swin import VideoSwin
from mvdjax.tasks.base import build_swin

FRAMES = 2  # of a patch of clips, where a file holds none: what every published Video Swin and BEVT has
SIDE = 7  # height and width of the published windows


@dataclasses.dataclass(frozen=True)
class SwinModel:
    """A Swin of one of the families.

    Attributes:
      backbone: section of `models.video_swin.VideoSwin`, complete.
      clips, images: which patch embeddings there are.
      mask_token: whether there is one.
      fused: whether the fusion layers of its streams are there.
      vocabulary: of the masked model's head, or None without a head.
      num_classes: of a classifier, else None.
      input_shape: (frames, height, width, channels).
    """

    backbone: Mapping[str, Any]
    clips: bool
    images: bool
    mask_token: bool
    fused: bool
    vocabulary: int | None
    num_classes: int | None
    input_shape: tuple[int, int, int, int]

    def module(self) -> VideoSwin:
        """The backbone."""
        return build_swin(self.backbone)

    def small_input(self) -> tuple[int, int, int, int]:
        """(frames, height, width, channels) that the model answers in seconds: of clips a smaller one will do."""
        frames, height, width, channels = self.input_shape
        if not self.clips:
            return 1, height, width, channels
        side = 2 ** (len(self.backbone['depths']) + 1)
        t, h, w = self.module().patch
        return min(frames, 4 * t), min(height, side * h), min(width, side * w), channels

    def text(self) -> str:
        """What it is, in a line."""
        swin, (frames, height, width, _) = self.module(), self.input_shape
        return (
            f'Swin {swin.width} wide, {"-".join(map(str, swin.depths))} deep, windows of '
            f'{"x".join(map(str, swin.window))}; input {frames}x{height}x{width} (--input)'
        )

    def shapes(self) -> dict[str, Shape]:
        """Shapes of all our leaves: {path: shape}, from the modules themselves."""
        swin, (frames, height, width, channels) = self.module(), self.input_shape
        video = jnp.zeros((1, frames if self.clips else 1, height, width, channels))
        images, mask = jnp.zeros((1, 1, height, width, channels)), jnp.zeros((1, 1, 1, 1), bool)
        given = mask if self.mask_token else None
        model: Any = swin
        if self.num_classes is not None:
            model = SwinClassifier(swin, self.num_classes)
            init = functools.partial(model.init, video=video)
        elif self.fused and self.clips and self.images:
            model = MaskedSwin(swin, self.vocabulary or 1)
            init = functools.partial(model.init, video=video, video_mask=given, images=images, image_mask=given)
            init = functools.partial(init, method='two_streams')
        else:
            model = MaskedSwin(swin, self.vocabulary or 1) if self.fused else swin
            init = functools.partial(model.init, video=video, mask=given, image=not self.clips)
        tree = jax.eval_shape(lambda key: init(key)['params'], jax.random.key(0))
        tree = {'backbone': tree} if model is swin else tree
        found = {path: tuple(leaf.shape) for path, leaf in trees.flatten(tree).items()}
        if self.vocabulary is None:
            found = {path: shape for path, shape in found.items() if not path.startswith('lm_head/')}
        return found

    def task_config(self) -> dict[str, Any]:
        """Task name and section for the meta, as far as a file of weights decides them."""
        backbone = dict(self.backbone)
        if self.num_classes is not None:
            return {'task_name': 'classify', 'task': {'model': backbone, 'num_classes': self.num_classes}}
        return {'task_name': 'bevt' if self.fused else 'encoder', 'task': {'model': backbone}}


def _linear(ours: str, theirs: str) -> list[Rule]:
    return [_weight(ours, theirs, Linear()), Rule(f'{ours}/bias', (f'{theirs}.bias',), Vector())]


def _weight(ours: str, theirs: str, layout: Layout) -> Rule:
    return Rule(f'{ours}/kernel', (f'{theirs}.weight',), layout)


def _norm(ours: str, theirs: str, depth: int = 0) -> list[Rule]:
    pairs = (('scale', 'weight'), ('bias', 'bias'))
    return [Rule(f'{ours}/{here}', (f'{theirs}.{there}',), Vector(), depth) for here, there in pairs]


def _block_rules(ours: str, theirs: str, depth: int) -> list[Rule]:
    """Rules of a stage's blocks: `theirs` contains '{}'."""
    rules = [
        Rule(
            f'{ours}/attn/relative_position_table', (f'{theirs}.attn.relative_position_bias_table',), BiasTable(), depth
        )
    ]
    kernels = (('attn/qkv', Linear()), ('attn/proj', Linear(2)), ('mlp/fc1', Linear()), ('mlp/fc2', Linear()))
    for module, layout in kernels:
        name = f'{theirs}.{module.replace("/", ".")}'
        rules.append(Rule(f'{ours}/{module}/kernel', (f'{name}.weight',), layout, depth))
        rules.append(Rule(f'{ours}/{module}/bias', (f'{name}.bias',), Vector(), depth))
    return [
        *rules,
        *_norm(f'{ours}/norm1', f'{theirs}.norm1', depth),
        *_norm(f'{ours}/norm2', f'{theirs}.norm2', depth),
    ]


def make_rules(family: SwinFamily, model: SwinModel) -> list[Rule]:
    """All rules of a model."""
    swin, channels, rules = model.module(), model.input_shape[-1], []
    for there, ours in ((model.clips, 'patch_embed'), (model.images, 'patch_embed_2d')):
        if there:
            theirs = 'patch_embed' if family.patch_axes == 4 else ours
            kernel = swin.patch if ours == 'patch_embed' else swin.patch[1:]
            rules.append(_weight(f'backbone/{ours}/proj', f'{theirs}.proj', Convolution(kernel, channels)))
            rules.append(Rule(f'backbone/{ours}/proj/bias', (f'{theirs}.proj.bias',), Vector()))
            rules += _norm(f'backbone/{ours}/norm', f'{theirs}.norm')
    if model.mask_token:
        rules.append(Rule('backbone/mask_token', ('mask_token',), Token()))
    for i, depth in enumerate(swin.depths):
        rules += _block_rules(f'backbone/stage{i + 1}/blocks', f'layers.{i}.blocks.{{}}', depth)
        if i + 1 < len(swin.depths):
            merge = f'layers.{i}.downsample'
            rules.append(_weight(f'backbone/merge{i + 1}/reduction', f'{merge}.reduction', Linear()))
            rules += _norm(f'backbone/merge{i + 1}/norm', f'{merge}.norm')
    rules += _norm('backbone/norm', 'norm')
    if model.fused:
        layers: list[tuple[str, Shape]] = []
        layers += [('fpn_s', (1, 2, 2)), ('fpn_t', (swin.patch[0], 1, 1))] if model.clips else []
        layers += [('fpn', (2, 2))] if model.images else []
        for name, cube in layers:
            rules.append(_weight(name, f'{name}.0', TransposedConvolution(cube)))
            rules.append(Rule(f'{name}/bias', (f'{name}.0.bias',), Vector()))
        rules += _linear('lm_down_st', 'lm_down_st.0') if model.clips else []
        rules += _linear('lm_down', 'lm_down') if model.images else []
    for ours, theirs in family.head.items():
        if (model.vocabulary if ours == 'lm_head' else model.num_classes) is not None:
            rules += _linear(ours, theirs)
    return rules


def prepare(source: Source, family: SwinFamily, average: bool) -> None:
    """Gives the tensors of a file the family's names.

    Args:
      source: the file.
      family: of the file.
      average: take mmcv's moving average, which lies beside the weights, in their place.

    Raises:
      UserError: there is no average.
    """
    averages = [name for name in source.shapes if name.startswith(AVERAGE)]
    if average:
        if not averages:
            raise UserError(f'--ema: the file holds no moving average ({AVERAGE}... beside each tensor)')
        for name in [name for name in source.shapes if name not in averages]:
            twin = AVERAGE + name.replace('.', '_')
            if twin in source.shapes:
                source.readers[name] = source.readers[twin]
    elif averages:
        source.notes.append(f'the moving average ({averages[0]}, ...) was not read; --ema takes it')
    source.forget(averages)
    source.rename(family.canonical)
    if 'fc_norm.weight' in source.shapes:  # a classifier that normalised after pooling: the published loader takes it
        source.forget([name for name in source.shapes if re.match(r'norm\.(weight|bias)$', name)])
        source.rename(lambda name: re.sub(r'^fc_norm\.', 'norm.', name))


def read_model(family: SwinFamily, shapes: Mapping[str, Shape], given: Given) -> SwinModel:
    """The model that tensors of these (canonical) names and shapes belong to.

    Raises:
      UserError: tensors are missing, or do not say the window.
    """
    if given.heads or given.decoder_heads:
        raise UserError(f'--heads, --decoder-heads: the tensors of {family.name} say them')
    width, channels, *kernel = shape_of(PATCHES, family.patch_axes, shapes)
    images = family.both or family.patch_axes == 4
    names = [re.match(r'layers\.(\d+)\.blocks\.(\d+)\.', name) for name in shapes]
    places = {(int(found[1]), int(found[2])) for found in names if found}
    stages = 1 + max((stage for stage, _ in places), default=0)
    depths = tuple(sum(stage == i for stage, _ in places) for i in range(stages))
    tables = [shape_of(BLOCK.replace('layers.0', f'layers.{i}'), 2, shapes) for i in range(stages)]
    hidden = shape_of('layers.0.blocks.0.mlp.fc1.weight', 2, shapes)[0]
    backbone: dict[str, Any] = {
        'width': width,
        'depths': depths,
        'heads': tuple(heads for _, heads in tables),
        'window': _window(family, tables[0][0], shapes, given.window),
        'patch': tuple(kernel) if family.patch_axes == 5 else (FRAMES, *kernel),
        'mlp_ratio': hidden / width,
        'corrected': family.corrected,
    }
    if channels != 3:  # nobody published statistics for other channels: the input is taken as it is
        backbone |= {'mean': (0.0,) * channels, 'std': (1.0,) * channels}
    heads = {
        ours: shapes[f'{theirs}.weight'][0] for ours, theirs in family.head.items() if f'{theirs}.weight' in shapes
    }
    frames = 32 if family.name == 'video_swin' else 16
    size = given.input_size or (frames if family.patch_axes == 5 else 1, 224, 224)
    fused = 'fpn.0.weight' in shapes or 'fpn_s.0.weight' in shapes
    return SwinModel(
        backbone,
        family.patch_axes == 5,
        images,
        'mask_token' in shapes,
        fused,
        heads.get('lm_head'),
        heads.get('head'),
        (*size, channels),
    )


def _window(family: SwinFamily, rows: int, shapes: Mapping[str, Shape], given: Grid | None) -> Grid:
    """The window of a table of so many rows, square in height and width unless it is given.

    Raises:
      UserError: no window has so many, or more than one.
    """
    if given:
        if math.prod(2 * side - 1 for side in given) != rows:
            raise UserError(f'--window={"x".join(map(str, given))} does not fit the {rows} rows of {BLOCK}')
        return given
    sides = [n for n in range(3, rows + 1, 2) if rows % (n * n) == 0 and rows // (n * n) % 2]
    found = [((rows // (n * n) + 1) // 2, (n + 1) // 2, (n + 1) // 2) for n in sides]
    if family.patch_axes == 4:
        found = [window for window in found if window[0] == 1]
    index = shapes.get(BLOCK.replace('relative_position_bias_table', 'relative_position_index'))
    if index:  # files of mmaction have it, and its side is the number of tokens of a window
        found = [window for window in found if math.prod(window) == index[0]]
    usual = [window for window in found if window[1] == SIDE]
    if len(found) > 1 and usual:
        found = usual
    if len(found) != 1:
        raise UserError(f'{BLOCK} has {rows} rows, which {len(found) or "no"} square windows have: give --window=TxHxW')
    return found[0]


def of_leaves(shapes: Mapping[str, Shape], meta: Mapping[str, Any]) -> SwinModel:
    """The model of one of our checkpoints, from the shapes of its leaves and its meta."""
    stages = sum(bool(re.match(r'backbone/stage\d+/blocks/attn/qkv/kernel$', path)) for path in shapes)
    stacks = [f'backbone/stage{i + 1}/blocks' for i in range(stages)]
    if not stacks:
        raise UserError('the checkpoint has no backbone/stage1/blocks: its Swin lies elsewhere, or is incomplete')
    kernels = [shapes[f'{stack}/attn/qkv/kernel'] for stack in stacks]
    _, *sides, _ = shapes[f'{stacks[0]}/attn/relative_position_table']
    width = kernels[0][1]
    stated = {key: tuple(meta['backbone'][key]) for key in ('patch', 'mean', 'std')}
    backbone = {
        'width': width,
        'depths': tuple(shape[0] for shape in kernels),
        'heads': tuple(shape[3] for shape in kernels),
        'window': tuple((side + 1) // 2 for side in sides),
        'mlp_ratio': shapes[f'{stacks[0]}/mlp/fc1/kernel'][2] / width,
        'corrected': meta['backbone']['corrected'],
        **stated,
    }
    frames, height, columns, channels = meta['input_shape'][-4:]
    return SwinModel(
        backbone,
        'backbone/patch_embed/proj/kernel' in shapes,
        'backbone/patch_embed_2d/proj/kernel' in shapes,
        'backbone/mask_token' in shapes,
        'fpn/kernel' in shapes or 'fpn_s/kernel' in shapes,
        shapes['lm_head/kernel'][1] if 'lm_head/kernel' in shapes else None,
        shapes['head/kernel'][1] if 'head/kernel' in shapes else None,
        (frames, height, columns, channels),
    )


def differences(family: SwinFamily, model: SwinModel) -> list[str]:
    """Why a model cannot be written as a family; nothing if it can."""
    wrong = []
    has = {True: 'has', False: 'has no'}
    theirs = {
        'embedding of clips': family.patch_axes == 5,
        'embedding of images': family.both or family.patch_axes == 4,
    }
    for what, mine in (('embedding of clips', model.clips), ('embedding of images', model.images)):
        if mine != theirs[what]:
            wrong.append(f'it {has[mine]} {what}, the family {has[theirs[what]]} one')
    if family.both and not model.fused:
        wrong.append('it has no layers that fuse its last stages, the family has')
    if not family.both and family.patch_axes == 5 and (model.fused or model.mask_token):
        wrong.append('it has layers for masked training, the family has none (leave them behind with --ignore)')
    for ours, there in (('lm_head', model.vocabulary is not None), ('head', model.num_classes is not None)):
        if there and ours not in family.head:
            wrong.append(f'it has a head ({ours}), the family has none (leave it behind with --ignore)')
    return wrong


def buffers(family: SwinFamily, model: SwinModel) -> dict[str, np.ndarray]:
    """What files of the family hold beside parameters: the bias table's row for each pair of tokens of a window."""
    swin = model.module()
    window = swin.window if family.patch_axes == 5 else (1, *swin.window[1:])
    places = np.stack([axis.reshape(-1) for axis in np.indices(window)])
    offsets = places[:, :, None] - places[:, None] + np.array(window)[:, None, None] - 1
    index = np.ravel_multi_index(tuple(offsets), tuple(2 * side - 1 for side in window)).astype(np.int64)
    names = [f'layers.{i}.blocks.{j}' for i, depth in enumerate(swin.depths) for j in range(depth)]
    return {f'{name}.attn.relative_position_index': index.copy() for name in names}
