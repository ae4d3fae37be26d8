"""Packs: what is written is what is read, whatever interrupted the writing, and damage is told."""

import ctypes
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from video_files import X264, encode

from mvdjax.data import pack, pack_state, packed
from mvdjax.data.decode import Blob, DecodeError, read_frames
from mvdjax.data.pack import verify_pack, write_pack
from mvdjax.data.pack_state import PackSpec
from mvdjax.data.pipeline import BadFiles, Data, train_batches
from mvdjax.data.sources import read_list
from mvdjax.errors import UserError
from mvdjax.main import main

COPY = PackSpec('copy', shards=4, workers=1, max_bad=0.5)
NAMES = ('move left', 'jump, high', 'übung')


def in_this_process(function, jobs, workers, at_work):
    """Instead of `watched.run_jobs`: the tests need not start a process each."""
    del workers, at_work
    for number, job in enumerate(jobs):
        yield number, function(job, lambda seconds: None)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(pack, 'run_jobs', in_this_process)


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """A folder with nine videos, one text file among them and one that is missing, their list and class names."""
    folder = tmp_path_factory.mktemp('videos')
    (folder / 'sub folder').mkdir()
    lines = []
    for i in range(9):
        name = f'sub folder/{i}.mp4' if i % 2 else f'{i}.mkv'
        encode(folder / name, 'libx264', frames=14 + i, height=48, width=64, **X264)
        lines.append(f'{name} {i % 3}')
    (folder / 'text.mp4').write_text('no video\n')
    lines[3:3] = ['text.mp4 1']
    lines[7:7] = ['', 'gone.mp4 2']
    (folder / 'my-list.txt').write_text('\n'.join(lines) + '\n')
    (folder / 'good.txt').write_text('\n'.join(line for line in lines if line[:4] not in ('text', '', 'gone')) + '\n')
    (folder / 'classes.txt').write_text('\n'.join(NAMES) + '\n')
    return folder


def listed(videos, name='my-list.txt'):
    return read_list(str(videos / name), class_file=str(videos / 'classes.txt'))


def good_lines(videos):
    return [record for record in listed(videos).records if 'text' not in record.path and 'gone' not in record.path]


@pytest.fixture(scope='module')
def whole(videos, tmp_path_factory):
    """A finished pack. Read only."""
    folder = tmp_path_factory.mktemp('packs') / 'my_list' / '1.0.0'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, 'run_jobs', in_this_process)
        write_pack(listed(videos), '', str(folder), COPY, progress=False)
    return folder


def copied(whole, tmp_path):
    target = tmp_path / 'pack'
    subprocess.run(['cp', '-r', str(whole), str(target)], check=True)
    return target


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


def test_what_could_not_be_read_is_written_down(videos, whole):
    rows = [json.loads(line) for line in (whole / 'bad_videos.jsonl').read_text().splitlines()]
    assert [(row['path'], row['line']) for row in rows] == [(f'{videos}/text.mp4', 4), (f'{videos}/gone.mp4', 9)]
    assert 'no video' in rows[0]['reason']
    assert rows[1]['reason'] == 'does not exist'
    summary = json.loads((whole / 'pack.json').read_text())
    assert summary['counts'] == {
        'videos': 9,
        'bad': 2,
        'frames': sum(range(14, 23)),
        'bytes': sum(os.path.getsize(record.path) for record in good_lines(videos)),
    }
    assert (summary['profile'], summary['name'], summary['shards']) == ('copy', 'my_list', 4)


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


@pytest.mark.parametrize('profile', ['gop16', 'intra'])
def test_encoded_profiles(videos, tmp_path, here, profile):
    spec = PackSpec(profile, size=32, shards=2, split='val')
    summary = write_pack(listed(videos, 'good.txt'), '', str(tmp_path / 'p'), spec, progress=False)
    source = packed.open_source(tmp_path / 'p', 'val')
    assert [source[i]['frames'] for i in range(9)] == list(range(14, 23))
    assert {(e['width'], e['height'], e['codec']) for e in source} == {
        (42, 32, {'gop16': b'h264', 'intra': b'mjpeg'}[profile])
    }
    assert summary['size'] == 32
    assert read_frames(Blob('', source[0]['video']), np.arange).shape == (14, 32, 42, 3)


# Where a pack is killed: after so many videos, or after so many files have got their final names.
KILLED = """
import os, signal, sys
from mvdjax.data import pack, shards, transcode
from mvdjax.data.pack_state import PackSpec
from mvdjax.data.sources import read_list
def here(function, jobs, workers, at_work):
    for number, job in enumerate(jobs):
        yield number, function(job, lambda seconds: None)
pack.run_jobs = here
left = {kind: int(count) for kind, count in [sys.argv[4].split(':')]}
def dying(kind, function):
    def call(*args):
        left[kind] = left.get(kind, 99) - 1
        if left[kind] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return call
transcode.pack_video = dying('video', transcode.pack_video)
os.replace = dying('file', os.replace)
files = read_list(sys.argv[1], class_file=sys.argv[2])
pack.write_pack(files, '', sys.argv[3], PackSpec('copy', shards=4, max_bad=0.5))
"""


@pytest.mark.parametrize('moment', ['video:5', 'file:4', 'file:9'])  # in a shard; between its name and its description
def test_killed_and_started_again(videos, whole, tmp_path, here, moment):
    target = tmp_path / 'pack'
    arguments = [str(videos / 'my-list.txt'), str(videos / 'classes.txt'), str(target), moment]
    done = subprocess.run([sys.executable, '-c', KILLED, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(UserError, match='is no finished pack'):
        packed.read_pack(str(target))
    kept = {p.name: p.stat().st_mtime_ns for p in target.glob('records/*.json')}
    assert kept
    write_pack(listed(videos), '', str(target), COPY, progress=False)
    assert {name: (target / 'records' / name).stat().st_mtime_ns for name in kept} == kept  # finished shards are kept
    for name in sorted(p.name for p in whole.glob('records/*.json')):
        assert (target / 'records' / name).read_text() == (whole / 'records' / name).read_text()
    assert sorted(p.name for p in target.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert verify_pack(str(target), progress=False) == 9


def test_the_command_with_processes(videos, tmp_path, capsys):
    target = tmp_path / 'pack'
    command = ['data', 'pack', str(videos / 'my-list.txt'), '--profile=copy', f'--output={target}', '--shards=3']
    command += ['--max_bad_fraction=0.2']
    assert main([*command, '--workers=2']) == 0
    printed = capsys.readouterr().out
    assert f'Packing 11 files as copy into 3 shards in {target}.' in printed
    assert '9 videos, 162 frames' in printed
    assert '2 of 11 files could not be read and were left out' in printed
    assert main([*command, '--workers=1']) == 0
    assert 'is complete: nothing to do' in capsys.readouterr().out


def test_a_file_that_kills_its_worker_is_left_out(videos, tmp_path, monkeypatch):
    failures = []

    def dying(function, jobs, workers, at_work):
        """A worker that dies of the first file whose name holds a 5, like one that a decoder has crashed."""
        for number, job in enumerate(jobs):
            for place, item in enumerate(job.items):
                if '5.mp4' in item.path and not item.blame:
                    Path(job.note).write_text(str(place))
                    assert at_work(job) == item.source
                    failures.append(item.path)
                    yield number, pack.Failure('hangs: decoding showed no progress for too long')
                    break
            else:
                yield number, function(job, lambda seconds: None)

    monkeypatch.setattr(pack, 'run_jobs', dying)
    summary = write_pack(listed(videos), '', str(tmp_path / 'p'), COPY, progress=False)
    assert failures == ['sub folder/5.mp4']
    assert (summary['counts']['videos'], summary['counts']['bad']) == (8, 3)
    assert 'hangs: decoding' in (tmp_path / 'p' / 'bad_videos.jsonl').read_text()


def test_what_could_not_be_reached_is_tried_again(videos, tmp_path, here):
    folder, target, spec = tmp_path / 'videos', tmp_path / 'p', dataclasses.replace(COPY, max_bad=1)
    folder.mkdir()
    for name in ('0.mkv', '2.mkv', '4.mkv', 'text.mp4'):
        (folder / name).write_bytes((videos / name).read_bytes())
    (tmp_path / 'list.txt').write_text('0.mkv 0\n2.mkv 1\n4.mkv 2\ntext.mp4 0\n')

    def write(root):
        return write_pack(read_list(str(tmp_path / 'list.txt'), str(root)), str(root), str(target), spec, False)

    with pytest.raises(UserError, match='none of the 4 files'):
        write(tmp_path / 'elsewhere')
    (folder / '2.mkv').rename(tmp_path / 'away')
    assert write(folder)['counts']['bad'] == 2
    kept = {path.name: path.stat().st_mtime_ns for path in target.glob('records/*.json')}
    assert write(folder)['counts']['bad'] == 2  # still away: nothing to do
    assert {path.name: path.stat().st_mtime_ns for path in target.glob('records/*.json')} == kept
    (tmp_path / 'away').rename(folder / '2.mkv')
    assert write(folder)['counts']['videos'] == 3
    changed = [name for name, time in kept.items() if (target / 'records' / name).stat().st_mtime_ns != time]
    assert changed == ['00001.json']
    (row,) = [json.loads(line) for line in (target / 'bad_videos.jsonl').read_text().splitlines()]
    assert (row['path'], row['reached']) == (f'{folder}/text.mp4', True)
    assert verify_pack(str(target), progress=False) == 3


def test_too_many_bad_files_make_no_pack(videos, tmp_path, here, capsys):
    target = tmp_path / 'p'
    command = ['data', 'pack', str(videos / 'my-list.txt'), '--profile=copy', f'--output={target}', '--shards=4']
    assert main(command) == 1
    error = capsys.readouterr().err
    assert '2 of the 11 files' in error
    assert f'--max_bad_fraction=0.1: {target}/bad_videos.jsonl says why; mend that and start the same' in error
    assert not (target / 'pack.json').exists()
    times = {path: path.stat().st_mtime_ns for path in target.glob('records/*.json')}
    assert main([*command, '--max_bad_fraction=0.5']) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times  # accepted as they are
    assert main(command) == 0  # what is finished stays so
    assert 'nothing to do' in capsys.readouterr().out


def test_strict(videos, tmp_path, here):
    spec = dataclasses.replace(COPY, strict=True)
    with pytest.raises(UserError, match=r'text\.mp4 .*no video.* \(line 4 of the list\).*1 of 4 shards are finished'):
        write_pack(listed(videos), '', str(tmp_path / 'p'), spec, progress=False)
    assert write_pack(listed(videos), '', str(tmp_path / 'p'), COPY, progress=False)['counts']['videos'] == 9
    with pytest.raises(UserError, match=r'text\.mp4 .*no video.* and the pack in .* leaves it out'):
        write_pack(listed(videos), '', str(tmp_path / 'p'), spec, progress=False)


def test_a_full_disk_is_a_sentence_and_no_loss(videos, tmp_path, here, monkeypatch):
    target = str(tmp_path / 'p')
    room = iter([10**9] * 4)
    real = pack.shards.shutil.disk_usage
    with monkeypatch.context() as patch:
        patch.setattr(pack.shards.shutil, 'disk_usage', lambda path: real(path)._replace(free=next(room, 1000)))
        with pytest.raises(UserError, match=r'No space left on device.* 1 of 4 shards are finished; start the same'):
            write_pack(listed(videos), '', target, COPY, progress=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # a quota that statvfs does not know of
    try:
        with pytest.raises(UserError, match=r'File too large.* 1 of 4 shards are finished; start the same'):
            write_pack(listed(videos), '', target, COPY, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert write_pack(listed(videos), '', target, COPY, progress=False)['counts']['videos'] == 9
    assert verify_pack(target, progress=False) == 9


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


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


def test_a_lost_shard_is_written_again(videos, whole, tmp_path, here):
    target = copied(whole, tmp_path)
    (target / 'my_list-train.array_record-00002-of-00004').unlink()
    write_pack(listed(videos), '', str(target), COPY, progress=False)
    assert verify_pack(str(target), progress=False) == 9


def test_another_command_in_the_same_folder_is_refused(videos, whole, tmp_path, here):
    others = {
        'profile copy and not gop16': (listed(videos), PackSpec('gop16', shards=4)),
        'shards 4 and not 3': (listed(videos), PackSpec('copy', shards=3)),
        'split train and not val': (listed(videos), PackSpec('copy', shards=4, split='val')),
        'name my_list and not good, listed 11 and not 9': (listed(videos, 'good.txt'), COPY),
        'class_names': (read_list(str(videos / 'my-list.txt')), COPY),
    }
    unfinished = tmp_path / 'unfinished'
    unfinished.mkdir()
    (unfinished / pack_state.UNFINISHED).write_text((whole / 'pack.json').read_text())
    for folder in (whole, unfinished):
        for text, (files, spec) in others.items():
            with pytest.raises(UserError, match=f'holds a pack with .*{text}.*: give another --output'):
                write_pack(files, '', str(folder), spec, progress=False)


def test_folders_that_hold_something_else(videos, tmp_path, here):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.txt').write_text('do not touch')
    (tmp_path / 'file').write_text('')
    for name, text in (('full', 'is not empty and holds no pack'), ('file', 'is no folder')):
        with pytest.raises(UserError, match=text):
            write_pack(listed(videos), '', str(tmp_path / name), COPY, progress=False)


def test_two_at_once_are_refused(videos, tmp_path, here, monkeypatch):
    target = str(tmp_path / 'p')

    def meanwhile(function, jobs, workers, at_work):
        with pytest.raises(UserError, match='another process is packing into'):
            write_pack(listed(videos), '', target, COPY, progress=False)
        yield from in_this_process(function, jobs, workers, at_work)

    monkeypatch.setattr(pack, 'run_jobs', meanwhile)
    write_pack(listed(videos), '', target, COPY, progress=False)


def test_nothing_readable(tmp_path, here):
    (tmp_path / 'list.txt').write_text('a.mp4 0\nb.mp4 1\n')
    with pytest.raises(UserError, match=r'none of the 2 files of .*list\.txt could be read: .*bad_videos\.jsonl'):
        write_pack(read_list(str(tmp_path / 'list.txt')), '', str(tmp_path / 'p'), COPY, progress=False)


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'profile': 'mp4'}, "there is no profile 'mp4'; choose one of copy, gop16, intra"),
        ({'profile': 'copy', 'size': 256}, 'copy keeps pictures as they are'),
        ({'profile': 'intra', 'size': 255}, 'even number of pixels'),
        ({'profile': 'intra', 'name': 'My List'}, "--name is made of .* not 'My List'"),
        ({'profile': 'intra', 'split': 'a/b'}, '--split is made of'),
        ({'profile': 'intra', 'shards': -1}, 'numbers from 0 on'),
        ({'profile': 'intra', 'max_bad': 1.5}, '--max_bad_fraction is a share from 0 to 1'),
    ],
)
def test_options_that_make_no_pack(options, text):
    with pytest.raises(UserError, match=text):
        PackSpec(**options)


@pytest.mark.parametrize('address', ['pack://nowhere', 'pack:///p/train#x', 'pack:///p/train'])
def test_no_address(address):
    with pytest.raises(DecodeError, match='is no address in a pack'):
        packed.read_blob(address)


def test_examples_that_are_not_there(whole):
    with pytest.raises(DecodeError, match='the pack holds 9 videos'):
        packed.read_blob(f'pack://{whole}/train#9')
    with pytest.raises(DecodeError, match="has no split 'val', only 'train'"):
        packed.read_blob(f'pack://{whole}/val#0')
