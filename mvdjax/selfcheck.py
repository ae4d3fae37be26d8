"""`mvdjax selfcheck`: does this machine give the answers that a checkpoint gave where it was made?

Two short clips travel with the package, H.264 in mp4 and VP9 in webm, drawn by this project's own demo generator. Their
decoded pixels, features and logits are stored beside a checkpoint when it is made; the check decodes and computes them
again and says which of the three differs: the decoder, or the arithmetic.
"""

import argparse
import functools
import hashlib
import importlib.resources
import json
import math
import platform
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvdjax import __version__, attention_check, checkpoints, processes, trees
from mvdjax.console import say
from mvdjax.convert import models
from mvdjax.convert.swin import SwinModel
from mvdjax.data import ops
from mvdjax.data.decode import read_frames
from mvdjax.errors import UserError
from mvdjax.models.bevt import SwinClassifier
from mvdjax.models.vit import Classifier
from mvdjax.tasks.base import model_input
from mvdjax.tasks.tokenizer import KINDS, make_tokenizer

CLIPS = ('h264.mp4', 'vp9.webm')
TOKENIZER_INPUT = (2, 64, 64)  # frames and pixels: tokenizers take any that divide, and this many at most is quick
FILE = 'selfcheck.json'
TOLERANCE = 1e-3  # of the largest value: far above float32 noise between machines, far below what changes a score


def read_clip(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A built-in clip as a model input: evenly spread frames, resized to cover the size, centre crop.

    Args:
      name: one of `CLIPS`.
      shape: (frames, height, width, channels); other channels than 3 repeat the mean of the colours.

    Returns:
      uint8 array of that shape.
    """
    count, height, width, channels = shape
    places: list[np.ndarray] = []

    def pick(frames: int) -> np.ndarray:
        unique, inverse = np.unique(np.linspace(0, frames - 1, count).astype(int), return_inverse=True)
        places.append(inverse)
        return unique

    with importlib.resources.as_file(importlib.resources.files('mvdjax') / 'assets' / name) as path:
        frames = read_frames(path, pick)[places[-1]]
    clip = ops.center_crop(ops.short_side_resize(frames, (height, width)), (height, width))
    if channels != 3:
        clip = np.repeat(clip.mean(axis=-1, keepdims=True).astype(np.uint8), channels, axis=-1)
    return clip


def _module(model: models.Model) -> tuple[Callable[..., Any], str]:
    """What answers, as a function of variables and input, and which part of the parameters it takes."""
    if isinstance(model, SwinModel):
        if model.num_classes is not None:
            return SwinClassifier(model.module(), model.num_classes).apply, ''
        return functools.partial(model.module().apply, image=not model.clips), 'backbone/'
    if model.num_classes is not None:
        return Classifier(model.vit(), model.num_classes).apply, ''
    return model.vit().apply, 'backbone/'


def _tokenizer(meta: Mapping[str, Any]) -> tuple[Callable[..., Any], tuple[int, ...]]:
    """What answers for a tokenizer, as a function of parameters and uint8 clips, and the shape of a clip."""
    section = {'kind': meta['backbone']['kind'], 'checkpoint': '', 'model': meta['config']['task']['model']}
    found = make_tokenizer(section)

    def run(params: Any, video: jax.Array) -> dict[str, jax.Array]:
        return {'features': found.features(params, video)}

    return run, (*TOKENIZER_INPUT, meta['input_shape'][-1])


def _backbone(model: models.Model) -> tuple[Callable[..., Any], tuple[int, ...], str]:
    """The same for a ViT or a Swin, and which part of the parameters it takes."""
    backbone = model.module()
    apply, prefix = _module(model)

    def run(params: Any, video: jax.Array) -> dict[str, jax.Array]:
        output, info = apply({'params': params}, model_input(video, backbone))
        if model.num_classes is not None:
            return {'features': info['pooled'], 'logits': output}
        tokens = info['last_block'] if 'last_block' in info else info[f'stage{len(model.backbone["depths"])}']
        return {'features': jnp.mean(tokens.astype(jnp.float32), axis=tuple(range(1, tokens.ndim - 1)))}

    return run, model.small_input(), prefix


def answers(checkpoint: str) -> dict[str, Any]:
    """What this machine makes of the built-in clips with a checkpoint.

    Returns:
      {clip: {'pixels': SHA-256 of the model input, 'features': mean of the last block's tokens (of a tokenizer, see
      `tasks.tokenizer`), and for a classifier 'logits'}}.

    Raises:
      UserError: no checkpoint, or not of a ViT, Swin or tokenizer.
    """
    meta = checkpoints.read_meta(checkpoint)
    leaves = checkpoints.StoredParams(checkpoint)
    if meta['backbone'].get('kind') in KINDS:
        run, shape, prefix = *_tokenizer(meta), ''
    else:
        run, shape, prefix = _backbone(models.of_checkpoint(leaves.shapes, meta))
    device = jax.local_devices()[0]
    # One after the other, the largest first, each copied before the next is read: a large model is not held twice.
    needed = sorted((n for n in leaves if n.startswith(prefix)), key=lambda n: -math.prod(leaves.shapes[n]))
    params = trees.unflatten(
        {n.removeprefix(prefix): jax.block_until_ready(jax.device_put(leaves.pop(n), device)) for n in needed}
    )

    compiled = jax.jit(run)
    found = {}
    for name in CLIPS:
        clip = read_clip(name, shape)
        values = {key: np.asarray(value)[0] for key, value in compiled(params, clip[None]).items()}
        pixels = hashlib.sha256(clip.tobytes()).hexdigest()
        found[name] = {'pixels': pixels, **{key: [float(x) for x in value] for key, value in values.items()}}
    return found


def store(checkpoint: str) -> None:
    """Computes the answers, in full precision, and stores them beside the checkpoint's parameters."""
    made = {'mvdjax': __version__, 'jax': jax.__version__, 'device': jax.local_devices()[0].device_kind}
    made['machine'] = platform.machine()
    with jax.default_matmul_precision('highest'):  # or a check on a better machine would fail
        content = {'made_with': made, 'clips': answers(checkpoint)}
    folder = checkpoints.find_step_folder(checkpoint)
    temporary = folder / f'.{FILE}'
    temporary.write_text(json.dumps(content))
    temporary.rename(folder / FILE)


def store_once(checkpoint: str) -> None:
    """`store`, unless there are answers already; what went well up to here never fails for it."""
    if not processes.is_main() or (checkpoints.find_step_folder(checkpoint) / FILE).exists():
        return
    try:
        store(checkpoint)
    except Exception as error:  # noqa: BLE001 - whatever it is, the checkpoint is whole
        say(f'note: no answers for `mvdjax selfcheck` were stored ({type(error).__name__}: {error})')


def compare(stored: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, bool]:
    """A table of what agrees, and whether all numbers do to `TOLERANCE` of the largest."""
    lines, agrees = [], True
    for name, want in stored.items():
        got = found[name]
        same = want['pixels'] == got['pixels']
        parts = [f'pixels {"the same" if same else "differ"}']
        for key in (k for k in want if k != 'pixels'):
            a, b = np.asarray(want[key]), np.asarray(got[key])
            error = float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))
            fits = bool(error <= TOLERANCE)  # false for NaN too
            agrees &= fits
            parts.append(f'{key} within {error:.1e}{"" if fits else " (too far)"}')
            if key == 'logits':
                parts.append(f'top class {"the same" if a.argmax() == b.argmax() else "differs"}')
        lines.append(f'  {name:<9} {", ".join(parts)}')
    return '\n'.join(lines), agrees


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax selfcheck`."""
    parser.add_argument('checkpoint', metavar='CHECKPOINT', nargs='?', help='workdir or checkpoint')
    parser.add_argument('--store', action='store_true', help="store this machine's answers as the right ones")
    parser.add_argument(
        '--attention', action='store_true', help="compare the device's fused attention with XLA's; takes no checkpoint"
    )
    parser.epilog = """examples:
  mvdjax selfcheck runs/mvd_k400_vit_b_from_b_400
  mvdjax selfcheck --attention"""


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax selfcheck`. Fails if the answers differ."""
    if args.attention == bool(args.checkpoint):
        raise UserError('give selfcheck a checkpoint, or --attention and none')
    if args.attention:
        attention_check.check()
        return 0
    folder = checkpoints.find_step_folder(args.checkpoint)
    if args.store:
        store(args.checkpoint)
        say(f'stored the answers of this machine in {folder / FILE}')
        return 0
    if not (folder / FILE).exists():
        raise UserError(
            f'{folder} has no {FILE}: store the answers on a machine that you trust, with '
            f'mvdjax selfcheck {args.checkpoint} --store'
        )
    try:
        content = json.loads((folder / FILE).read_text())
        table, agrees = compare(content['clips'], answers(args.checkpoint))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{folder / FILE} is damaged or of another version ({error!r}): store it again') from error
    say(f'{folder}, made with {", ".join(f"{k} {v}" for k, v in content["made_with"].items())}')
    say(table)
    if not agrees:
        raise UserError(
            f'this machine gives other answers than the one that made the checkpoint (over {TOLERANCE:g}): where '
            'pixels differ look at the decoder (PyAV, FFmpeg), else at the precision (jax_default_matmul_precision)'
        )
    say(f'this machine gives the stored answers, to {TOLERANCE:g}')
    return 0
