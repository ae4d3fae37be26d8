"""A broken file never stops, hangs or silently changes a run: replaced and counted in training, told in evaluation."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from video_files import encode

from mvdjax.data.decode import DecodeError
from mvdjax.data.pipeline import BadFiles, Data, empty_sample, eval_batches, read_bad_files, train_batches
from mvdjax.data.schema import SUBSTITUTED, Record
from mvdjax.errors import UserError
from mvdjax.feed import Budget, Feed
from mvdjax.window import Window

MASK = {'kind': 'tube', 'ratio': 0.5}
OPTIONS = {'size': 32, 'length': 4, 'stride': 2, 'patch': (2, 8, 8), 'mask': MASK}
BROKEN = {'truncated.mp4': 2, 'empty.mp4': 5, 'text.mp4': 7, 'missing.mp4': 11, 'folder.mp4': 14}  # name -> line


@pytest.fixture(scope='module')
def mixed(demo_data, tmp_path_factory):
    """A list of 15 files, 5 of them broken, each in its own way."""
    folder = tmp_path_factory.mktemp('mixed')
    good = sorted((demo_data / 'videos/train').iterdir())[:10]
    whole = next(path for path in good if path.suffix == '.mp4').read_bytes()
    (folder / 'truncated.mp4').write_bytes(whole[: len(whole) // 3])
    (folder / 'empty.mp4').write_bytes(b'')
    (folder / 'text.mp4').write_text('no video here\n' * 50)
    (folder / 'folder.mp4').mkdir()
    names = {line: name for name, line in BROKEN.items()}
    rest = iter(good)
    lines = [names.get(i) or os.fspath(next(rest)) for i in range(1, 16)]
    path = folder / 'list.txt'
    path.write_text(''.join(f'{name} {i % 8}\n' for i, name in enumerate(lines)))
    return path


def train(path, bad=None, start_step=0, steps=6, **options):
    data = Data(files=str(path), recipe='pretrain', options=OPTIONS, **options)
    files = data.read()
    return list(
        train_batches(
            data, files, seed=1, global_batch=5, start_step=start_step, steps=steps, bad=BadFiles(bad and str(bad))
        )
    )


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def check_record(path):
    lines = path.read_text().splitlines()
    found = {os.path.basename(e['path']): e for e in map(json.loads, lines)}
    assert len(lines) == len(found) == 5  # each once, whoever met it
    assert {name: e['line'] for name, e in found.items()} == BROKEN
    assert 'empty' in found['empty.mp4']['reason']
    assert 'does not exist' in found['missing.mp4']['reason']
    assert 'directory' in found['folder.mp4']['reason']
    assert all(found[name]['reason'] for name in BROKEN)


def test_training_replaces_broken_files_the_same_everywhere_and_lists_each_once(mixed, tmp_path):
    expected = train(mixed, tmp_path / 'here.jsonl')  # 2 epochs of 15
    substituted = np.concatenate([b[SUBSTITUTED] for b in expected])
    for epoch in substituted.reshape(2, 15):  # each broken file comes up once an epoch, and maybe as a substitute
        assert (epoch > 0).sum() == 5
    assert all(b['video'].any(axis=(1, 2, 3, 4)).all() for b in expected)  # never an empty sample
    check_record(tmp_path / 'here.jsonl')

    same(train(mixed, tmp_path / 'workers.jsonl', workers=2), expected)
    check_record(tmp_path / 'workers.jsonl')

    same(train(mixed, tmp_path / 'here.jsonl', start_step=2), expected[2:])  # a restart
    check_record(tmp_path / 'here.jsonl')


def test_evaluation_never_replaces_a_broken_file(mixed, tmp_path):
    options = {'size': 32, 'length': 4, 'stride': 2, 'clips': 2, 'crops': 1}
    data = Data(files=str(mixed), recipe='views', options=options)
    files = data.read()
    bad = tmp_path / 'bad.jsonl'
    found = list(eval_batches(data, files, batch=4, empty=empty_sample(data, files), bad=BadFiles(str(bad))))
    index = np.concatenate([b['index'] for b in found])
    valid = np.concatenate([b['valid'] for b in found])
    video = np.concatenate([b['video'] for b in found])
    assert index.tolist() == list(range(16))
    assert [i + 1 for i in index[:15] if not valid[i]] == sorted(BROKEN.values())
    assert not valid[15]
    assert not video[~valid].any()
    assert video[valid].any(axis=(1, 2, 3, 4, 5)).all()
    check_record(bad)


def only_missing(tmp_path, count):
    path = tmp_path / 'list.txt'
    path.write_text(''.join(f'none{i}.mp4 0\n' for i in range(count)))
    return path


@pytest.mark.parametrize('workers', [0, 1])
def test_all_files_broken_is_one_clear_error(tmp_path, workers):
    with pytest.raises(UserError, match=r'20 files of .*list\.txt in a row could not be read.*none\d\.mp4.*data\.root'):
        train(only_missing(tmp_path, 3), tmp_path / 'bad.jsonl', workers=workers)
    assert len(read_bad_files(str(tmp_path / 'bad.jsonl'))) == 3


def test_evaluation_of_broken_files_only_is_an_error(tmp_path):
    data = Data(files=str(only_missing(tmp_path, 6)), recipe='views', options={'size': 32})
    with pytest.raises(UserError, match=r'no file of .*list\.txt can be read.*none\d\.mp4'):
        empty_sample(data, data.read())


def test_more_broken_files_than_allowed_stop_the_run(mixed, tmp_path):
    def feed(limit):
        bad = tmp_path / 'bad.jsonl'
        feed = Feed(iter(train(mixed, bad, steps=40)), {'clips': Budget(1, limit, str(mixed), str(bad))})
        window = Window()
        for _ in range(40):
            assert SUBSTITUTED not in feed(window)
        return window.substituted

    assert 60 < feed(0.5) < 150  # a third is broken
    with pytest.raises(UserError, match=r'of \d{3} files tried.*data\.max_bad_fraction 0\.2.*bad\.jsonl'):
        feed(0.2)


def test_the_record_survives_many_writers_and_a_second_run(tmp_path):
    path = str(tmp_path / 'bad.jsonl')
    for _ in range(2):
        for record in (Record('a b.mp4', 0, 1), Record('ü.mp4', 0, 2), Record('a b.mp4', 0, 1)):
            BadFiles(path).add(record, DecodeError(record.path, 'is "broken"'))
    assert [e['path'] for e in read_bad_files(path)] == ['a b.mp4', 'ü.mp4']
    assert len(Path(path).read_text().splitlines()) == 2
    assert read_bad_files(path)[0] == {'path': 'a b.mp4', 'line': 1, 'reason': 'is "broken"'}
    BadFiles(None).add(Record('x', 0, 1), DecodeError('x', 'y'))
    assert read_bad_files(str(tmp_path / 'none.jsonl')) == []


RECIPES = {
    'pretrain': OPTIONS,
    'pretrain twice': {**OPTIONS, 'views': 2},
    'finetune': {'size': 32, 'length': 4, 'stride': 2},
    'finetune segments': {'size': 32, 'length': 4, 'sampling': 'segments', 'views': 2},
    'views': {'size': 32, 'length': 4, 'stride': 2, 'clips': 2, 'crops': 3},
    'views segments': {'size': 32, 'length': 4, 'sampling': 'segments', 'clips': 2, 'crops': 3},
}


@pytest.mark.parametrize('frames', [1, 3, 7])
def test_a_video_shorter_than_the_clip_works_in_every_recipe(tmp_path, frames):
    path = encode(tmp_path / 'short.mp4', 'libx264', frames=frames)
    (tmp_path / 'long').mkdir()
    long = shutil.move(encode(tmp_path / 'long/long.mp4', 'libx264', frames=30), tmp_path / 'long.mp4')
    for name, options in RECIPES.items():
        recipe = Data(files='', recipe=name.split()[0], options=options).make()
        short = recipe(Record(str(path), 3, 1), np.random.default_rng(0))
        usual = recipe(Record(str(long), 3, 1), np.random.default_rng(0))
        assert {n: (x.shape, x.dtype) for n, x in short.items()} == {n: (x.shape, x.dtype) for n, x in usual.items()}
        assert short['video'].std() > 5, name


@pytest.mark.parametrize(('height', 'width'), [(2, 2), (8, 200), (200, 8)])
def test_tiny_and_narrow_frames_work_in_every_recipe(tmp_path, height, width):
    path = encode(tmp_path / 'tiny.mp4', 'libx264', frames=9, height=height, width=width)
    for name, options in RECIPES.items():
        recipe = Data(files='', recipe=name.split()[0], options=options).make()
        for seed in range(5):
            assert recipe(Record(str(path), 3, 1), np.random.default_rng(seed))['video'].shape[-3:] == (32, 32, 3), name
