"""A run that hangs is ended from outside, with every thread's stack, whatever it hangs in."""

import subprocess
import sys

from multiprocess import environment

SCRIPT = """
import sys, threading, time
sys.path.insert(0, 'tests/data')
from mvdjax.hang import Watch

def stuck():
    {hang}

with Watch(minutes=0.01) as watch:
    for step in range(1, 4):
        time.sleep(0.2)
        watch.beat(step)
    {start}
"""


def end_of(hang, start='stuck()'):
    code = SCRIPT.format(hang=hang, start=start)
    done = subprocess.run([sys.executable, '-c', code], env=environment(1), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def test_a_hang_is_reported_with_the_stack_of_every_thread():
    start = 'threading.Thread(target=stuck, daemon=True).start(); time.sleep(1000)'
    code, errors = end_of('time.sleep(1000)', start)
    assert code == 75
    assert 'has ended no step for 0.01 minutes (run.hang_minutes) since step 3\n' in errors
    assert ', every thread:\n' in errors
    assert 'in stuck' in errors
    assert errors.count('hread 0x') >= 3


def test_a_hang_that_keeps_the_interpreters_lock_is_ended_too():
    code, errors = end_of('import re; re.match(r"(a+)+$", "a" * 60 + "b")')
    assert code == 1
    assert 'Timeout' in errors
    assert 'in stuck' in errors


def test_a_run_that_goes_on_is_left_alone():
    code, errors = end_of('pass')
    assert (code, errors) == (0, '')
