"""Five hundred bad files: no crash, no hang, no wrong frame, no memory taken on a header's word."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from video_files import available


def test_the_corpus_of_bad_files(tmp_path):
    if not available('libx265') or not available('libvpx-vp9'):
        pytest.skip('this FFmpeg makes no HEVC or VP9')
    done = subprocess.run(  # in a process of its own: a crash must not take the tests along
        [sys.executable, Path(__file__).with_name('mutants.py'), tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-500:]}'
    total, refused, peak = map(int, re.search(r"^(\d+) .*refused': (\d+).* (\d+) MiB at most", done.stdout).groups())
    assert total == 500
    assert 150 < refused < 400
    assert peak < 350  # the smallest of the bombs asks for 900
