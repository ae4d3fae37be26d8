"""Packs: what is written, whatever interrupts the writing."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packs import COPY, copied, good_lines, in_this_process, listed

from mvdjax.data import pack, pack_state, packed
from mvdjax.data.decode import Blob, read_frames
from mvdjax.data.pack import verify_pack, write_pack
from mvdjax.data.pack_state import PackSpec
from mvdjax.data.sources import read_list
from mvdjax.errors import UserError
from mvdjax.main import main


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
