"""Two-stream steps of Swins, ours and the published backbone's, for `measure.interleaved`: forward and backward passes.

The published backbone comes from a checkout of BEVT (xyzforever/BEVT), one file of it. It needs PyTorch and einops; of
mmcv, mmaction and timm it needs registries, loaders and two helpers, for which there are stand-ins here. Both sides do
the same job: clips and images of 224 pixels, half of the patches masked, the fused tokens through one linear head over
the vocabulary, mean cross-entropy at all positions, gradients of all parameters. No optimiser, no data.
"""

import importlib.util
import os
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from mvdjax.bench.measure import Candidate, Cost, Make
from mvdjax.errors import UserError

FILE = 'mmaction/models/backbones/swin_transformer_bevt.py'
FRAMES, SIDE, VOCABULARY = 16, 224, 8192


def candidates(
    checkout: str, variant: str, clips: int, images: int, dtype: str = 'float32', threads: int = 0, remat: str = 'none'
) -> list[Candidate]:
    """What to compare.

    Args:
      checkout: folder of the published code; '' compares nothing.
      variant: of the Swin.
      clips, images: per step.
      dtype: compute type, 'float32' or 'bfloat16' (autocast there).
      threads: PyTorch's on a CPU; 0 leaves it its own number.
      remat: ours, see `VideoSwin`; the published one keeps everything.
    """
    common = {'variant': variant, 'clips': clips, 'images': images, 'dtype': dtype}
    found = [Candidate('ours', 'mvdjax.bench.peer_swin:ours', {**common, 'remat': remat})]
    if checkout:
        arguments = {**common, 'checkout': os.path.abspath(checkout), 'threads': threads}
        found.append(Candidate('published', 'mvdjax.bench.peer_swin:published', arguments))
    return found


def _inputs(clips: int, images: int) -> dict[str, np.ndarray]:
    """Random pixels, channels last, masks and labels, the same for both."""
    rng = np.random.default_rng(0)
    sizes = {'clips': (clips, FRAMES), 'images': (images, 1)}
    found: dict[str, np.ndarray] = {}
    for name, (count, frames) in sizes.items():
        found[name] = rng.standard_normal((count, frames, SIDE, SIDE, 3), np.float32)
        found[f'{name}_mask'] = rng.random((count, max(1, frames // 2), 14, 14)) < 0.5
        found[f'{name}_labels'] = rng.integers(0, VOCABULARY, (count, frames * 14 * 14))
    return found


def ours(variant: str, clips: int, images: int, dtype: str, remat: str) -> Make:
    """Our model, compiled; a batch counts its clips."""
    import jax
    import jax.numpy as jnp

    from mvdjax.models.bevt import MaskedSwin
    from mvdjax.tasks.base import build_swin

    model = MaskedSwin(build_swin({'variant': variant, 'dtype': dtype, 'remat': remat}), VOCABULARY)
    batch = jax.device_put(_inputs(clips, images))

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        total = jnp.float32(0)
        for name in ('clips', 'images'):
            scores, _ = model.apply({'params': params}, batch[name], batch[f'{name}_mask'], image=name == 'images')
            right = jnp.take_along_axis(scores, batch[f'{name}_labels'][..., None], axis=-1)[..., 0]
            total += jnp.mean(jax.nn.logsumexp(scores, axis=-1) - right)
        return total

    def init(key: jax.Array) -> Any:
        streams = (batch['clips'][:1], batch['clips_mask'][:1], batch['images'][:1], batch['images_mask'][:1])
        return model.init(key, *streams, method='two_streams')['params']

    params = jax.jit(init)(jax.random.key(0))
    gradient = jax.jit(jax.value_and_grad(loss))

    def make(_: int) -> Cost:
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(gradient(params, batch))
        return Cost(clips, time.process_time() - cpu, time.perf_counter() - wall)

    return make


def _module(name: str, **contents: Any) -> types.ModuleType:
    """A stand-in that can be imported, with what is taken from it."""
    module = types.ModuleType(name)
    module.__path__ = []
    for key, value in contents.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module


def _unused(*_: Any, **__: Any) -> None:
    raise NotImplementedError('a stand-in for what loads weights and writes logs')


class _Registry:
    """Takes classes and leaves them as they are."""

    def register_module(self) -> Callable[[type], type]:
        """A decorator."""
        return lambda cls: cls


def published_class(checkout: str) -> Any:
    """The class of the published backbone.

    Raises:
      UserError: no such file, or PyTorch or einops is missing.
    """
    file = os.path.join(checkout, FILE)
    if not os.path.exists(file):
        raise UserError(f'{checkout} has no {FILE}: give the folder of a checkout of the published BEVT code')
    try:
        import einops  # noqa: F401
        import torch
    except ImportError as error:
        raise UserError(
            f'the published backbone needs PyTorch and einops ({error}): pip install torch einops'
        ) from error

    def pair(value: Any) -> Any:
        return value if isinstance(value, tuple) else (value, value)

    class DropPath(torch.nn.Identity):
        """Never acts here: the rate is zero."""

    trunc_normal = torch.nn.init.trunc_normal_
    _module('timm')
    _module('timm.models')
    _module('timm.models.layers', DropPath=DropPath, to_2tuple=pair, trunc_normal_=trunc_normal)
    _module('mmcv')
    _module('mmcv.runner', load_checkpoint=_unused, _load_checkpoint=_unused, load_state_dict=_unused)
    _module('mmaction')
    _module('mmaction.utils', get_root_logger=_unused)
    _module('mmaction.models')
    _module('mmaction.models.builder', BACKBONES=_Registry())
    _module('mmaction.models.backbones')
    spec = importlib.util.spec_from_file_location('mmaction.models.backbones.swin_transformer_bevt', file)
    if spec is None or spec.loader is None:
        raise UserError(f'{file} is no Python file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SwinTransformerBEVT


def published(variant: str, clips: int, images: int, dtype: str, checkout: str, threads: int) -> Make:
    """The published backbone with a linear head; a batch counts its clips."""
    build = published_class(checkout)
    import torch

    from mvdjax.models.video_swin import VARIANTS

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    size = VARIANTS[variant]
    backbone = build(
        patch_size=(2, 4, 4),
        embed_dim=size.width,
        depths=list(size.depths),
        num_heads=list(size.heads),
        window_size=size.window,
        drop_path_rate=0.0,
        patch_norm=True,
    )
    head = torch.nn.Linear(size.width * 2 ** (len(size.depths) - 1), VOCABULARY)
    model = torch.nn.ModuleDict({'backbone': backbone, 'head': head}).to(device).train()
    batch = {name: torch.from_numpy(value).to(device) for name, value in _inputs(clips, images).items()}
    video = batch['clips'].permute(0, 4, 1, 2, 3).contiguous()
    still = batch['images'].permute(0, 1, 4, 2, 3)[:, 0].contiguous()
    streams = ((video, batch['clips_mask'], 'clips', False), (still, batch['images_mask'][:, 0], 'images', True))
    cast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == 'bfloat16')

    def one() -> None:
        model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        with cast:
            for pixels, mask, name, image in streams:
                scores = model['head'](model['backbone'](pixels, mask, is_img=image))
                labels = batch[f'{name}_labels'].reshape(-1)
                total = total + torch.nn.functional.cross_entropy(scores.float().flatten(0, 1), labels)
        total.backward()

    def make(_: int) -> Cost:
        wall, cpu = time.perf_counter(), time.process_time()
        one()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        return Cost(clips, time.process_time() - cpu, time.perf_counter() - wall)

    return make
