"""Learned positions handed over to another grid: resized and shown; anything else of another shape stays an error."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from mvdjax import checkpoints, handover, saving, trees
from mvdjax import config as configs
from mvdjax.errors import UserError
from mvdjax.evaluate import evaluate
from mvdjax.models.resize import resize_table
from mvdjax.models.vit import ViT
from mvdjax.tasks import mae, mvd
from mvdjax.tasks.base import describe
from mvdjax.train import train
from mvdjax.train_state import TrainState

MASK = {'kind': 'tube', 'ratio': 0.5}
DECODER = {'width': 16, 'depth': 1, 'heads': 2, 'pos_embed': 'learned'}
TASK = mae.Task(
    encoder={'variant': 'debug', 'patch': (2, 8, 8), 'pos_embed': 'learned'},
    decoder=DECODER,
    mask=MASK,
    target='mae_raw',
)


def abstract(task, *sides):
    tokens = int(np.prod([side // p for side, p in zip(sides, (2, 8, 8), strict=True)]))
    batch = {'video': jnp.zeros((1, *sides, 3), jnp.uint8), 'mask': jnp.arange(tokens)[None] < tokens // 2}
    return jax.eval_shape(task.init, jax.random.key(0), batch)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """A checkpoint of `TASK` for clips of 8 x 32 x 48, its values random."""
    workdir = tmp_path_factory.mktemp('pretrained')
    rng = np.random.RandomState(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), abstract(TASK, 8, 32, 48))
    meta = {
        'schema_version': checkpoints.SCHEMA_VERSION,
        'input_shape': [8, 32, 48, 3],
        'backbone': json.loads(json.dumps(describe(TASK.backbone()))),
        'sources': [],
        'licence': '',
    }
    with saving.Checkpoints(str(workdir), 1) as saved:
        saved.save(TrainState(np.int32(1), np.int32(0), params, {}, None), meta)
    return str(workdir), trees.flatten(params)


def lines_of(table, status):
    return [line.split()[1:] for line in table.splitlines() if line.startswith(f'  {status}')]


def test_the_same_grid_is_loaded_as_it_is(pretrained):
    path, source = pretrained
    loaded = handover.load_params(path, abstract(TASK, 8, 32, 48), 'model')
    assert not lines_of(loaded.table, 'resized')
    for name, value in trees.flatten(loaded.params).items():
        np.testing.assert_array_equal(value, source[name], err_msg=name)


@pytest.mark.parametrize(
    ('sides', 'grid'),
    [((8, 16, 48), (4, 2, 6)), ((16, 32, 48), (8, 4, 6)), ((4, 56, 24), (2, 7, 3)), ((8, 48, 32), (4, 6, 4))],
)
def test_another_grid_is_resized_and_shown(pretrained, sides, grid):
    path, source = pretrained
    loaded = handover.load_params(path, abstract(TASK, *sides), 'model')
    found = trees.flatten(loaded.params)
    tables = {'backbone/position_table', 'decoders_pixels/position_table'}
    for name, value in found.items():
        expected = resize_table(source[name], grid) if name in tables else source[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)
    shown = ' x '.join(str(side) for side in grid)
    assert sorted(' '.join(line) for line in lines_of(loaded.table, 'resized')) == [
        f'{name} 4 x 4 x 6 to {shown} tokens' for name in sorted(tables)
    ]
    counted = [int(line[1]) for status in ('loaded', 'fresh', 'unused') for line in lines_of(loaded.table, status)]
    assert sum(counted) == len(source) - len(tables)


def test_positions_may_be_left_fresh_by_name(pretrained):
    path, _ = pretrained
    loaded = handover.load_params(path, abstract(TASK, 8, 16, 48), 'model', allow_fresh=('position_table$',))
    assert not lines_of(loaded.table, 'resized')
    assert isinstance(trees.flatten(loaded.params)['backbone/position_table'], jax.ShapeDtypeStruct)


def test_another_width_or_another_leaf_stays_an_error(pretrained):
    path, _ = pretrained
    wider = {'backbone': {'position_table': jax.ShapeDtypeStruct((4, 4, 6, 64), jnp.float32)}}
    with pytest.raises(UserError, match=r'backbone/position_table is \(4, 4, 6, 32\), expected \(4, 4, 6, 64\)'):
        handover.load_params(path, wider, 'model', allow_unused=('',))
    grid = {'backbone': {'patch_embed': {'kernel': jax.ShapeDtypeStruct((24, 32), jnp.float32)}}}
    with pytest.raises(UserError, match=r'patch_embed/kernel is \(384, 32\), expected \(24, 32\)'):
        handover.load_params(path, grid, 'model', allow_unused=('',))


def distillation(path):
    teacher = {'model': TASK.encoder, 'checkpoint': path, 'decoder': DECODER}
    return mvd.Task(student={'variant': 'debug', 'patch': (2, 8, 8)}, teachers={'video': teacher}, mask=MASK)


def test_a_teacher_keeps_its_grid(pretrained):
    path, source = pretrained
    task = distillation(path)
    batch = {'video': np.zeros((1, 8, 32, 48, 3), np.uint8), 'mask': np.tile(np.arange(24) < 12, (1, 4))}
    task.check(batch)
    frozen = task.frozen()
    np.testing.assert_array_equal(frozen['video']['position_table'], source['backbone/position_table'])
    assert jax.eval_shape(task.targets, frozen, batch)['video'].shape == (1, 96, 32)
    other = {'video': batch['video'][:, :4], 'mask': batch['mask'][:, :48]}
    with pytest.raises(
        UserError, match=r'learned positions for a \(4, 4, 6\) token grid, its input here makes \(2, 4, 6\)'
    ):
        task.check(other)


def oblong(config, height, width, length):
    """A loaded demo config with clips of another shape, in every one of its sets."""
    with config.unlocked(), config.ignore_type():
        for data in (config.data, *(node.data for node in config.evals.values())):
            data.options.size, data.options.length = (height, width), length
    return config


def test_fine_tuning_and_testing_on_grids_of_their_own(pretrained, demo_data, tmp_path, capfd):
    overrides = ('task.model.pos_embed=learned', 'task.model.patch=(2, 8, 8)', f'init.checkpoint={pretrained[0]}')
    overrides += ("optim.decay=('kernel$',)", "optim.no_decay=('(bias|scale|_token|_table)$',)")
    overrides += ('run.steps=1', 'optim.warmup_epochs=0', 'mesh.devices=1')
    config = oblong(small_runs.load('finetune', demo_data, *overrides), 40, 24, 4)
    train(config, str(tmp_path / 'model'))
    assert 'backbone/position_table          4 x 4 x 6 to 2 x 5 x 3 tokens' in capfd.readouterr().out

    meta = checkpoints.read_meta(str(tmp_path / 'model'))
    assert meta['input_shape'] == [4, 40, 24, 3]
    config = oblong(configs.from_meta(meta), 16, 48, 8)
    assert evaluate(config, str(tmp_path / 'model'), str(tmp_path / 'out'), 'test', False)['scored'] == 16
    assert 'backbone/position_table          2 x 5 x 3 to 4 x 2 x 6 tokens' in capfd.readouterr().out


def test_a_vit_has_no_table_unless_it_learns_one():
    params = jax.eval_shape(ViT(32, 1, 2).init, jax.random.key(0), jnp.zeros((1, 2, 16, 16, 3)))['params']
    assert 'position_table' not in params
