"""Candidates for the tests of `mvdjax.bench.measure`, which imports them in processes of their own."""

import os
import time

from mvdjax.bench.measure import Cost


def burn(seconds, clips=2):
    def run(i):
        started = time.process_time()
        while time.process_time() - started < seconds:
            pass
        return clips

    return run


def told(clips=4):
    return lambda i: Cost(clips, cpu=0.5 * i, wall=2.0 * i, memory={'worker_own_mib': 10.0 - i})


def noting(path, name):
    def run(i):
        with open(path, 'a') as file:
            file.write(f'{name}{i} ')
        return 1

    return run


def threads():
    assert os.environ['OMP_NUM_THREADS'] == '1'
    return lambda i: 1


def broken():
    def run(i):
        raise KeyError('a bug')

    return run


def dying():
    return lambda i: os._exit(3)
