"""What every golden case shares: files, the README's weights and clips, and the PyTorch names of our parameters.

The table is for tests only; the product's converter of published checkpoints is another, stricter thing.
"""

import contextlib
import functools
import json
import zlib
from pathlib import Path

import jax
import numpy as np

from mvdjax import trees

GOLDEN = Path(__file__).parent / 'golden'
FORWARD = {'rtol': 1e-4, 'atol': 1e-4}  # the tolerances of the golden README
LOSS = {'rtol': 1e-5, 'atol': 0}
GRADIENT = 1e-3
QUICK = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
    'xla_cpu_use_fusion_emitters': False,
}

# First prefix that fits -> prefix of our path, in the unrolled layout ('block_0', ...).
ROOTS = {
    'image_teacher': (('blocks.', 'encoder/block_'), ('', '')),
    'video_teacher': (('encoder.blocks.', 'encoder/block_'), ('encoder.', '')),
    'classifier': (
        ('fc_norm.', 'fc_norm/'),
        ('head.', 'head/'),
        ('blocks.', 'backbone/encoder/block_'),
        ('', 'backbone/'),
    ),
    'mvd': (
        ('decoder_img.blocks.', 'decoders_image/decoder/block_'),
        ('decoder_img.', 'decoders_image/'),
        ('down_img.', 'decoders_image/embed/'),
        ('mask_token_img', 'decoders_image/mask_token'),
        ('decoder_vid.blocks.', 'decoders_video/decoder/block_'),
        ('decoder_vid.', 'decoders_video/'),
        ('down_vid.', 'decoders_video/embed/'),
        ('mask_token_vid', 'decoders_video/mask_token'),
        ('blocks.', 'backbone/encoder/block_'),
        ('', 'backbone/'),
    ),
    'videomae': (
        ('decoder.blocks.', 'decoders_pixels/decoder/block_'),
        ('decoder.', 'decoders_pixels/'),
        ('encoder_to_decoder.', 'decoders_pixels/embed/'),
        ('mask_token', 'decoders_pixels/mask_token'),
        ('encoder.blocks.', 'backbone/encoder/block_'),
        ('encoder.', 'backbone/'),
    ),
    'mae': (
        ('decoder_blocks.', 'decoders_pixels/decoder/block_'),
        ('decoder_embed.', 'decoders_pixels/embed/'),
        ('decoder_norm.', 'decoders_pixels/norm/'),
        ('decoder_pred.', 'decoders_pixels/head/'),
        ('mask_token', 'decoders_pixels/mask_token'),
        ('blocks.', 'backbone/encoder/block_'),
        ('', 'backbone/'),
    ),
}


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


def assert_array(got, name, key, **tolerance):
    """Compares an array with a stored one, thinned or whole, and with the whole array's statistics."""
    got = np.asarray(got)
    info = golden(name)['arrays'][key]
    assert list(got.shape) == info['shape']
    want = model_arrays(name)[key]
    np.testing.assert_allclose(got.reshape(-1)[:: info['stride']], want.reshape(-1), **(tolerance or FORWARD))
    np.testing.assert_allclose([got.mean(), got.std(), np.abs(got).max()], info['stats'], **(tolerance or FORWARD))


def clip(seed, batch, frames, size):
    """The README's clip: uint8 (batch, frames, size, size, 3)."""
    return np.random.RandomState(seed).randint(0, 256, (batch, frames, size, size, 3)).astype(np.uint8)


def weight(name, shape):
    """The README's weight of a PyTorch name."""
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        x = 1 + 0.1 * x if name.endswith('weight') else 0.1 * x
    else:
        x /= np.sqrt(np.prod(shape[1:]))
    return x.astype(np.float32)


def our_path(kind, name):
    """The path, in the unrolled layout, of a PyTorch parameter."""
    torch_prefix, prefix = next((t, p) for t, p in ROOTS[kind] if name.startswith(t))
    path = (prefix + name.removeprefix(torch_prefix).replace('.', '/')).replace('patch_embed/proj', 'patch_embed')
    *_, module, leaf = ['', *path.split('/')]
    if leaf == 'weight':
        path = path.removesuffix('weight') + ('scale' if 'norm' in module else 'kernel')
    return path


def _permutation(torch_shape):
    """Axes of a PyTorch tensor in our order: (out, in) -> (in, out); (out, c, [t,] h, w) -> ([t,] h, w, c, out)."""
    return {2: (1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}.get(len(torch_shape), tuple(range(len(torch_shape))))


def to_ours(kind, weights, params):
    """PyTorch-named arrays as a tree like `params` (arrays or abstract shapes); every name must have its place."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(trees.unstack_blocks(zeros)).items()}
    found = {our_path(kind, name): w.transpose(_permutation(w.shape)) for name, w in weights.items()}
    assert found.keys() == shapes.keys()
    return trees.stack_blocks(trees.unflatten({path: w.reshape(shapes[path]) for path, w in found.items()}))


def to_torch(kind, tree, shapes):
    """A tree like our parameters as {PyTorch name: array of `shapes[name]`}."""
    flat = trees.flatten(trees.unstack_blocks(jax.tree.map(np.asarray, tree)))
    assert flat.keys() == {our_path(kind, name) for name in shapes}
    found = {}
    for name, shape in shapes.items():
        axes = _permutation(shape)
        x = flat[our_path(kind, name)].reshape([shape[axis] for axis in axes])
        found[name] = x.transpose(np.argsort(axes))
    return found


def teacher_params(kind, shapes, params):
    """The README's weights of a teacher, whose final norm the features never pass."""
    weights = {n: weight(n, s) for n, s in shapes.items() if not n.removeprefix('encoder.').startswith('norm.')}
    return to_ours(kind, weights, params)


def assert_summaries(got, want):
    """Compares {name: array} with {name: {'norm', 'head'}} of gradients or parameters."""
    assert got.keys() == want.keys()
    for name, array in got.items():
        expected = want[name]
        np.testing.assert_allclose(np.linalg.norm(array), expected['norm'], rtol=GRADIENT, err_msg=name)
        head = array.reshape(-1)[: len(expected['head'])]
        np.testing.assert_allclose(head, expected['head'], rtol=GRADIENT, err_msg=name)
