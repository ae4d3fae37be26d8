"""Packs: what is written is what is read, by this project and by tensorflow-datasets, and damage is told."""

import ctypes
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from packs import NAMES, copied, flip, good_lines

from mvdjax.data import packed
from mvdjax.data.decode import DecodeError, read_frames
from mvdjax.data.pack import verify_pack
from mvdjax.data.pipeline import BadFiles, Data, train_batches
from mvdjax.data.sources import read_list
from mvdjax.errors import UserError


def test_records_come_in_the_order_of_the_list(videos, whole):
    files = read_list(str(whole))
    expected = good_lines(videos)
    assert [r.path for r in files.records] == [f'pack://{whole}/train#{i}' for i in range(9)]
    assert [(r.label, r.line) for r in files.records] == [(r.label, r.line) for r in expected]
    assert files.class_names == NAMES
    for record, original in zip(files.records, expected, strict=True):
        media = packed.read_blob(record.path)
        assert media.data == Path(original.path).read_bytes()
        assert str(original.path).removeprefix(f'{videos}/') in media.name
        np.testing.assert_array_equal(read_frames(media, np.arange), read_frames(original.path, np.arange))


def test_tensorflow_datasets_reads_it_without_tensorflow(videos, whole):
    by_name = tfds.data_source('my_list', split='train', data_dir=whole.parent.parent)
    by_folder = tfds.builder_from_directory(whole).as_data_source('train')
    assert len(by_name) == len(by_folder) == 9
    for i, original in enumerate(good_lines(videos)):
        for source in (by_name, by_folder):
            example = source[i]
            assert example['path'].decode() == original.path.removeprefix(f'{videos}/')
            assert (example['label'], example['width'], example['height']) == (original.label, 64, 48)
            assert (example['frames'], example['codec']) == (14 + i, b'h264')
            assert example['fps'] == pytest.approx(30, rel=0.02)
            assert example['video'] == Path(original.path).read_bytes()
    info = tfds.builder_from_directory(whole).info
    assert info.features['label'].names == list(NAMES)
    assert info.splits['train'].num_examples == 9
    assert len(by_folder.dataset_info.splits['train[:50%]'].file_instructions) > 0
    assert 'tensorflow' not in sys.modules


def test_training_from_a_copy_is_training_from_the_files(videos, whole):
    options = {'size': 32, 'length': 4, 'stride': 2, 'patch': (2, 8, 8), 'mask': {'kind': 'tube', 'ratio': 0.5}}

    def batches(path, workers):
        data = Data(files=str(path), recipe='pretrain', options=options, workers=workers)
        return list(train_batches(data, data.read(), seed=3, global_batch=4, start_step=0, steps=4, bad=BadFiles(None)))

    expected = batches(videos / 'good.txt', 0)
    for workers in (0, 2):
        found = batches(whole, workers)
        assert len(found) == len(expected) == 4
        for a, b in zip(found, expected, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


def test_reading_leaves_the_memory_settings_of_the_process_alone(whole, monkeypatch):
    monkeypatch.setattr(ctypes.CDLL, '__getattr__', lambda library, name: pytest.fail(f'{name} is called'))
    packed._sources.clear()
    assert packed.read_blob(f'pack://{whole}/train#0').data


def test_many_threads_read_at_once(whole):
    records = packed.read_pack(str(whole)).records
    expected = [packed.read_blob(record.path).data for record in records]
    packed._sources.clear()
    start = threading.Barrier(8)

    def read(i):
        start.wait()
        return [packed.read_blob(records[(i + k) % 9].path).data == expected[(i + k) % 9] for k in range(18)]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(answers) for answers in pool.map(read, range(8)))


def test_verification_finds_a_flipped_bit(whole, tmp_path, here):
    assert verify_pack(str(whole), progress=False) == 9
    shard = 'my_list-train.array_record-00001-of-00004'
    content = (whole / shard).read_bytes()
    start = content.index(b'ftyp')  # inside the first video of that shard
    target = copied(whole, tmp_path)
    flip(target / shard, start + 300)
    with pytest.raises(UserError, match=rf'{shard} does not hold what was written: video \d .*copy the folder again'):
        verify_pack(str(target), progress=False)
    records = packed.read_pack(str(target)).records
    line = json.loads((whole / 'records' / '00001.json').read_text())['records'][0]['line']
    broken = next(record for record in records if record.line == line)
    with pytest.raises(DecodeError, match=f'{broken.path} cannot be read: .*hash mismatch'):
        packed.read_blob(broken.path)
    for record in records:
        if record is not broken:
            packed.read_blob(record.path)


def test_verification_compares_with_what_was_written(whole, tmp_path, here):
    """An example that is whole but another one."""
    target = copied(whole, tmp_path)
    file = target / 'records' / '00000.json'
    content = json.loads(file.read_text())
    content['records'][0]['digest'] = content['records'][1]['digest']
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'video 0 .* has another hash'):
        verify_pack(str(target), progress=False)


def test_an_incomplete_copy_is_refused(whole, tmp_path):
    target = copied(whole, tmp_path)
    shard = target / 'my_list-train.array_record-00002-of-00004'
    data = shard.read_bytes()
    shard.write_bytes(data[:-1000])
    with pytest.raises(UserError, match=rf'{shard.name} has {len(data) - 1000} bytes, {len(data)} bytes were written'):
        packed.read_pack(str(target))
    shard.unlink()
    with pytest.raises(UserError, match=rf'{shard.name} is missing'):
        packed.read_pack(str(target))
    (target / 'pack.json').unlink()
    with pytest.raises(UserError, match='is no finished pack'):
        packed.read_pack(str(target))
    with pytest.raises(DecodeError, match='is no finished pack'):
        packed.read_blob(f'pack://{target}/train#0')


@pytest.mark.parametrize('address', ['pack://nowhere', 'pack:///p/train#x', 'pack:///p/train'])
def test_no_address(address):
    with pytest.raises(DecodeError, match='is no address in a pack'):
        packed.read_blob(address)


def test_examples_that_are_not_there(whole):
    with pytest.raises(DecodeError, match='the pack holds 9 videos'):
        packed.read_blob(f'pack://{whole}/train#9')
    with pytest.raises(DecodeError, match="has no split 'val', only 'train'"):
        packed.read_blob(f'pack://{whole}/val#0')
