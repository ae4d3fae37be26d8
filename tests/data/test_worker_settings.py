"""What a worker sets for itself, looked at in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import cv2, numpy as np
from mvdjax.data import worker_settings

if sys.argv[1] == 'tuned':
    worker_settings.tune()
    assert cv2.getNumThreads() == 1

def clips():
    held = [np.ones(2**22, np.uint8) for _ in range(8)]  # a batch of decoded clips, then freed

clips()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    clips()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    environment = {name: value for name, value in os.environ.items() if not name.startswith('MALLOC_')}
    done = subprocess.run(
        [sys.executable, '-c', FAULTS, how], check=True, capture_output=True, text=True, env=environment
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='other C libraries have no such setting')
def test_freed_memory_is_used_again_without_asking_the_kernel():
    assert faults('tuned') < faults('plain') / 5
