"""Packs for tests: a list with a text file and a missing one in it, and its pack."""

import subprocess
from pathlib import Path

from video_files import X264, encode

from mvdjax.data.pack_state import PackSpec
from mvdjax.data.sources import read_list

COPY = PackSpec('copy', shards=4, workers=1, max_bad=0.5)
NAMES = ('move left', 'jump, high', 'übung')


def in_this_process(function, jobs, workers, at_work):
    """Instead of `watched.run_jobs`: the tests need not start a process each."""
    del workers, at_work
    for number, job in enumerate(jobs):
        yield number, function(job, lambda seconds: None)


def write_videos(folder: Path) -> None:
    """Nine videos, one text file among them and one that is missing, their list and class names."""
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


def listed(videos, name='my-list.txt'):
    return read_list(str(videos / name), class_file=str(videos / 'classes.txt'))


def good_lines(videos):
    return [record for record in listed(videos).records if 'text' not in record.path and 'gone' not in record.path]


def copied(whole, tmp_path):
    target = tmp_path / 'pack'
    subprocess.run(['cp', '-r', str(whole), str(target)], check=True)
    return target


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
