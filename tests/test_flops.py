"""FLOPs by formula against published counts, every matrix product that is traced, and the compiler's own count."""

from typing import Any

import jax
import numpy as np
import pytest
from small_runs import CONFIGS
from traced_flops import products

from mvdjax import config as configs
from mvdjax import flops, hardware
from mvdjax.tasks import classify, mae, mvd
from mvdjax.tasks.base import build_vit

MASK = {'kind': 'tube', 'ratio': 0.5}
TINY = {'width': 32, 'depth': 2, 'heads': 2}
DECODER = {'width': 16, 'depth': 1, 'heads': 2}
IMAGE = {**TINY, 'patch': (1, 14, 14), 'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full'}
TASKS: dict[str, tuple[Any, dict[str, tuple[int, ...]]]] = {
    'clips': (mae.Task(TINY, DECODER, MASK, 'videomae'), {'video': (2, 4, 32, 48, 3), 'mask': (2, 12)}),
    'images': (
        mae.Task({**IMAGE, 'mlp_ratio': 2.0}, DECODER, {'kind': 'random', 'ratio': 0.75}, 'mae'),
        {'video': (3, 1, 28, 28, 3), 'mask': (3, 4)},
    ),
    'both_teachers': (
        mvd.Task(
            TINY,
            {
                'image': {'model': IMAGE, 'checkpoint': 'random', 'decoder': DECODER},
                'video': {'model': {**TINY, 'width': 64}, 'checkpoint': 'random', 'decoder': {**DECODER, 'depth': 3}},
            },
            MASK,
        ),
        {'video': (2, 4, 32, 32, 3), 'teacher_video': (2, 4, 28, 28, 3), 'mask': (2, 8)},
    ),
    'classifier': (classify.Task({**TINY, 'depth': 3}, 7), {'video': (4, 6, 32, 32, 3), 'label': (4,)}),
}
DTYPES = {'mask': np.bool_, 'label': np.int32}


def abstract(shapes):
    return {name: jax.ShapeDtypeStruct(shape, DTYPES.get(name, np.uint8)) for name, shape in shapes.items()}


def gradient(task, batch):
    """(the gradient of a task's loss as a function, its abstract arguments)."""
    rngs = {name: jax.random.key(0) for name in task.rng_names}

    def function(params, frozen, batch):
        return jax.grad(lambda p: task.loss(p, frozen, batch, rngs, train=True)[0])(params)

    params = jax.eval_shape(task.init, jax.random.key(0), batch)
    return function, (params, jax.eval_shape(task.frozen), batch)


@pytest.mark.parametrize('name', TASKS)
def test_the_formula_counts_every_matrix_product_and_no_other(name):
    task, shapes = TASKS[name]
    function, arguments = gradient(task, abstract(shapes))
    counted = products(jax.make_jaxpr(function)(*arguments).jaxpr)
    assert sum(task.flops(abstract(shapes)).values()) == pytest.approx(counted, rel=1e-12)


def test_what_remat_computes_twice_is_not_counted():
    task, shapes = TASKS['clips']
    batch = abstract(shapes)
    again = mae.Task({**TINY, 'remat': 'full'}, {**DECODER, 'remat': 'full'}, MASK, 'videomae')
    function, arguments = gradient(again, batch)
    assert again.flops(batch) == task.flops(batch)
    executed, model = products(jax.make_jaxpr(function)(*arguments).jaxpr), sum(again.flops(batch).values())
    assert 1.05 * model < executed < 4 / 3 * model


def test_the_compiler_counts_the_same_where_it_can_see_every_layer():
    """ViT-B on whole clips, unrolled and lowered but not compiled: beside the products it counts norms and such."""
    task = mae.Task(
        {'variant': 'B', 'pos_embed': 'sincos1d', 'scan': False},
        {'width': 384, 'depth': 4, 'heads': 6, 'scan': False},
        {'kind': 'tube', 'ratio': 0.9},
        'videomae',
    )
    batch = abstract({'video': (1, 16, 224, 224, 3), 'mask': (1, 1568)})
    function, arguments = gradient(task, batch)
    compiler = jax.jit(function).lower(*arguments).cost_analysis()['flops']
    assert sum(task.flops(batch).values()) == pytest.approx(compiler, rel=0.03)
    assert sum(task.flops(batch).values()) < compiler


@pytest.mark.parametrize(('variant', 'giga'), [('S', 57), ('B', 180), ('L', 597), ('H', 1192)])
def test_a_forward_pass_costs_what_is_published(variant, giga):
    """Multiply-adds of a 16 x 224 x 224 view, as printed for VideoMAE and MVD."""
    assert flops.encoder(build_vit({'variant': variant}), 1568) / 2e9 == pytest.approx(giga, rel=0.005)


def test_a_distillation_is_mostly_teachers_and_decoders():
    """ViT-B from ViT-B teachers: 1.09 TFLOP per clip, 59 % of it teachers."""
    task = configs.make_task(configs.load(f'{CONFIGS}/mvd/k400_vit_b_from_b_400.py'))
    parts = task.flops(abstract({'video': (8, 16, 224, 224, 3), 'mask': (8, 1568)}))
    total = sum(parts.values())
    assert total / 8 == pytest.approx(1.09e12, rel=0.01)
    assert (parts['image_teacher'] + parts['video_teacher']) / total == pytest.approx(0.59, abs=0.01)


def test_peak_rates():
    assert hardware.peak_flops('TPU v5 lite') == hardware.peak_flops('v5e') == 197e12
    assert hardware.peak_flops('TPU v5') == hardware.peak_flops('V5P') == 459e12
    assert hardware.peak_flops('NVIDIA H200') == hardware.peak_flops('NVIDIA H100 80GB HBM3') == 989.4e12
    assert hardware.peak_flops('NVIDIA A100-SXM4-40GB', 'float32') == 156e12
    assert hardware.peak_flops('V100') is None
    assert hardware.peak_flops('cpu') is None
    with pytest.raises(ValueError, match='float8'):
        hardware.peak_flops('H100', 'float8')


def test_every_device_of_the_table_has_one_name():
    names = [name.lower() for d in hardware.DEVICES for name in {d.name, *d.kinds}]
    assert len(names) == len(set(names))
    for device in hardware.DEVICES:
        assert hardware.find(device.kinds[0]) is hardware.find(device.name) is device
        assert 0 < device.float32 <= (device.bfloat16 or device.float32)
