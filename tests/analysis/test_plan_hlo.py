"""Reading compiled programs: hand-written ones in the compilers' manner, and a small real one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mvdjax.analysis.plan_hlo import Collective, Program, array_bytes, elements

PROGRAM = """HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%layer (stack: f32[5,64,64], x: bf16[4,64]) -> bf16[4,64] {
  %stack = f32[5,64,64]{2,1,0:T(8,128)} parameter(0)
  %x = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %one = f32[1,64,64]{2,1,0:T(8,128)} dynamic-slice(%stack, %zero, %zero, %zero), dynamic_slice_sizes={1,64,64}
  %weight = f32[64,64]{1,0:T(8,128)} bitcast(%one)
  ROOT %product = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %weight), window={size=1}, dim_labels=0bf_io0->0bf
}

%body (state: (s32[], bf16[4,64], f32[5,64,64])) -> (s32[], bf16[4,64], f32[5,64,64]) {
  %state = (s32[]{:T(128)}, bf16[4,64]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/f32[5,64,64]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %h = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=1
  %w = f32[5,64,64]{2,1,0:T(8,128)} get-tuple-element(%state), index=2
  %next = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %h), kind=kOutput, calls=%layer
  %summed = bf16[4,64]{1,0} all-reduce(%next), replica_groups=mesh['x'=4,'y'=2] {'x'}, to_apply=%add
  ROOT %out = (s32[]{:T(128)}, bf16[4,64]{1,0}, f32[5,64,64]{2,1,0:T(8,128)}) tuple(%i, %summed, %w)
}

%condition (state: (s32[], bf16[4,64], f32[5,64,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %cstate = (s32[]{:T(128)}, bf16[4,64]{1,0}, f32[5,64,64]{2,1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%cstate), index=0
  ROOT %less = pred[]{:T(512)} compare(%n, %limit), direction=LT
}

%until (flag: (pred[])) -> pred[] {
  %flag = (pred[]) parameter(0)
  ROOT %go = pred[] get-tuple-element(%flag), index=0
}

%again (same: (pred[])) -> (pred[]) {
  ROOT %same = (pred[]) parameter(0)
}

ENTRY %main (p0: f32[5,64,64], p1: bf16[4,64], p2: pred[]) -> bf16[4,64] {
  %p0 = f32[5,64,64]{2,1,0:T(8,128)} parameter(0)
  %p1 = bf16[4,64]{1,0} parameter(1)
  %p2 = pred[] parameter(2)
  %start = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, bf16[4,64]{1,0}, f32[5,64,64]{2,1,0:T(8,128)}) tuple(%start, %p1, %p0)
  %loop = (s32[], bf16[4,64]{1,0}, f32[5,64,64]{2,1,0:T(8,128)}) while(%first), condition=%condition, body=%body
  %h.1 = bf16[4,64]{1,0} get-tuple-element(%loop), index=1
  %gather = (bf16[4,64]{1,0}, bf16[32,64]{1,0}) all-gather-start(%h.1), replica_groups=[1,8]<=[8], dimensions={0}
  %gathered = bf16[32,64]{1,0} all-gather-done(%gather)
  %scatter = bf16[4,64]{1,0} reduce-scatter(%gathered), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %sent = bf16[4,64]{1,0} collective-permute(%scatter), source_target_pairs={{0,1},{1,0}}
  %flags = (pred[]) tuple(%p2)
  %forever = (pred[]) while(%flags), condition=%until, body=%again
  ROOT %copied = bf16[4,64]{1,0} copy(%sent)
}
"""


def test_loops_count_as_often_as_they_run():
    program = Program(PROGRAM)
    assert program.flops() == 5 * 2 * 4 * 64 * 64
    assert program.loops_of_unknown_length == 1  # the second: no constant says when it ends


def test_collectives_of_every_notation():
    size = 4 * 64 * 2
    assert Program(PROGRAM).collectives() == [
        Collective('all-gather', 8, 1, 8 * size, 7 * size),
        Collective('all-reduce', 4, 5, 5 * size, 5 * size * 2 * 3 / 4),
        Collective('collective-permute', 2, 1, size, size),
        Collective('reduce-scatter', 4, 1, 8 * size, 8 * size * 3 / 4),
    ]


def test_traffic_is_what_leaves_the_chip():
    """Of a stack of layers one is read; what lives on the chip costs nothing; a copy is read and written."""
    work = Program(PROGRAM).work()
    assert [(w.flops, w.bytes, w.times) for w in work] == [
        (2 * 4 * 64 * 64, 64 * 64 * 4, 5),
        (0, 2 * 4 * 64 * 2, 1),
    ]


@pytest.mark.parametrize(
    ('operands', 'line', 'flops'),
    [
        # x (4, 1568, 768) by a kernel (768, 3, 12, 64): the window meets one place, the rest is padding
        (
            ('bf16[4,1568,768]', 'bf16[768,3,12,64]'),
            'bf16[4,1568,3,12,64] convolution(%x, %k), window={size=1x3x12 pad=0_0x2_2x11_11 rhs_reversal=0x1x1}, '
            'dim_labels=0bf12_i12o0->0b12f',
            2.0 * 4 * 1568 * 768 * 3 * 768,
        ),
        # queries by keys per sample and head: base-dilated, one place for each
        (
            ('bf16[4,1568,12,64]', 'bf16[4,1568,12,64]'),
            'f32[4,12,1568,1568] convolution(%x, %k), window={size=4x12 stride=3x11 lhs_dilate=4x12}, '
            'dim_labels=0b1f_0o1i->01bf',
            2.0 * 4 * 12 * 1568 * 1568 * 64,
        ),
        # heads and their channels contracted at once
        (
            ('bf16[4,1568,12,64]', 'bf16[12,64,768,1]'),
            'bf16[4,1568,768,1] convolution(%x, %k), window={size=1x12}, dim_labels=0b1f_1io0->0bf1',
            2.0 * 4 * 1568 * 768 * 768,
        ),
        (
            ('f32[6,10]', 'f32[10,7]'),
            'f32[6,7] dot(%x, %k), lhs_contracting_dims={1}, rhs_contracting_dims={0}',
            2.0 * 6 * 7 * 10,
        ),
    ],
)
def test_matrix_products_in_a_compilers_clothes(operands, line, flops):
    x, k = operands
    lines = [
        'ENTRY %main (x: f32[]) -> f32[] {',
        f'  %x = {x} parameter(0)',
        f'  %k = {k} parameter(1)',
        f'  ROOT %y = {line}',
        '}',
    ]
    text = '\n'.join(lines)
    assert Program(text).flops() == flops


def test_types():
    assert array_bytes('(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[], f8e4m3fn[4], s4[4])') == 12 + 1 + 4 + 2
    assert array_bytes('(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[2])', fast=False) == 8
    assert elements('((f32[1], s32[2]{0:T(8)}), bf16[3,4]{1,0}, u32[])') == [
        '(f32[1], s32[2]{0:T(8)})',
        'bf16[3,4]{1,0}',
        'u32[]',
    ]


def test_a_real_program():
    """A scanned stack whose gradient is summed over all devices."""
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,))
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))

    def loss(weights, x):
        return jnp.sum(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0])

    weights = jax.ShapeDtypeStruct((6, 32, 32), np.float32, sharding=whole)
    x = jax.ShapeDtypeStruct((8 * devices, 32), np.float32, sharding=rows)
    program = Program(jax.jit(jax.grad(loss), out_shardings=whole).lower(weights, x).compile().as_text())
    assert program.flops() == 3 * 6 * 2 * 8 * 32 * 32 - 2 * 8 * 32 * 32  # x itself takes no gradient
    assert program.loops_of_unknown_length == 0
    sums = [c for c in program.collectives() if c.kind == 'all-reduce']
    assert sum(c.bytes for c in sums) == (6 * 32 * 32 * 4 if devices > 1 else 0)
