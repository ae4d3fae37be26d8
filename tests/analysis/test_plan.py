"""`mvdjax plan` on this machine and by formula: hand counts, what it proposes, what it refuses."""

import dataclasses
import json
import math
import sys

import jax
import numpy as np
import pytest
from small_runs import CONFIGS

from mvdjax import config as configs
from mvdjax import main
from mvdjax.analysis import (
    plan_compile,
    plan_estimate,
    plan_proposal,
    plan_result,
    plan_step,
    plan_table,
    plan_text,
    plan_topology,
)
from mvdjax.analysis import plan_trace as traces
from mvdjax.errors import UserError
from mvdjax.trees import count

GIB = 2**30
HERE = f'local:{jax.device_count()}'
MVD = f'{CONFIGS}/mvd/k400_vit_b_from_b_400.py'
SMALL = f'{CONFIGS}/videomae/k400_vit_s.py'  # quick to trace
FINETUNE = f'{CONFIGS}/finetune/k400_vit_b.py'
DEBUG = {
    'mae': f'{CONFIGS}/mae/in1k_vit_b.py:debug',
    'mvd': f'{CONFIGS}/mvd/k400_vit_h_from_h_800.py:debug',
    'classify': f'{CONFIGS}/finetune/k400_vit_b.py:debug',
    'bevt': f'{CONFIGS}/bevt/k400_swin_b.py:debug',
    'tokenizer_vq': f'{CONFIGS}/bevt/in1k_tokenizer.py:debug',
}


def step_on(spec, topology, *overrides, records=None):
    return plan_step.make_step(configs.load(spec, overrides), plan_topology.find(topology), records)


@pytest.mark.parametrize(
    ('spec', 'rounding'),
    # Single rows come out as reductions, sums of a few products the other way round: no layer weighs as little.
    # Where a convolution's window meets padding, the formula counts and the compiler does not: much of a tiny image.
    [(f'{SMALL}:debug', 0.02), (DEBUG['bevt'], 0.05), (DEBUG['tokenizer_vq'], 0.1)],
    ids=['videomae', 'bevt', 'tokenizer_vq'],
)
def test_a_compiled_step_is_the_formula_to_the_last_layer(spec, rounding):
    """With scanned layers, which the compiler itself counts once."""
    plan = plan_result.make_plan(spec, (), plan_topology.find(HERE), records=32)
    model = sum(plan['flops']['model_per_clip'].values())
    assert plan['flops']['executed_per_clip'] == pytest.approx(model, rel=rounding)
    assert plan['memory']['fits'] is True
    assert plan['time'] is None  # no peak rate is known of a CPU
    assert bool(plan['collectives']) == (jax.device_count() > 1)
    kinds = plan['memory']['kinds']
    assert kinds['layout'] < 1000
    assert sum(kinds.values()) <= plan['memory']['needed']


@pytest.mark.parametrize('name', DEBUG)
def test_memory_by_hand(name):
    step = step_on(DEBUG[name], 'H100:8')
    kinds, parameters, teachers = plan_estimate.standing_bytes(step), count(step.state.params), count(step.frozen)
    assert kinds['parameters'] == 4 * parameters
    assert kinds['optimizer'] == 8 * parameters + 4  # and a counter
    assert (teachers > 0) == (name in ('mvd', 'bevt', 'tokenizer_vq'))
    # Their norms alone are held in float32, see `mvd.Teacher.shapes`; a tokenizer's debug form is in float32.
    width = 4 if name == 'bevt' else 2
    assert width * teachers <= kinds['teachers'] <= 1.05 * width * teachers
    rows = step.clips // 8
    tokens, frames = {'mae': (4, 1), 'mvd': (32, 16), 'classify': (0, 16), 'bevt': (128, 4), 'tokenizer_vq': (0, 1)}[
        name
    ]
    more = {
        'mvd': 16 * 28 * 28 * 3,  # teacher_video
        'classify': 4 + 16,  # label and box
        'bevt': 4 * 64 * 64 * 3 + 2 * (32 * 32 * 3 + 64 * 64 * 3 + 64),  # token_video; 2 images for each clip
    }
    assert kinds['batch'] == rows * (frames * 32 * 32 * 3 + tokens + more.get(name, 0))


def test_sharding_divides_what_it_says():
    """Exact bytes per device from shapes and shardings alone."""
    whole, split = (step_on(MVD, 'H100:8', *more) for more in ((), ('--config.mesh.fsdp=8',)))
    before, after = plan_estimate.standing_bytes(whole), plan_estimate.standing_bytes(split)
    for kind in ('parameters', 'teachers'):
        assert before[kind] / 8 < after[kind] < 1.02 * before[kind] / 8
    assert before['batch'] == after['batch'] == 1024 / 8 * (16 * 224 * 224 * 3 + 1568)
    with_average = plan_estimate.standing_bytes(step_on(MVD, 'H100:8', '--config.run.ema_decay=0.999'))
    assert with_average['average'] == before['parameters']


def test_teachers_need_no_checkpoint_and_have_its_shapes():
    step = step_on(DEBUG['mvd'], 'H100:8')
    read = jax.eval_shape(step.task.frozen)  # the debug form's are random: they can be had
    assert jax.tree.map(lambda x: x.shape, step.frozen) == jax.tree.map(lambda x: x.shape, read)
    assert configs.load(MVD).task.teachers.video.checkpoint == 'runs/videomae_k400_vit_b'  # which is not there
    assert step_on(MVD, 'H100:8').frozen['video']['patch_embed']['kernel'].shape == (1536, 768)


def test_two_streams_have_a_batch_each(tmp_path):
    """As in BEVT: images beside clips, each with its own batch."""
    text = f"""
from mvdjax import config as configs
def get_config():
    c = configs.load('{DEBUG['mae']}').copy_and_resolve_references()
    c = type(c)(c.to_dict())
    c.streams = {{'more': {{'data': c.data.to_dict(), 'batch': 32}}}}
    return c
"""
    (tmp_path / 'two.py').write_text(text)
    config = configs.load(str(tmp_path / 'two.py'))
    streams = plan_step.read_streams(config, plan_step.Run(global_batch=8, steps=1), read=lambda _: plan_step.NO_LIST)
    mesh = plan_topology.find('H100:8').mesh()
    batch = plan_step.abstract_batch(streams, mesh)
    assert {name: part['video'].shape for name, part in batch.items()} == {
        'video': (8, 1, 32, 32, 3),
        'more': (32, 1, 32, 32, 3),
    }
    assert batch['more']['mask'].sharding.shard_shape((32, 4)) == (4, 4)
    assert plan_proposal.batches(config) == [8, 32]


def test_the_length_of_a_list(tmp_path):
    config = configs.load(MVD)
    assert plan_step.list_length(config, 7) == 7
    assert plan_step.list_length(config, None) == 240_436
    (tmp_path / 'mine.txt').write_text('a.mp4\nb.mp4\n')
    assert plan_step.list_length(configs.load(MVD, [f'--config.data.files={tmp_path}/mine.txt']), None) == 2
    unknown = configs.load(MVD, ['--config.data.files=elsewhere/train.txt'])
    assert plan_step.list_length(unknown, None) is None
    plan = plan_result.make_plan(SMALL, ['--config.data.files=elsewhere/train.txt'], plan_topology.find('H100:8'))
    assert plan['time']['hours'] is None


def test_hours_and_utilisation_follow_from_the_step_time():
    plan = plan_result.make_plan(SMALL, ['--config.run.accumulate=8'], plan_topology.find('H100:8'))
    time = plan['time']
    assert time['steps'] == 1600 * (240_436 // 1024)
    assert time['hours'] == pytest.approx(time['steps'] * time['seconds_step'] / 3600)
    assert time['device_hours'] == pytest.approx(8 * time['hours'])
    model = sum(plan['flops']['model_per_clip'].values())
    assert time['mfu'] == pytest.approx(model * time['clips_per_second'] / 8 / 989.4e12)
    assert time['seconds_compute'] < time['seconds_work'] <= time['seconds_step']
    assert 0.05 < time['mfu'] < 1


def test_a_trace_is_linear_in_the_clips():
    step = step_on(DEBUG['mae'], 'H100:8')
    found = traces.trace(step.task, step.batch, step.clips, 1)
    five = jax.tree.map(lambda x: jax.ShapeDtypeStruct((5, *x.shape[1:]), x.dtype), step.batch)
    direct = traces.gradient(step.task, five)
    assert list(found.products(5)) == list(traces.products(direct))


def test_convolutions_are_products():
    """A 3 x 3 window over 5 channels, 7 of them out, at 6 x 6 places of 2 samples."""
    x, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((2, 8, 8, 5), (3, 3, 5, 7)))
    jaxpr = jax.make_jaxpr(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    )(x, kernel).jaxpr
    assert traces.flops(jaxpr) == 2 * (2 * 6 * 6 * 7) * (3 * 3 * 5)


def test_what_is_computed_otherwise_on_cpus_counts_as_elsewhere():
    x = jax.ShapeDtypeStruct((3, 5), np.float32)

    def total(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: np.ones((1, 3), np.float32) @ x, default=lambda x: x[:1])

    assert traces.flops(jax.make_jaxpr(total)(x).jaxpr) == 0.0
    assert traces.flops(jax.make_jaxpr(lambda x: np.ones((1, 3), np.float32) @ x)(x).jaxpr) == 2.0 * 3 * 5


def test_fused_attention_keeps_its_logits():
    """What the two ways differ by is the logits' bytes: written by one product, read by the other."""
    b, n, heads, width = 2, 64, 2, 8
    q = jax.ShapeDtypeStruct((b, n, heads, width), np.float32)
    jaxpr = jax.make_jaxpr(lambda q: jax.nn.dot_product_attention(q, q, q))(q).jaxpr
    hidden = traces.logits(jaxpr)
    assert hidden == {(b, heads, n, n)}  # sorted, as it happens
    plain, fused = (sum(p.bytes for p in traces.products(jaxpr, hidden=h)) for h in (frozenset(), hidden))
    assert plain - fused == 2 * 4 * b * heads * n * n
    assert fused == 4 * 4 * b * n * heads * width  # queries, keys, values and the result
    assert traces.peak_bytes(jaxpr, hidden) < traces.peak_bytes(jaxpr)


def test_live_memory_of_a_small_program():
    """x @ a, kept for later, and a chain of two more products: all three results alive at the last."""

    def function(x):
        first = x @ x
        second = jax.numpy.tanh(first @ x)
        return first + second @ x

    x = jax.ShapeDtypeStruct((8, 8), np.float32)
    assert traces.peak_bytes(jax.make_jaxpr(function)(x).jaxpr) == 3 * 8 * 8 * 4


@pytest.mark.parametrize(('memory', 'spec'), [(24, SMALL), (6, SMALL), (24, FINETUNE)])
def test_proposals_keep_the_batch_and_fit(memory, spec):
    topology = plan_topology.find('RTX4090:2')
    before = configs.load(spec)
    found = plan_proposal.proposals(spec, (), topology, memory * GIB)
    assert [p.seconds for p in found] == sorted(p.seconds for p in found)
    for proposal in found:
        config = configs.load(spec, proposal.overrides)
        assert config.run.global_batch == before.run.global_batch
        assert config.optim.to_dict() == before.optim.to_dict()
        assert {o.split('=')[0].rpartition('.')[2] for o in proposal.overrides} <= {'accumulate', 'remat', 'fsdp'}
        step = plan_step.make_step(config, topology)
        assert plan_estimate.estimate(step, topology.device).needed <= memory * GIB
        group = config.task.mix.group if 'mix' in config.task else 1
        assert step.clips // config.run.accumulate % group == 0


def test_less_memory_asks_for_more_changes():
    topology = plan_topology.find('H100:2')
    found = [plan_proposal.proposals(SMALL, (), topology, memory * GIB)[0] for memory in (200, 2)]
    assert found[0].overrides == ()
    assert found[1].overrides
    seconds = [p.seconds for p in found]
    assert seconds == sorted(seconds)
    message = r'does not fit 2 devices of 0\.1 GiB .* one clip per device takes \d\.\d GiB'
    with pytest.raises(UserError, match=message):
        plan_proposal.proposals(SMALL, (), topology, GIB / 10)


def test_a_batch_that_does_not_divide_goes_to_the_tensor_axis():
    config = configs.load(FINETUNE)  # 384 videos
    assert plan_proposal.mesh_for(config, 256) == {'data': -1, 'fsdp': 1, 'tensor': 2}
    assert plan_proposal.mesh_for(config, 8) == {'data': -1, 'fsdp': 1, 'tensor': 1}
    # 384 x 2 views in groups of 24: 3 videos per device, whole groups in every micro-batch
    group = config.task.mix.group
    numbers = plan_proposal.accumulations(config, 128, 2)
    assert numbers == [n for n in (1, 3) if 768 // n % group == 0]


def test_the_largest_batch_by_formula():
    topology = plan_topology.find('RTX3090:1')
    plan = plan_result.make_plan(SMALL, (), topology)
    step = plan_step.make_step(configs.load(SMALL), topology)
    guess = plan_estimate.estimate(step, topology.device)
    largest = plan_result.largest_batch(configs.load(SMALL), topology, step, guess, None)
    assert plan['memory']['fits'] is False  # 1024 clips at a time
    most = largest['clips_per_device']
    limit = plan['memory']['limit']
    assert guess.needed_with(most) <= limit < guess.needed_with(most + 1)
    assert plan_result.with_batch(configs.load(SMALL), step, most).run.global_batch == most


def test_refusals_of_a_compiler_are_read():
    sentences = {
        'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (27.76G) exceeds '
        'available HBM (15.75G).': (27.76, 15.75),
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 34.03G of '
        '15.75G hbm. Exceeded hbm capacity by 18.28G.': (34.03, 15.75),
    }
    for text, (needed, limit) in sentences.items():
        assert plan_compile.refused_sizes(text) == (needed * GIB, limit * GIB)
    assert plan_compile.refused_sizes('something else') == (0.0, None)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('v9z:16x16', r"there is no topology 'v9z:16x16': give a TPU slice .*'local:8'.*'H100:8'"),
        ('H100', r"there is no topology 'H100'"),
        ('local:0', r"there is no topology 'local:0'"),
        ('v5e:4x4x4', r"'v5e:4x4x4' is no shape of a TPU v5e: it has 2 dimensions"),
        ('v5p:16', r"'v5p:16' is no shape of a TPU v5p: it has 3 dimensions, as v5p:4x4x4"),
        ('local:4096', r'local:4096: this machine has \d+ cpu devices'),
    ],
)
def test_unknown_topologies(name, message):
    with pytest.raises(UserError, match=message):
        plan_topology.find(name)


def test_without_libtpu_one_sentence_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'libtpu', None)
    assert main.main(['plan', f'--config={MVD}', '--topology=v5e:16x16']) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert "pip install 'mvdjax[tpu]'" in error


def test_a_batch_that_does_not_divide_is_refused(capsys):
    assert main.main(['plan', f'--config={MVD}', '--topology=H100:3']) == 1
    assert 'run.global_batch 1024 does not divide by 3 batch shards' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], '--config=FILE'),
        ([f'--config={MVD}'], 'give a --topology'),
        ([f'--config={MVD}', '--topology=H100:8', '--devices=2'], 'give a --topology'),
        ([f'--config={MVD}', '--devices=2'], '--memory=24G, or --device=NAME'),
        ([f'--config={MVD}', '--devices=2', '--memory=lots'], '--memory=lots is no size'),
        ([f'--config={MVD}', '--devices=-1', '--memory=24G'], '--devices must be at least 1'),
        ([f'--config={MVD}', '--devices=2', '--device=TPU9'], '--device=TPU9 is not known'),
        (['--table=x.md', '--only=('], 'not a regular expression'),
        ([f'--config={MVD}', '--topology=v5e:16x16', '--effort=2'], '--effort must be from -1 to 0, not 2'),
        (['--table=x.md', '--effort=nan'], '--effort must be from -1 to 0, not nan'),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert main.main(['plan', *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_step_that_does_not_fit_ends_with_code_1_and_says_what_to_do(tmp_path, capsys):
    file = tmp_path / 'plans' / 'plan.json'
    assert main.main(['plan', f'--config={SMALL}', '--topology=RTX3090:1', f'--output={file}']) == 1
    plan, text = json.loads(file.read_text()), capsys.readouterr().out
    assert plan['memory']['fits'] is False
    assert 'does not fit: a step takes' in text.splitlines()[-1]
    assert f'mvdjax plan --config={SMALL} --devices=1 --memory=' in text
    assert math.isclose(sum(plan['memory']['kinds'].values()), plan['memory']['needed'])


def test_a_proposal_prints_what_to_paste(tmp_path, capsys):
    file = tmp_path / 'plan.json'
    arguments = ['--devices=2', '--memory=24G', '--device=RTX4090', f'--output={file}']
    assert main.main(['plan', f'--config={SMALL}', *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    pasted = [line.strip() for line in lines[lines.index('add to the command line:') + 1 :]]
    assert pasted == json.loads(file.read_text())['proposed']
    assert configs.load(SMALL, pasted).run.global_batch == 1024


def test_a_row_of_another_effort_is_compiled_again_where_one_is_asked_for(tmp_path, monkeypatch):
    told = []

    def slice_of(name, kind, shape, effort):
        return dataclasses.replace(plan_table.stand_in(name), effort=effort)

    def compiled(step, topology, lowered, program):
        told.append(plan_compile.compiler_options(topology))
        return plan_compile.Compiled(program, 'libtpu x', 1.0, True, effort=topology.effort, needed=GIB, limit=2 * GIB)

    monkeypatch.setattr(plan_topology, '_tpu', slice_of)
    monkeypatch.setattr(plan_compile, 'lower', lambda step: ('lowered', 'program'))
    monkeypatch.setattr(plan_compile, 'compile_step', compiled)
    cache = plan_table.Cache(str(tmp_path / 'scaling.json'))
    marks = []
    for effort in (None, None, -1.0, -1.0, None, 0.0):
        row = plan_table.make_row(SMALL, 'v5e:16x16', cache, True, effort)
        marks.append(plan_text.table([row])[-1].rpartition('GiB')[2].split('|')[-2].strip())
    assert [list(options.values()) for options in told] == [[plan_topology.TPU_EFFORT], [-1.0], [0.0]]
    assert marks == ['compiler', 'compiler', 'compiler (-1)', 'compiler (-1)', 'compiler (-1)', 'compiler']


def test_the_table_takes_compiled_rows_from_its_cache(tmp_path, monkeypatch, capsys):
    config, compiled_there = SMALL, 'v5e:16x16'
    monkeypatch.setattr(plan_table, 'TOPOLOGIES', (compiled_there, 'H100:8'))
    monkeypatch.setattr(plan_table, 'published', lambda: [config])
    page, cache = tmp_path / 'scaling.md', plan_table.Cache(str(tmp_path / 'scaling.json'))
    assert main.main(['plan', f'--table={page}', '--no-compile']) == 0
    before = page.read_text()
    assert before.count('| formula |') == 2
    assert not cache.rows
    row = plan_table.make_row(config, compiled_there, cache, False)
    row['memory'] |= {'from': 'compiler', 'needed': 12.5 * GIB}
    row |= {'compiled': {'compiler': 'libtpu x'}, 'formula': {'needed': 25 * GIB, 'seconds_step': 1.0}}
    cache.put(f'{config} {compiled_there}', row)
    assert main.main(['plan', f'--table={page}', '--no-compile']) == 0
    after = page.read_text()
    assert '| 12.5 of ' in after
    assert (after.count('| compiler |'), after.count('| formula |')) == (1, 1)
    assert '2.00 to 2.00 times what the compiler takes' in after
