"""Memory and speed levers: what is compiled again or kept, what is float32, and how a config reaches them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
import small_steps
from jax.experimental.compilation_cache import compilation_cache

from mvdjax import compile_cache, sharding, trees
from mvdjax import config as configs
from mvdjax.compile_cache import RecompileWarning, Watched
from mvdjax.errors import UserError
from mvdjax.settings import Run
from mvdjax.tasks.base import build_vit, check_backbone, describe


def test_a_step_that_compiles_again_says_what_has_changed():
    step = Watched(
        jax.jit(lambda state, batch: (state + 1, batch['video'].sum()), donate_argnums=0), ('state', 'batch')
    )
    state = jnp.float32(0)
    for _ in range(3):
        state, _ = step(state, {'video': np.zeros((4, 2))})
    assert step.compilations == 1
    with pytest.warns(RecompileWarning, match=r'batch/video was float64\[4, 2\] on the host, is float64\[3, 2\]'):
        state, _ = step(state, {'video': np.zeros((3, 2))})
    with pytest.warns(RecompileWarning, match=r'batch/video was float64\[3, 2\] on the host, is int32\[4, 2\]'):
        state, _ = step(state, {'video': np.zeros((4, 2), np.int32)})
    state, _ = step(state, {'video': np.zeros((4, 2))})  # both are known by now
    assert step.compilations == 3


@pytest.fixture
def cache(tmp_path):
    """An empty folder of executables, in use."""
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    compilation_cache.reset_cache()
    compile_cache.use('cache', str(tmp_path))
    yield tmp_path / 'cache'
    jax.config.update('jax_persistent_cache_min_compile_time_secs', least)
    jax.config.update('jax_compilation_cache_dir', None)
    compilation_cache.reset_cache()


def compile_anew(factor):
    """Compiles x -> factor * x as another process would: nothing of it is in memory. Returns the hits in the cache."""
    hits = []

    def listen(event, **_):
        hits.extend([event] if event == '/jax/compilation_cache/cache_hits' else [])

    jax.clear_caches()
    jax.monitoring.register_event_listener(listen)
    try:
        assert jax.jit(lambda x: factor * jnp.sin(x))(np.float32(0.5)) == pytest.approx(factor * np.sin(0.5))
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return len(hits)


def test_what_was_compiled_once_is_taken_from_the_folder(cache):
    assert compile_anew(3.0) == 0
    files = {path for path in cache.rglob('*') if path.is_file() and 'atime' not in path.name}
    assert files
    assert compile_anew(3.0) >= 1
    assert compile_anew(4.0) == 0
    for path in files:  # a kill may leave half a file
        path.write_bytes(path.read_bytes()[:20])
    with pytest.warns(UserWarning, match='persistent compilation cache'):
        assert compile_anew(3.0) == 0


def test_runs_side_by_side_may_share_a_folder(cache, tmp_path):
    compile_cache.use('../shared', str(tmp_path / 'one'))
    assert compile_anew(5.0) == 0
    compile_cache.use('../shared', str(tmp_path / 'another'))
    assert compile_anew(5.0) >= 1


def test_no_folder_no_cache(tmp_path):
    compile_cache.use('', str(tmp_path))
    assert jax.config.jax_compilation_cache_dir is None
    assert Run(global_batch=1, steps=1).compile_cache == 'compile_cache'


def operations(jaxpr):
    """Every operation of a program, those in loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from operations(inner)


def traced(name, precision=None, **options):
    """The operations of a task's loss, and the shapes of its value and gradient."""
    task, batch = small_steps.TASKS[name][0](**options), small_steps.host_batch(name)
    params, frozen = jax.eval_shape(task.init, jax.random.key(0), batch), task.abstract_frozen(batch)
    keys = {n: jax.random.key(0) for n in task.rng_names}

    def loss(params, frozen, batch):
        return task.loss(params, frozen, batch, keys, train=True)[0]

    on_one = sharding.traced_on(sharding.make_mesh(devices=1), loss, precision)
    jaxpr = jax.make_jaxpr(on_one)(params, frozen, batch)
    return list(operations(jaxpr.jaxpr)), jax.eval_shape(jax.value_and_grad(loss), params, frozen, batch)


@pytest.mark.parametrize('name', small_steps.TASKS)
def test_what_is_float32_where_models_compute_in_bfloat16(name):
    found, (loss, gradients) = traced(name, dtype='bfloat16')
    assert {x.dtype for x in jax.tree.leaves((loss, gradients))} == {np.dtype('float32')}
    for primitive in ('exp', 'log', 'rsqrt', 'erf', 'random_bits'):
        dtypes = {str(v.aval.dtype) for e in found if e.primitive.name == primitive for v in e.invars if v.aval.shape}
        allowed = {'erf': {'bfloat16'}, 'random_bits': {'key<fry>'}}.get(primitive, {'float32'})
        assert dtypes <= allowed, f'{primitive} of {dtypes}'  # softmax, norms, losses; GELU is the model's own
    products = [
        (str(e.invars[0].aval.dtype), str(e.outvars[0].aval.dtype)) for e in found if e.primitive.name == 'dot_general'
    ]
    share = sum(left == 'bfloat16' for left, _ in products) / len(products)
    assert share > 0.8, f'only {share:.0%} of the matrix products take bfloat16'
    assert ('bfloat16', 'float32') in products, 'attention logits are float32'


def test_everything_is_float32_where_models_compute_in_float32():
    found, _ = traced('mvd')
    assert not any('bfloat16' in str(v.aval) for e in found for v in e.outvars)


@pytest.mark.parametrize(('precision', 'says'), [('highest', 'HIGHEST'), ('default', 'DEFAULT')])
def test_the_precision_of_matrix_products_is_by_config(precision, says):
    found, _ = traced('classify', precision)
    products = {e.params['precision'] for e in found if e.primitive.name == 'dot_general'}
    assert products == {(getattr(jax.lax.Precision, says),) * 2}
    with pytest.raises(UserError, match="matmul_precision must be 'default', 'high', 'highest' or None, not 'best'"):
        Run(global_batch=1, steps=1, matmul_precision='best')


def test_teachers_are_held_in_bfloat16_and_their_targets_are_the_same():
    batch = small_steps.host_batch('mvd', 2)
    task = small_steps.make_mvd(dtype='bfloat16')
    held = task.frozen()
    flat = trees.flatten(held)
    assert {str(x.dtype) for path, x in flat.items() if '/norm' in path} == {'float32'}
    assert {str(x.dtype) for path, x in flat.items() if '/norm' not in path} == {'bfloat16'}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), held) == jax.tree.map(
        lambda x: (x.shape, x.dtype), task.abstract_frozen(batch)
    )
    whole = jax.tree.map(lambda x: x.astype(jnp.float32), small_steps.frozen_on_host('mvd'))
    assert {x.dtype for x in jax.tree.leaves(whole)} == {np.dtype('float32')}
    targets = jax.jit(task.targets)
    jax.tree.map(np.testing.assert_array_equal, targets(held, batch), targets(whole, batch))


def test_levers_are_overridden_on_any_model_and_free_on_resume(demo_data, tmp_path):
    levers = ('remat=attention', 'scan=False', 'attention=xla', 'dtype=bfloat16')
    sections = ('task.student', 'task.teachers.video.model', 'task.teachers.image.decoder')
    config = small_runs.load('mvd', demo_data, *(f'{s}.{lever}' for s in sections for lever in levers))
    task = configs.make_task(config)
    student = task.backbone()
    assert (student.remat, student.scan, student.attention, student.dtype) == ('attention', False, 'xla', jnp.bfloat16)
    assert task.model().decoders['image'].remat == 'attention'
    assert task.model().decoders['video'].remat == 'none'
    with pytest.raises(UserError, match="has no key 'remat'"):
        small_runs.load('mvd', demo_data, 'data.options.remat=full')
    with pytest.raises(UserError, match="'no' is not of type bool"):
        small_runs.load('mvd', demo_data, 'task.student.scan=no')


def test_the_epsilon_of_norms_travels_with_the_weights():
    published, theirs = (build_vit({'variant': 'debug', 'norm_epsilon': e}) for e in (1e-6, 1e-2))
    assert describe(build_vit({'variant': 'debug'})) == describe(published)
    x = 0.1 * jax.random.normal(jax.random.key(0), (1, 2, 16, 16, 3))
    params = published.init(jax.random.key(1), x)
    a, b = (model.apply(params, x)[0] for model in (published, theirs))
    assert np.abs(a - b).max() > 1e-3
    old = {k: v for k, v in describe(published).items() if k != 'norm_epsilon'}  # of an earlier version
    check_backbone({'backbone': old}, published, 'model', 'there')
    with pytest.raises(UserError, match=r'trained with norm_epsilon 1e-06 \(here 0.01\)'):
        check_backbone({'backbone': old}, theirs, 'model', 'there')
