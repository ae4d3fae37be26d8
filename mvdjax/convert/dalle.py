"""DALL-E's encoder (openai/DALL-E, `encoder.pkl`), BEVT's tokenizer: to a checkpoint here, and back to a state dict."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvdjax import checkpoints, trees
from mvdjax.console import say
from mvdjax.convert import files, inert, rules, writing
from mvdjax.convert.layouts import Convolution, Shape, Vector
from mvdjax.convert.rules import Rule
from mvdjax.convert.writing import Leaf
from mvdjax.errors import UserError
from mvdjax.models.dvae import GROUPS, STRIDE, DalleEncoder
from mvdjax.tasks.base import describe

NAME = 'dalle'
TEXT = "DALL-E's encoder (openai/DALL-E, encoder.pkl): BEVT's tokenizer; read without running the pickled module"
LICENCE = 'modified MIT (openai/DALL-E) if these are the weights that its authors published; else as their owner says'
# Classes of the pickled module: the package's own, and layers without parameters of PyTorch.
PACKAGES = r'dall_e(\.\w+)*|torch\.nn\.modules\.\w+'
MARKS = ('blocks.input.w', 'blocks.output.conv.w')  # tensors that no other family has


def _torch_name(path: str) -> str:
    """'group1_block2/conv3/kernel' -> 'blocks.group_1.block_2.res_path.conv_3.w'."""
    module, leaf = path.rsplit('/', 1)
    if module == 'head':
        module = 'output/conv'
    module = re.sub(r'^group(\d+)_block(\d+)/', r'group_\1/block_\2/', module)
    module = re.sub(r'/conv(\d)$', r'/res_path/conv_\1', module).replace('/shortcut', '/id_path')
    return f'blocks.{module.replace("/", ".")}.{leaf[0].replace("k", "w")}'


def encoder_shapes(encoder: DalleEncoder) -> dict[str, Shape]:
    """Shapes of its leaves: {path: shape}."""
    image = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 3), jnp.float32)
    tree = jax.eval_shape(encoder.init, jax.random.key(0), image)['params']
    return {path: tuple(leaf.shape) for path, leaf in trees.flatten(tree).items()}


def make_rules(expected: Mapping[str, Shape]) -> list[Rule]:
    """A rule for every leaf."""
    return [
        Rule(path, (_torch_name(path),), Convolution(shape[:2], shape[2]) if len(shape) == 4 else Vector())
        for path, shape in expected.items()
    ]


def read_encoder(shapes: Mapping[str, Shape]) -> DalleEncoder:
    """The encoder that tensors of these names and shapes belong to.

    Raises:
      UserError: tensors that say its size are missing.
    """
    blocks = [name for name in shapes if re.fullmatch(r'blocks\.group_1\.block_\d+\.res_path\.conv_1\.w', name)]
    if not blocks or any(len(shapes.get(name, ())) != 4 for name in MARKS):
        raise UserError(f'the file lacks {", ".join(MARKS)} or its blocks: it holds no DALL-E encoder, or half of one')
    return DalleEncoder(shapes[MARKS[0]][0], len(blocks), shapes[MARKS[1]][0])


def open_source(path: str, key: str) -> files.Source:
    """Opens the published file, a whole pickled module; or a state dict with its names, in a file of any other kind.

    Raises:
      UserError: no such file, a damaged one, or one that could run code.
    """
    if not path.endswith('.pkl'):
        return files.open_source(path, key)
    if key:
        raise UserError(f'--key is for files with several state dicts; {path} should hold one pickled module')
    name, source = inert.read_module(path, PACKAGES)
    source.notes.append(f'a pickled module of the class {name}; its code was neither imported nor run')
    return source


def is_theirs(path: str, family: str) -> bool:
    """Whether a file to read is for this module: asked for by name, or a pickled module, which no other family is."""
    return family == NAME or (not family and path.endswith('.pkl'))


def is_ours(path: str, family: str) -> bool:
    """Whether one of our checkpoints is of this family.

    Raises:
      UserError: another family was asked for, or this one of a checkpoint that is none of it.
    """
    found = checkpoints.read_meta(path).get('family') == NAME
    if found and family not in ('', NAME):
        raise UserError(f'{path} holds a DALL-E encoder, which can be written as --family={NAME} only')
    if family == NAME and not found:
        raise UserError(f'{path} holds no DALL-E encoder: it cannot be written as --family={NAME}')
    return found


def import_encoder(path: str, destination: str, *, key: str = '', licence: str = '') -> str:
    """PyTorch -> a checkpoint here. Returns what to print last.

    Raises:
      UserError: the file is not DALL-E's encoder, or cannot be read or written.
    """
    source = open_source(path, key)
    encoder = read_encoder(source.shapes)
    expected = encoder_shapes(encoder)
    mapping = make_rules(expected)
    rules.check_source(mapping, {}, source.shapes, expected, ())
    size = {'width': encoder.width, 'blocks': encoder.blocks, 'vocabulary': encoder.vocabulary}
    say(f'{path} is of the family {NAME} ({TEXT})')
    say(f'{encoder.width} wide, {encoder.blocks} blocks in each of {len(GROUPS)} groups, {encoder.vocabulary} codes')
    for note in source.notes:
        say(f'note: {note}')
    say(rules.format_table(mapping, {}, [], expected))
    licence = licence or LICENCE
    meta: dict[str, Any] = {
        'schema_version': checkpoints.SCHEMA_VERSION,
        'step': 0,
        'config': {'task_name': 'tokenizer', 'task': {'kind': NAME, 'model': size}},
        'class_names': [],
        'input_shape': [1, STRIDE, STRIDE, 3],
        'backbone': describe(encoder),
        'family': NAME,
        'sources': [{'checkpoint': path, 'sha256': source.sha256(), 'licence': licence, 'sources': []}],
        'licence': licence,
    }
    leaves = {
        rule.ours: Leaf(shape, functools.partial(rules.to_ours, rule, source, shape))
        for rule in mapping
        for shape in [expected[rule.ours]]
    }
    writing.save(destination, leaves, json.loads(json.dumps(meta)))
    return f'wrote {destination}: a checkpoint for task.tokenizer'


def export_encoder(source: str, destination: str) -> str:
    """A checkpoint here -> a state dict with the names of the published module. Returns what to print last.

    Raises:
      UserError: the checkpoint is damaged, or the destination is no file name.
    """
    files.check_name(destination, False)
    leaves = checkpoints.StoredParams(source)
    mapping = make_rules(leaves.shapes)
    tensors = rules.to_theirs(mapping, {}, leaves, leaves.shapes)
    say(f'{source} as {NAME} ({TEXT})')
    say(rules.format_table(mapping, {}, [], leaves.shapes))
    files.write(destination, tensors)
    return f'wrote {destination}; licence of the weights: {checkpoints.read_meta(source)["licence"]}'
