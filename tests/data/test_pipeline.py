"""The order of samples is arithmetic: nothing about workers, hosts or restarts enters. See test_broken_files too."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mvdjax import keywords
from mvdjax.data import pipeline
from mvdjax.data.pipeline import BadFiles, Data, Numbers, eval_batches, train_batches
from mvdjax.data.schema import SUBSTITUTED, FileList, Record
from mvdjax.errors import UserError

PRETRAIN = {'size': 32, 'length': 4, 'stride': 2, 'patch': (2, 8, 8), 'mask': {'kind': 'tube', 'ratio': 0.5}}
FINETUNE = {'size': 32, 'length': 4, 'stride': 2, 'rand_augment': 'rand-m7-n4-mstd0.5-inc1', 'erasing': 0.5}


@dataclasses.dataclass(frozen=True)
class Echo:
    """Returns which record it got and a draw, so that whole epochs cost nothing."""

    views: int = 1

    def __call__(self, record, rng):
        sample = {'line': np.int32(record.line), 'draw': rng.random()}
        if self.views == 1:
            return sample
        return {
            'line': np.full(self.views, record.line, np.int32),
            'view': np.arange(self.views),
            'draw': rng.random(self.views),
        }


class BackendProbe:
    """Looks, inside the process that decodes, whether a JAX backend was started."""

    views = 1

    def __call__(self, record, rng):
        del record, rng
        bridge = sys.modules.get('jax._src.xla_bridge')
        started = len(bridge._backends) if bridge else 0
        return {'pid': np.int64(os.getpid()), 'backends': np.int64(started)}


@dataclasses.dataclass(frozen=True)
class ProbeData(Data):
    probe: object = None

    def make(self):
        return self.probe


def echo(count, views=1, **options):
    data = ProbeData(files='', recipe='', options={}, probe=Echo(views), **options)
    return data, FileList('list.txt', tuple(Record(f'{i}.mp4', 0, i) for i in range(count)), ())


def batches(data, files, *, seed=0, global_batch=8, start_step=0, steps=3, **where):
    return list(
        train_batches(
            data,
            files,
            seed=seed,
            global_batch=global_batch,
            start_step=start_step,
            steps=steps,
            bad=BadFiles(None),
            **where,
        )
    )


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


@pytest.fixture(scope='module')
def pretrain(demo_data):
    def make(**options):
        return Data(files=str(demo_data / 'pretrain.txt'), recipe='pretrain', options=PRETRAIN, **options)

    data = make()
    files = data.read()
    return make, files, batches(data, files, steps=3)


@pytest.mark.parametrize(('workers', 'threads'), [(0, 1), (0, 4), (1, 4), (2, 1)])
def test_batches_do_not_depend_on_workers_and_threads(pretrain, workers, threads):
    make, files, expected = pretrain
    same(batches(make(workers=workers, threads=threads), files, steps=3), expected)


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_read_the_rows_of_the_same_global_batches(pretrain, processes):
    make, files, expected = pretrain
    parts = [batches(make(), files, steps=3, parts=(p,), of=processes) for p in range(processes)]
    joined = [{n: np.concatenate([part[k][n] for part in parts]) for n in expected[k]} for k in range(3)]
    same(joined, expected)


def test_starting_at_a_step_equals_skipping_the_steps_before(pretrain):
    make, files, expected = pretrain
    same(batches(make(), files, start_step=1, steps=3), expected[1:])
    same(batches(make(), files, start_step=1, steps=3, parts=(1,), of=2), [
        {n: x[4:] for n, x in b.items()} for b in expected[1:]
    ])  # fmt: skip
    assert batches(make(), files, start_step=3, steps=3) == []


def test_a_sample_of_the_augmenting_recipe_is_a_function_of_seed_and_number(demo_data):
    data = Data(files=str(demo_data / 'motion_train.txt'), recipe='finetune', options=FINETUNE, threads=4)
    files = data.read()
    whole = batches(data, files, seed=3, global_batch=4, steps=4)
    again = batches(data, files, seed=3, global_batch=8, steps=2)  # other batches, the same sample numbers
    for name in whole[0]:
        np.testing.assert_array_equal(
            np.concatenate([b[name] for b in whole]), np.concatenate([b[name] for b in again])
        )
    other = batches(data, files, seed=4, global_batch=4, steps=1)
    assert not np.array_equal(other[0]['video'], whole[0]['video'])


def test_every_epoch_shows_every_record_once_in_another_order():
    data, files = echo(24)
    lines = np.concatenate([b['line'] for b in batches(data, files, steps=9)]).reshape(3, 24)
    for epoch in lines:
        assert sorted(epoch) == list(range(24))
    assert len({tuple(epoch) for epoch in lines}) == 3
    assert sorted(lines[0]) != list(lines[0])


def test_epochs_run_on_where_the_batch_does_not_divide_the_list():
    data, files = echo(10)
    lines = np.concatenate([b['line'] for b in batches(data, files, steps=5)])  # 40 samples, 4 epochs
    for epoch in lines.reshape(4, 10):
        assert sorted(epoch) == list(range(10))


def test_draws_are_new_in_every_epoch_and_for_every_sample():
    data, files = echo(8)
    draws = np.concatenate([b['draw'] for b in batches(data, files, steps=4)])
    assert len(set(draws)) == 32


def test_seeds_order_the_list_differently():
    data, files = echo(24)
    orders = {tuple(np.concatenate([b['line'] for b in batches(data, files, seed=s)])) for s in range(5)}
    assert len(orders) == 5


def test_repeated_augmentation_keeps_the_views_of_a_video_together():
    data, files = echo(24, views=3)
    (batch,) = batches(data, files, global_batch=4, steps=1)
    single = echo(24)
    (plain,) = batches(*single, global_batch=4, steps=1)
    np.testing.assert_array_equal(batch['line'], np.repeat(plain['line'], 3))
    np.testing.assert_array_equal(batch['view'], np.tile(np.arange(3), 4))
    assert len(set(batch['draw'])) == 12
    assert batch[SUBSTITUTED].shape == (12,)


def test_numbers_are_the_contiguous_rows_of_each_process():
    assert list(Numbers(6, 2, 4, (0,), 2)) == [12, 13, 14, 18, 19, 20]
    assert list(Numbers(6, 2, 4, (1,), 2)) == [15, 16, 17, 21, 22, 23]


def test_numbers_of_parts_that_are_not_neighbours():
    assert list(Numbers(8, 0, 2, (0, 3), 4)) == [0, 1, 6, 7, 8, 9, 14, 15]
    assert list(Numbers(8, 0, 2, (0, 3), 4).after(1)) == [8, 9, 14, 15]


def test_evaluation_goes_through_the_list_once_in_order_and_pads_the_end():
    data, files = echo(10)
    empty = {'line': np.int32(-1), 'draw': 0.0}
    found = [
        list(eval_batches(data, files, batch=4, empty=empty, bad=BadFiles(None), parts=(p,), of=2)) for p in range(2)
    ]
    rows = {n: np.concatenate([np.concatenate([a[n], b[n]]) for a, b in zip(*found, strict=True)]) for n in found[0][0]}
    assert rows['index'].tolist() == list(range(12))
    assert rows['valid'].tolist() == [True] * 10 + [False] * 2
    assert rows['line'].tolist() == list(range(10)) + [-1, -1]


def test_workers_start_no_jax_backend():
    assert len(jax.devices()) > 0
    assert BackendProbe()(None, None)['backends'] > 0  # the probe sees one where there is one
    data, files = echo(8, workers=1)
    (batch,) = batches(dataclasses.replace(data, probe=BackendProbe()), files, steps=1)
    assert batch['backends'].tolist() == [0] * 8
    assert os.getpid() not in batch['pid']


ORPHAN_MAKER = """
import sys, time
from mvdjax.data.pipeline import BadFiles, Data, train_batches

def main():
    data = Data(files=sys.argv[1], recipe='pretrain', options={options!r}, workers=1)
    stream = train_batches(data, data.read(), seed=0, global_batch=2, start_step=0, steps=10**6, bad=BadFiles(None))
    next(stream)
    print('ready', flush=True)
    time.sleep(600)

if __name__ == '__main__':
    main()
"""


def group_members(group):
    """Processes of a process group that still run."""
    found = []
    for entry in Path('/proc').iterdir():
        try:
            state, _, its_group = (entry / 'stat').read_text().rpartition(')')[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state not in 'ZX':
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs Linux')
def test_no_worker_outlives_a_killed_parent(demo_data, tmp_path):
    script = tmp_path / 'parent.py'
    script.write_text(ORPHAN_MAKER.format(options=PRETRAIN))
    command = [sys.executable, str(script), str(demo_data / 'pretrain.txt')]
    environment = {**os.environ, 'PYTHONPATH': str(Path(pipeline.__file__).parents[2])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    ) as parent:
        assert parent.stdout.readline() == b'ready\n'
        try:
            assert len(group_members(parent.pid)) > 1  # the parent, its worker, and multiprocessing's tracker
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()
            limit = time.monotonic() + 20
            while group_members(parent.pid) and time.monotonic() < limit:
                time.sleep(0.1)
            assert group_members(parent.pid) == []
        finally:
            for pid in group_members(parent.pid):
                os.kill(pid, signal.SIGKILL)


class Suicide:
    views = 1

    def __call__(self, record, rng):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_sentence_and_no_hang():
    data, files = echo(8, workers=1)
    with pytest.raises(UserError, match=r'workers die again and again \(exit code -9\).*data\.workers'):
        batches(dataclasses.replace(data, probe=Suicide()), files, steps=1)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'workers': -1}, 'data.workers must be >= 0'),
        ({'threads': 0}, 'data.threads'),
        ({'prefetch': 0}, 'data.prefetch'),
        ({'max_bad_fraction': 1.5}, 'max_bad_fraction is a share'),
        ({'max_bad_fraction': -0.1}, 'max_bad_fraction is a share'),
    ],
)
def test_counts_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        echo(1, **options)


def test_unknown_recipe_and_option_name_the_nearest():
    with pytest.raises(UserError, match="no data recipe 'pretran'; did you mean 'pretrain'"):
        pipeline.make_recipe('pretran', {})
    with pytest.raises(UserError, match="'pretrain' has no key 'szie'; did you mean 'size'"):
        pipeline.make_recipe('pretrain', {**PRETRAIN, 'szie': 3})
    with pytest.raises(UserError, match="'pretrain' lacks size"):
        pipeline.make_recipe('pretrain', {k: v for k, v in PRETRAIN.items() if k != 'size'})
    with pytest.raises(UserError, match=r"'pretrain'\.length must be a whole number, not '4'"):
        pipeline.make_recipe('pretrain', {**PRETRAIN, 'length': '4'})


def test_a_recipe_that_fails_to_import_is_not_called_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mvdjax.data.masks', None)
    monkeypatch.delitem(sys.modules, 'mvdjax.data.recipes.images', raising=False)
    with pytest.raises(ImportError, match=r'mvdjax\.data\.masks'):
        pipeline.recipe_class('images')


def test_keywords_check_kinds():
    def function(a: int, b: float | None = None, c: tuple[int, int] = (1, 2), d: bool = False, e: object = 0): ...

    keywords.check(function, {'a': np.int64(3), 'b': 2, 'c': [1, 2], 'd': True, 'e': 'anything'}, 'it')
    for wrong in ({'a': True}, {'a': 1.0}, {'a': None}, {'b': '1'}, {'c': 'ab'}, {'c': (1,)}, {'d': 1}):
        with pytest.raises(UserError, match=rf'it\.{next(iter(wrong))} must be'):
            keywords.check(function, {'a': 1, **wrong}, 'it')
