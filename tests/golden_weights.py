"""What every golden case shares: files, the README's weights and clips, and their way through the converter."""

import contextlib
import functools
import json
import os
import zlib
from pathlib import Path

import jax
import numpy as np

from mvdjax import trees
from mvdjax.convert import architecture, command, families, files, models, rules, swin_families
from mvdjax.tasks.base import normalize

GOLDEN = Path(__file__).parent / 'golden'
FORWARD = {'rtol': 1e-4, 'atol': 1e-4}  # the tolerances of the golden README
LOSS = {'rtol': 1e-5, 'atol': 0}
GRADIENT = 1e-3
QUICK = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
    'xla_cpu_use_fusion_emitters': False,
}

FAMILY = {'image_teacher': 'mae', 'video_teacher': 'videomae', 'classifier': 'mvd-finetuned'}  # others are their own


@functools.cache
def known_options():
    """Those of `QUICK` that this version of XLA has."""
    known = {}
    for name, value in QUICK.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
            known[name] = value
    return known


def quick_jit(function, **options):
    """jit for small models, where compiling takes longer than running."""
    return jax.jit(function, compiler_options=known_options(), **options)


def golden(name):
    """The JSON of a case ('mvd/student_tiny')."""
    return json.loads((GOLDEN / f'{name}.json').read_text())


def full_arrays(name):
    """The arrays of a case that stores them whole and in their own dtype."""
    with np.load(GOLDEN / f'{name}.npz') as file:
        return dict(file)


def model_arrays(name):
    """The arrays of a model case: {name: array}, those with a stride still flat and thinned."""
    info = golden(name)['arrays']
    found = {}
    for key, stored in full_arrays(name).items():
        shape, stride = info[key]['shape'], info[key].get('stride', 1)
        if info[key].get('packed'):
            found[key] = np.unpackbits(stored, count=int(np.prod(shape))).astype(bool).reshape(shape)
        else:
            found[key] = stored.reshape(shape) if stride == 1 else stored
    return found


def assert_close(got, want, case, quantity, **tolerance):
    """`np.testing.assert_allclose`; where `write_parity.py` asks for it, the largest differences are written down."""
    got, want = np.asarray(got), np.asarray(want)
    np.testing.assert_allclose(got, want, err_msg=f'{case}: {quantity}', **tolerance)
    if 'MVDJAX_PARITY' in os.environ:
        apart = np.abs(got.astype(np.float64) - want)
        allowed = tolerance.get('atol', 0) + tolerance['rtol'] * np.abs(want.astype(np.float64))
        share = np.divide(apart, allowed, out=np.zeros_like(apart), where=allowed > 0)
        row = {
            'case': case,
            'quantity': quantity,
            'values': int(want.size),
            'largest': float(np.abs(want).max()),
            'apart': float(apart.max()),
            'share': float(share.max()),
        }
        with open(os.environ['MVDJAX_PARITY'], 'a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')


def assert_array(got, name, key, **tolerance):
    """Compares an array with a stored one, thinned or whole, and with the whole array's statistics."""
    got, tolerance = np.asarray(got), tolerance or FORWARD
    info = golden(name)['arrays'][key]
    assert list(got.shape) == info['shape']
    want = model_arrays(name)[key]
    assert_close(got.reshape(-1)[:: info['stride']], want.reshape(-1), name, key, **tolerance)
    np.testing.assert_allclose([got.mean(), got.std(), np.abs(got).max()], info['stats'], **tolerance)


def clip(seed, batch, frames, size):
    """The README's clip: uint8 (batch, frames, size, size, 3)."""
    return np.random.RandomState(seed).randint(0, 256, (batch, frames, size, size, 3)).astype(np.uint8)


def normalize_clip(seed, batch, frames, height, width):
    """The BEVT README's `video`, normalised: float32 (batch, frames, height, width, 3)."""
    return normalize(np.random.RandomState(seed).randint(0, 256, (batch, frames, height, width, 3)).astype(np.uint8))


def weight(name, shape):
    """The README's weight of a PyTorch name."""
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        x = 1 + 0.1 * x if name.endswith('weight') else 0.1 * x
    else:
        x /= np.sqrt(np.prod(shape[1:]))
    return x.astype(np.float32)


def given(params):
    """What tensors do not say, off the parameters (or their shapes) that they go to."""
    if any('relative_position_table' in path for path in trees.flatten(params)):
        return architecture.Given()
    heads = {path: leaf.shape[3] for path, leaf in trees.flatten(params).items() if path.endswith('qkv/kernel')}
    decoders = [n for path, n in heads.items() if path.startswith('decoders_')]
    encoders = [n for path, n in heads.items() if not path.startswith('decoders_')]
    return architecture.Given(heads=encoders[0], decoder_heads=decoders[0] if decoders else None)


def to_ours(kind, weights, params):
    """PyTorch-named arrays, through the converter, as a tree like `params` (arrays or abstract shapes)."""
    family = families.get(FAMILY.get(kind, kind))
    source = files.Source.of(weights)
    found, _ = command.understand(source, family, given(params)).read(source)
    leaves = {path: leaf.read() for path, leaf in found.items()}
    if kind.endswith('_teacher'):  # an encoder alone, whose final norm the features never pass
        leaves = {path.removeprefix('backbone/'): leaf for path, leaf in leaves.items() if '/norm/' not in path}
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        path: leaf.shape for path, leaf in trees.flatten(params).items()
    }
    return trees.unflatten(leaves)


def to_torch(kind, tree, shapes):
    """A tree like our parameters, through the converter, as {PyTorch name: array of `shapes[name]`}."""
    family = families.get(FAMILY.get(kind, kind))
    named = files.Source(shapes={n: tuple(s) for n, s in shapes.items()})
    model = models.read(family, named, given(tree), average=False)
    leaves = trees.flatten(jax.tree.map(np.array, tree))  # copies: they are rearranged in place
    shapes_here = {path: leaf.shape for path, leaf in leaves.items()}
    found = rules.to_theirs(models.make_rules(family, model), {}, leaves, shapes_here)
    if isinstance(family, swin_families.SwinFamily):  # cases of the backbone alone go without its prefix
        found = {n if n in shapes else family.written(n): array for n, array in found.items()}
    assert {name: list(array.shape) for name, array in found.items()} == {n: list(s) for n, s in shapes.items()}
    return found


def teacher_params(kind, shapes, params):
    """The README's weights of a teacher."""
    return to_ours(kind, {n: weight(n, s) for n, s in shapes.items()}, params)


def assert_summaries(got, want, case, quantity):
    """Compares {name: array} with {name: {'norm', 'head'}} of gradients or parameters."""
    assert got.keys() == want.keys()
    names = list(got)
    norms = [np.linalg.norm(got[name]) for name in names]
    assert_close(norms, [want[name]['norm'] for name in names], case, f'{quantity}, norms', rtol=GRADIENT)
    heads = [got[name].reshape(-1)[: len(want[name]['head'])] for name in names]
    stored = np.concatenate([want[name]['head'] for name in names])
    assert_close(np.concatenate(heads), stored, case, f'{quantity}, first values', rtol=GRADIENT)
