"""The peer of `mvdjax bench step --peer=DIR`: training steps of the published MVD models, from a checkout of theirs.

Only the models come from there (modeling_student, modeling_teacher, modeling_video_teacher, modeling_finetune); the
step around them is ours and does what their engines do: teachers without gradient, losses read back, gradients unscaled
and measured, AdamW. PyTorch, einops and timm 0.4.12 have to be installed; none is a dependency of ours.

Modes:
    float32   no autocast (CPU, or for comparison).
    shipped   as published: float16 autocast with a gradient scaler, attention that writes its matrix to memory.
    tuned     what a user could make of it: bfloat16, fused attention, torch.compile.
"""

import collections.abc
import contextlib
import importlib
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mvdjax.bench.measure import Cost, Make
from mvdjax.errors import UserError

MODES = ('float32', 'shipped', 'tuned')
SIZES = {'S': 'small', 'B': 'base', 'L': 'large', 'H': 'huge'}
TUBELET = 2
BETAS = {'mvd': (0.9, 0.95), 'classify': (0.9, 0.999)}


class _StandIn(types.ModuleType):
    """A module any of whose names can be imported, and none used."""

    def __init__(self, name: str) -> None:
        """An empty package."""
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """A class of that name."""
        if name.startswith('__'):
            raise AttributeError(name)
        return type(name, (), {})


def _published(checkout: str) -> Callable[[str], types.ModuleType]:
    """Imports modules of the checkout.

    timm 0.4.12 is older than any current PyTorch: it asks for `torch._six`, and for torchvision, which its image
    transforms need and the models do not. The models ask for `np.float`. Runs in a process of its own, see `measure`.
    """
    try:
        import einops  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(f'--peer needs PyTorch and einops ({error}): pip install torch einops') from error
    six = types.ModuleType('torch._six')
    six.container_abcs, six.string_classes, six.int_classes = collections.abc, (str, bytes), int  # type: ignore[attr-defined]
    sys.modules.setdefault('torch._six', six)
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # missing, or built for another PyTorch
        for name in [key for key in sys.modules if key.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        for name in ('torchvision', 'torchvision.transforms', 'torchvision.transforms.functional'):
            sys.modules[name] = _StandIn(name)
            parent, _, child = name.rpartition('.')
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
    if not hasattr(np, 'float'):
        np.float = float  # type: ignore[attr-defined]  # noqa: NPY001
    sys.path.insert(0, checkout)

    def load(name: str) -> types.ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f'--peer={checkout}: {name} cannot be imported ({error}); give the folder of a checkout of the '
                'published MVD code, and pip install timm==0.4.12'
            ) from error

    return load


def _fuse(torch: Any, module: types.ModuleType) -> None:
    """Gives a published attention class PyTorch's fused attention."""

    def forward(self: Any, x: Any) -> Any:
        rows, tokens, width = x.shape
        q_bias = getattr(self, 'q_bias', None)
        bias = self.qkv.bias if q_bias is None else torch.cat((q_bias, torch.zeros_like(q_bias), self.v_bias))
        joined = torch.nn.functional.linear(x, self.qkv.weight, bias)
        q, k, v = joined.view(rows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(rows, tokens, width))

    module.Attention.forward = forward


def step(checkout: str, task: str, models: Mapping[str, Any], batch: int, mode: str, steps: int, threads: int) -> Make:
    """A factory for `measure`: training steps of the published models on random clips of 16 x 224 x 224.

    Args:
      checkout: folder of the published code.
      task: 'mvd' or 'classify'.
      models: what to build, see `_distillation` and `_finetuning`.
      batch: clips per step.
      mode: of MODES.
      steps: per measured batch.
      threads: of the CPU; 0 leaves PyTorch its own number.

    Raises:
      UserError: the code or a package it needs cannot be imported.
    """
    load = _published(checkout)
    import torch

    if threads:
        torch.set_num_threads(threads)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.manual_seed(0)
    build = {'mvd': _distillation, 'classify': _finetuning}[task]
    modules, loss_of, rows = build(torch, load, models, batch, device)
    trained = next(iter(modules.values()))
    if mode == 'tuned':
        for name in ('modeling_finetune', *(('timm.models.vision_transformer',) if task == 'mvd' else ())):
            _fuse(torch, load(name))
        for module in modules.values():
            module.compile()
    options: dict[str, Any] = {'lr': 1e-4, 'betas': BETAS[task], 'weight_decay': 0.05}
    optimizer = torch.optim.AdamW(trained.parameters(), **options, fused=True if mode == 'tuned' else None)
    scaler = torch.amp.GradScaler(device.type, enabled=mode == 'shipped')
    dtype = torch.float16 if mode == 'shipped' else torch.bfloat16

    def one() -> None:
        cast = contextlib.nullcontext() if mode == 'float32' else torch.autocast(device.type, dtype)
        with cast:
            losses = loss_of(modules)
            total = sum(losses)
        if mode == 'shipped':
            for value in (*losses, total):
                value.item()  # read back one by one, as published
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.get_total_norm([p.grad for p in trained.parameters() if p.grad is not None])
        scaler.step(optimizer)
        scaler.update()
        if device.type == 'cuda' and mode == 'shipped':
            torch.cuda.synchronize()

    def run(_: int) -> Cost:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            one()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = {'device_peak_mib': torch.cuda.max_memory_allocated() / 2**20} if device.type == 'cuda' else {}
        return Cost(rows * steps, cpu, wall, peak)

    return run


def _distillation(torch: Any, load: Any, models: Mapping[str, Any], batch: int, device: Any) -> Any:
    """Student and teachers. `models`: variants 'student' and 'teachers', 'teacher_width', 'drop_path', decoder's size.

    Returns:
      ({'student', 'image', 'video'}, their loss function, clips per step).
    """
    students, images, videos = (load(f'modeling_{name}') for name in ('student', 'teacher', 'video_teacher'))
    size, teachers = SIZES[models['student']], SIZES[models['teachers']]
    student = getattr(students, f'pretrain_masked_video_student_{size}_patch16_224')(
        drop_path_rate=models['drop_path'],
        decoder_depth=models['depth'],
        feat_decoder_embed_dim=models['width'],
        feat_decoder_num_heads=models['heads'],
        num_frames=16,
        tubelet_size=TUBELET,
        target_feature_dim=models['teacher_width'],
        target_video_feature_dim=models['teacher_width'],
    )
    patch = 14 if models['teachers'] == 'H' else 16
    side = 14 * patch
    image = getattr(images, f'mae_teacher_vit_{teachers}_patch{patch}')(img_size=side)
    video = getattr(videos, f'pretrain_videomae_teacher_{teachers}_patch16_224')(img_size=224)
    modules = {'student': student.to(device).train()}
    modules |= {n: m.to(device).eval().requires_grad_(False) for n, m in (('image', image), ('video', video))}
    clips = torch.randn(batch, 3, 16, 224, 224, device=device)
    frames = torch.randn(batch * 16 // TUBELET, 3, side, side, device=device)
    tube = np.random.default_rng(0).permuted(np.tile(np.arange(196) < int(0.9 * 196), (batch, 1)), axis=1)
    mask = torch.from_numpy(np.tile(tube, (1, 8))).to(device)
    smooth = torch.nn.SmoothL1Loss()

    def loss(modules: Mapping[str, Any]) -> list[Any]:
        predictions = modules['student'](clips, mask)
        with torch.no_grad():
            targets = (modules['image'](frames), modules['video'](clips))
        found = []
        for prediction, target in zip(predictions, targets, strict=True):
            wanted = target.reshape(batch, -1, target.shape[-1])[mask].reshape(prediction.shape)
            found.append(smooth(prediction, wanted))
        return found

    return modules, loss, batch


def _finetuning(torch: Any, load: Any, models: Mapping[str, Any], batch: int, device: Any) -> Any:
    """A classifier. `models`: 'model' (variant), 'drop_path', 'classes'; `batch` counts clips. Returns as above."""
    build = getattr(load('modeling_finetune'), f'vit_{SIZES[models["model"]]}_patch16_224')
    model = build(
        num_classes=models['classes'], all_frames=16, tubelet_size=TUBELET, drop_path_rate=models['drop_path']
    )
    clips = torch.randn(batch, 3, 16, 224, 224, device=device)
    soft = torch.softmax(torch.randn(batch, models['classes'], device=device), dim=-1)

    def loss(modules: Mapping[str, Any]) -> list[Any]:
        scores = modules['model'](clips)
        return [torch.sum(-soft * torch.log_softmax(scores, dim=-1), dim=-1).mean()]

    return {'model': model.to(device).train()}, loss, batch
