"""Two streams through the whole loop, with a task that is nothing but two numbers; and the counts of the feed."""

import dataclasses
import shutil
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from mvdjax import checkpoints, config_file
from mvdjax import config as configs
from mvdjax.data.pipeline import Data, Stream
from mvdjax.errors import UserError
from mvdjax.feed import Budget, Feed, check_same_lists, list_marks, main_part, read_streams
from mvdjax.metric_writer import read_metrics
from mvdjax.metrics import weighted
from mvdjax.settings import Run
from mvdjax.tasks.base import build_vit
from mvdjax.train import train
from mvdjax.window import Window


@dataclasses.dataclass(frozen=True)
class Task:
    """Fits one number to the brightness of clips and one to that of images."""

    rng_names = ()

    def init(self, rng, batch):
        del rng, batch
        return {'clip': {'bias': jnp.zeros(())}, 'image': {'bias': jnp.zeros(())}}

    def check(self, batch):
        assert {name: part['video'].shape for name, part in batch.items()} == {
            'clip': (4, 4, 32, 32, 3),
            'image': (16, 1, 32, 32, 3),
        }

    def check_files(self, files):
        assert len(files.records) == 32

    def backbone(self):
        return build_vit({'variant': 'debug', 'patch': (2, 8, 8)})

    def sources(self):
        return []

    def frozen(self):
        return {}

    def flops(self, batch):
        return {'fit': 2.0 * sum(part['video'].size for part in batch.values())}

    def loss(self, params, frozen, batch, rngs, train):
        del frozen, rngs, train
        values = {
            name: (part['video'].mean(axis=(1, 2, 3, 4)) / 255 - params[name]['bias']) ** 2
            for name, part in batch.items()
        }
        total = values['clip'].mean() + values['image'].mean()
        return total, {'loss': (total, jnp.ones(())), **{n: weighted(v, None) for n, v in values.items()}}

    def layer_index(self, path, depth):
        del path, depth
        return 0


def load(demo_data, *overrides):
    """The demo's VideoMAE config with the task above and a stream of images beside the clips."""
    config = small_runs.load(
        'videomae', demo_data, 'mesh.devices=1', 'run.steps=4', 'run.save_every=2', 'optim.warmup_epochs=0'
    )
    images = {'size': 32, 'patch': (1, 8, 8), 'mask': {'kind': 'random', 'ratio': 0.5}}
    clips = {'size': 32, 'length': 4, 'stride': 2, 'patch': (2, 8, 8), 'mask': {'kind': 'tube', 'ratio': 0.5}}
    with config.unlocked():
        config.task_name, config.task, config.data.options = 'two_numbers', {}, clips
        config.run.stream, config.run.global_batch = 'clip', 4
        data = {'files': f'{demo_data}/images.txt', 'recipe': 'images', 'options': images}
        config.streams = {'image': {'data': data, 'batch': 16}}
        for override in overrides:
            config_file.override(config, f'--config.{override}')
    return config


@pytest.fixture(autouse=True)
def _task(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mvdjax.tasks.two_numbers', types.SimpleNamespace(Task=Task))


def test_two_streams_train_side_by_side_and_resume_to_the_bit(demo_data, tmp_path, capsys):
    whole, resumed, parts = (tmp_path / n for n in ('whole', 'resumed', 'parts'))
    train(load(demo_data), str(whole))
    out = capsys.readouterr().out
    assert 'clip batch 4 = 4 per device' in out
    assert 'image batch 16 = 16 per device' in out
    records = [r for r in read_metrics(str(whole)) if r['kind'] == 'train']
    assert [r['epoch'] for r in records] == [k * 4 / 32 for k in range(1, 5)]
    assert all(r['memory_mib'] > 0 and r['substituted'] == 0 for r in records)
    meta = checkpoints.read_meta(str(whole))
    config = load(demo_data)
    lists = list_marks(read_streams(config, configs.build(Run, config.run.to_dict(), 'run')))
    assert lists.keys() == {'clip', 'image'}
    assert meta['data_position'] == {'next_sample': 16, 'files': {'clip': [16, 0], 'image': [64, 0]}, 'lists': lists}
    assert meta['input_shape'] == [4, 32, 32, 3]

    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / 'checkpoints/4')
    assert checkpoints.read_meta(str(resumed))['data_position']['files'] == {'clip': [8, 0], 'image': [32, 0]}
    train(load(demo_data), str(resumed))
    assert small_runs.losses(resumed) == small_runs.losses(whole)
    assert checkpoints.read_meta(str(resumed))['data_position'] == meta['data_position']

    train(load(demo_data, 'run.accumulate=2'), str(parts))
    for step, loss in small_runs.losses(parts).items():
        assert loss == pytest.approx(small_runs.losses(whole)[step], rel=1e-5)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('streams.image.batch=15', r'streams\.image\.batch 15 does not divide .* 2 accumulation'),
        ('streams.image.batch=0', r'config\.streams\.<name>\.batch must be at least 1'),
        ('run.stream=image', r'config\.streams\.image has the name of config\.data'),
        ('streams.image.data.recipe=imges', "no data recipe 'imges'; did you mean 'images'"),
    ],
)
def test_streams_that_cannot_be_are_refused_by_name(demo_data, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train(load(demo_data, 'run.accumulate=2', override), str(tmp_path))


CONFIG = """
import ml_collections

def get_config(arg=''):
    source = {'files': 'a.txt', 'weight': 1.0}
    data = {'recipe': 'images', 'options': OPTIONS, 'mixture': {'zebra': source, 'ape': source}}
    beside = {'recipe': 'images', 'options': OPTIONS, 'files': 'b.txt'}
    return ml_collections.ConfigDict({
        'task_name': 'two_numbers', 'task': {}, 'data': data, 'evals': {}, 'init': {}, 'mesh': {},
        'streams': {'image': {'data': beside, 'batch': 8}},
        'optim': {'rate_counts': 'views', 'peak_rate': 0.1, 'warmup_epochs': 0.0},
        'run': {'global_batch': 4, 'steps': 2},
    })

OPTIONS = {'size': 32, 'patch': (1, 8, 8), 'mask': {'kind': 'random', 'ratio': 0.5}}
"""


def test_sections_of_sources_and_streams_have_their_defaults_and_can_be_overridden(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    overrides = ('mixture.ape.weight=3', 'mixture.ape.root=/apes', 'labels=same')
    config = configs.load(
        str(path), [f'--config.data.{o}' for o in overrides] + ['--config.streams.image.data.workers=2']
    )
    assert config.data.mixture.zebra.weight == 1
    assert config.data.mixture.ape.to_dict() == {
        **{'files': 'a.txt', 'weight': 3.0, 'root': '/apes', 'class_file': ''},
        **{'num_classes': None, 'options': None},
    }
    assert configs.side_streams(config)['image'].data['workers'] == 2
    with pytest.raises(UserError, match=r'config\.data\.mixture has no key .apo.; did you mean .ape.'):
        configs.load(str(path), ['--config.data.mixture.apo.weight=1'])


def test_the_mark_of_a_list_is_its_paths_below_their_common_folder_and_its_labels_in_order(tmp_path):
    def marks(lines, root='/data/k400'):
        (tmp_path / 'a.txt').write_text('\n'.join(lines))
        source = {'files': str(tmp_path / 'a.txt'), 'root': root, 'weight': 1.0}
        (tmp_path / 'b.txt').write_text('b.mp4 0')
        other = {'files': str(tmp_path / 'b.txt'), 'weight': 1.0}
        data = Data(recipe='pretrain', options={}, mixture={'a': source, 'b': other})
        return list_marks({'video': Stream(data, data.read(), 4)})

    lines = ['run/1.mp4 0', 'run/2.mp4 0', 'walk/1.mp4 1']
    first = marks(lines)
    assert {name: mark['records'] for name, mark in first.items()} == {'video/a': 3, 'video/b': 1}
    assert first == marks(lines, 'gs://bucket/k400')
    check_same_lists({}, first, 'w')  # a checkpoint older than the marks
    check_same_lists(first, first, 'w')
    for changed, says in (
        (lines[:2], 'list video/a had 3 files and has 2 now; restore the list, or start a new workdir'),
        ([lines[1], lines[0], lines[2]], 'had 3 files and has 3 now, but other ones, or in another order'),
        ([*lines[:2], 'walk/1.mp4 2'], 'or with other labels'),
        ([*lines[:2], 'swim/1.mp4 1'], 'but other ones'),
    ):
        assert marks(changed)['video/b'] == first['video/b']
        with pytest.raises(UserError, match=says):
            check_same_lists(first, marks(changed), 'w')


def test_the_counts_of_a_feed_leave_out_the_batch_that_is_read_ahead_and_go_on_after_a_resume():
    def batches():
        while True:
            yield {'video': np.zeros((4, 1)), 'substituted': np.array([0, 0, 1, 0])}

    budget = Budget(views=2, limit=0.35, files='list.txt', bad_file='bad.jsonl', tried=80, failed=25)
    feed, window = Feed(batches(), {'video': budget}), Window()
    feed(window)
    assert feed.counts() == {'video': [83, 26]}
    assert feed.counts(ahead=True) == {'video': [80, 25]}
    feed(window)
    assert feed.counts(ahead=True) == {'video': [83, 26]}
    assert window.substituted == 2
    for _ in range(4):
        feed(window)
    with pytest.raises(UserError, match=r'^32 of 101 files tried from list\.txt .*data\.max_bad_fraction 0\.3;'):
        Feed(batches(), {'video': dataclasses.replace(budget, limit=0.3)})(window)


def test_the_main_part_of_a_batch():
    flat = {'video': np.zeros(2)}
    assert main_part(flat, 'video') is flat
    assert main_part({'clip': flat, 'image': {}}, 'clip') is flat
