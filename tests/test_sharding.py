"""Devices change no number, and what is split among them is never whole: in steps that run and in compiled ones."""

import functools
import math
import re

import jax
import numpy as np
import pytest
import small_steps

from mvdjax import sharding, train_state, trees
from mvdjax.analysis import plan_hlo
from mvdjax.models import placement
from mvdjax.rng import named_key

EIGHT = pytest.mark.skipif(jax.device_count() < 8, reason='needs 8 devices')
MESHES = {
    'data 2': {'data': 2, 'devices': 2},
    'fsdp 2': {'fsdp': 2, 'data': 1, 'devices': 2},
    'tensor 2': {'tensor': 2, 'data': 1, 'devices': 2},
    'fsdp 4': {'fsdp': 4, 'data': 1, 'devices': 4},
    'data 2 fsdp 2': {'data': 2, 'fsdp': 2, 'devices': 4},
    'data 2 tensor 2': {'data': 2, 'tensor': 2, 'devices': 4},
    'fsdp 2 tensor 2': {'fsdp': 2, 'tensor': 2, 'data': 1, 'devices': 4},
    'data 2 fsdp 2 tensor 2': {'data': 2, 'fsdp': 2, 'tensor': 2},
}
# Every task on 2 and 4 devices, one axis or two of them, and on 8 with all three.
FEWER = {
    'mae': ('tensor 2', 'fsdp 4'),
    'videomae': ('data 2', 'fsdp 2 tensor 2'),
    'mvd': ('fsdp 2', 'data 2 tensor 2'),
    'classify': ('tensor 2', 'data 2 fsdp 2'),
    'bevt': ('tensor 2', 'data 2 fsdp 2'),
    'tokenizer': ('fsdp 2', 'data 2 tensor 2'),
}
CASES = [(name, mesh) for name in small_steps.EVERY for mesh in (*FEWER[name], 'data 2 fsdp 2 tensor 2')]


@pytest.fixture(autouse=True)
def small_leaves_are_split_too(monkeypatch):
    monkeypatch.setattr(sharding, 'MIN_FSDP_SIZE', 64)


@pytest.fixture(scope='module')
def alone():
    """Of a task, a step on one device."""
    return functools.cache(functools.partial(small_steps.one_step, devices=1))


def assert_near(got, want, tolerance):
    """Compares trees leaf by leaf, each to a share of its norm."""
    want = trees.flatten(want)
    for path, x in trees.flatten(got).items():
        apart = np.linalg.norm(x - want[path])
        assert apart <= tolerance * np.linalg.norm(want[path]) + 1e-9, f'{path}: {apart}'


def split_axes(tree, mesh):
    """The axes over which leaves of a tree are split."""
    leaves = trees.flatten(tree).items()
    return {axis for path, leaf in leaves for axis in sharding.parameter_sharding(path, leaf.shape, mesh).spec}


@EIGHT
@pytest.mark.parametrize(('name', 'mesh'), CASES)
def test_a_step_is_the_same_on_any_mesh(alone, name, mesh):
    values, state = alone(name)
    others, split = small_steps.one_step(name, **MESHES[mesh])
    assert values.keys() == others.keys()
    sizes = sharding.make_mesh(**MESHES[mesh])
    assert split_axes((state.params, small_steps.frozen_on_host(name)), sizes) >= {
        axis for axis in ('fsdp', 'tensor') if sizes.shape[axis] > 1
    }
    for key, (total, count) in values.items():
        np.testing.assert_allclose(others[key], (total, count), rtol=2e-5, err_msg=key)
    # Adam's first moment after one step is a tenth of the gradient.
    gradients, split_gradients = (s.opt_state[0].mu for s in (state, split))
    assert all(np.linalg.norm(x) > 0 for x in jax.tree.leaves(gradients))
    assert_near(split_gradients, gradients, 2e-4)
    assert_near(split.opt_state[0].nu, state.opt_state[0].nu, 4e-4)
    before = small_steps.fresh_state(name).params
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (before, split.params)), strict=True))
    assert_near(split.ema, jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, before, split.params), 1e-5)


@EIGHT
def test_a_state_is_born_the_same_on_any_mesh():
    name = 'classify'
    task, batch = small_steps.TASKS[name][0](), small_steps.host_batch(name)
    mesh = sharding.make_mesh(**MESHES['data 2 fsdp 2 tensor 2'])
    state = train_state.create(task, small_steps.adamw(task, batch), batch, seed=0, ema=True, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), small_steps.fresh_state(name))
    assert jax.tree.leaves(jax.tree.map(lambda x: x.sharding, state)) == jax.tree.leaves(
        sharding.tree_sharding(state, mesh)
    )


# What a compiled step holds. Stacks of 8 layers of width 64 over fsdp 4: the largest leaf of a stack has 131072 values,
# a device's part of it 32768; activations of 2 rows and whatever is not in a stack are smaller than that part.
DEPTH, WIDTH, FSDP = 8, 64, 4


def buffers(compiled):
    """(values, opcode, type) of every array that an instruction of the program leaves in memory."""
    computations, _ = plan_hlo.parse(compiled.as_text())
    fused = {
        name
        for body in computations.values()
        for i in body
        if i.opcode == 'fusion'
        for name in re.findall(r'calls=%([\w.\-]+)', i.attributes)
    }
    found = []
    for name, body in computations.items():
        for instruction in body if name not in fused else ():
            for dtype, sides, _ in plan_hlo.ARRAY.findall(instruction.shape):
                shape = tuple(int(side) for side in sides.split(',') if side)
                found.append((math.prod(shape), instruction.opcode, shape, dtype))
    return found


def layer_shapes(tree, mesh):
    """Shapes that a layer's weights may have on a device when it runs: whole along fsdp, split along tensor."""
    found = set()
    for path, leaf in trees.flatten(tree).items():
        spec = sharding.parameter_sharding(path, leaf.shape, mesh).spec
        if 'fsdp' in spec:
            stacked = '/blocks/' in path
            sides = [
                n // mesh.shape['tensor'] if axis == 'tensor' else n for n, axis in zip(leaf.shape, spec, strict=True)
            ]
            found.add(tuple(sides[stacked:]))
    return found


def assert_never_whole(compiled, mesh, state, frozen=None):
    """No device holds more of anything than its part of the largest leaf; what it gathers are weights of a layer."""
    parts = {
        path: math.prod(sharding.parameter_sharding(path, leaf.shape, mesh).shard_shape(leaf.shape))
        for path, leaf in trees.flatten(state.params).items()
    }
    largest = max(leaf.size for leaf in jax.tree.leaves(state.params))
    allowed = largest // mesh.shape['fsdp']
    assert max(parts.values()) == allowed
    found = buffers(compiled)
    too_large = {(opcode, shape) for size, opcode, shape, _ in found if size > allowed}
    assert not too_large, f'more than {allowed} values: {sorted(too_large)}'
    shapes = {tuple(sorted(s for s in shape if s > 1)) for shape in layer_shapes((state.params, frozen), mesh)}
    gathered = {shape for _, opcode, shape, _ in found if opcode.startswith('all-gather')}
    strange = {s for s in gathered if tuple(sorted(n for n in s if n > 1)) not in shapes}
    assert not strange, f'gathered, and no weights of a layer: {sorted(strange)}'


def mesh_of_eight():
    return sharding.make_mesh(data=2, fsdp=FSDP)


@EIGHT
@pytest.mark.parametrize(('name', 'remat'), [('mvd', 'none'), ('classify', 'full'), ('bevt', 'none')])
def test_no_stack_is_ever_whole_on_a_device(monkeypatch, name, remat):
    monkeypatch.setattr(sharding, 'MIN_FSDP_SIZE', 2**10)
    mesh = mesh_of_eight()
    if name == 'bevt':
        task, batch = small_steps.make_bevt(WIDTH, DEPTH, remat=remat), small_steps.two_streams()
    else:
        task, batch = small_steps.TASKS[name][0](WIDTH, DEPTH, remat=remat), small_steps.host_batch(name)
    compiled, state, frozen = small_steps.compiled_step(task, batch, mesh)
    assert_never_whole(compiled, mesh, state, frozen)
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    memory = compiled.memory_analysis()
    assert held <= memory.alias_size_in_bytes < memory.argument_size_in_bytes  # all of the state is written in place
    copies = re.findall(r'copy\(%?args_0_\w+', compiled.as_text())
    assert not copies, 'donated and copied all the same'


@EIGHT
@pytest.mark.parametrize('broken', ['a leaf without a rule', 'whole weights kept', 'activations unplaced'])
def test_breaking_a_rule_is_seen(monkeypatch, broken):
    monkeypatch.setattr(sharding, 'MIN_FSDP_SIZE', 2**10)
    mesh, rule = mesh_of_eight(), sharding.parameter_sharding
    if broken == 'a leaf without a rule':
        monkeypatch.setattr(
            sharding,
            'parameter_sharding',
            lambda path, shape, mesh: sharding.replicated(mesh) if 'fc1/kernel' in path else rule(path, shape, mesh),
        )
    elif broken == 'whole weights kept':
        monkeypatch.setattr(placement, 'save_all_but_gathered', jax.checkpoint_policies.everything_saveable)
    else:
        monkeypatch.setattr(placement, 'current', lambda: None)
        monkeypatch.setattr(placement, 'keep_rows', lambda x: x)
        monkeypatch.setattr(placement, 'gathering', lambda block, *_: block)
    task = small_steps.make_mae(WIDTH, DEPTH)
    compiled, state, _ = small_steps.compiled_step(task, small_steps.host_batch('mae'), mesh)
    monkeypatch.setattr(sharding, 'parameter_sharding', rule)
    with pytest.raises(AssertionError, match=r'more than \d+ values|no weights of a layer'):
        assert_never_whole(compiled, mesh, state)


@EIGHT
def test_no_stack_is_whole_when_a_state_is_made(monkeypatch):
    monkeypatch.setattr(sharding, 'MIN_FSDP_SIZE', 2**10)
    mesh, task, batch = mesh_of_eight(), small_steps.make_videomae(WIDTH, DEPTH), small_steps.host_batch('videomae', 1)
    optimizer = small_steps.adamw(task, batch)
    make = train_state.initializer(task, optimizer, batch, True, mesh)
    compiled = make.lower(named_key(0, 'init'), batch).compile()
    state = jax.eval_shape(train_state.make_state_function(task, optimizer, True), jax.random.key(0), batch)
    assert_never_whole(compiled, mesh, state)


class Asked:
    """A leaf on the host that notes which parts of it are taken."""

    def __init__(self, shape):
        self.value, self.taken = np.arange(math.prod(shape), dtype=np.float32).reshape(shape), []
        self.shape, self.ndim, self.dtype = shape, len(shape), self.value.dtype

    def __getitem__(self, part):
        self.taken.append(self.value[part].shape)
        return self.value[part]


@EIGHT
def test_handed_over_parameters_are_sent_in_parts():
    leaf = Asked((8, 64, 256))
    mesh = mesh_of_eight()
    placed = sharding.place_tree({'blocks': {'mlp': {'fc1': {'kernel': leaf}}}}, mesh)
    (array,) = jax.tree.leaves(placed)
    np.testing.assert_array_equal(array, leaf.value)
    assert set(leaf.taken) == {(8, 64, 64)}
    assert {shard.data.shape for shard in array.addressable_shards} == {(8, 64, 64)}
    assert sharding.place_tree(placed, mesh)['blocks']['mlp']['fc1']['kernel'] is array
    whole = sharding.place_tree(placed, sharding.make_mesh(devices=1))
    np.testing.assert_array_equal(jax.tree.leaves(whole)[0], leaf.value)


def test_a_batch_is_sent_once_and_taken_as_it_was_sent():
    mesh = sharding.make_mesh()
    sender = sharding.Sender(mesh)
    first, second = ({'x': np.full((8, 2), i)} for i in range(2))
    sender.send(first)
    sent = sender._sent
    assert sender.take(first) is sent
    sender.send(first)
    np.testing.assert_array_equal(sender.take(second)['x'], second['x'])  # a run that went back reads another one
    np.testing.assert_array_equal(sender.take(second)['x'], second['x'])
