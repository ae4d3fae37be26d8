"""A run whose parameters are spoilt for a while, for tests/test_rollback.py: in its process, or as a script.

As a script it takes the command line of `mvdjax`, and `--stop-at=N`: this process gets a SIGTERM in step N.
"""

import argparse
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from mvdjax import main, train
from mvdjax.rollback import Health

POISONED = range(5, 40)  # steps of the data, from 0, whose parameters are spoilt until the run has gone back
NOTICE = 2.0  # seconds that a step takes once the signal is there: JAX looks for it every second


def poison(monkeypatch, stop_at=(), pause=0.0):
    """Spoils what is computed from data step 5 on, until the first rollback; stops at some steps, by signal."""
    compile_step = train.compile_step
    went_back, stopping = [], []

    def poisoned(*args):
        step_function = compile_step(*args)

        def step(state, frozen, batch):
            number = int(state.step)
            if number + 1 in stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
                stopping.append(number)
            if stopping:
                time.sleep(pause)
            if number not in POISONED or went_back:
                return step_function(state, frozen, batch)
            copy = jax.tree.map(jnp.copy, state)
            spoilt = state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
            _, values = step_function(spoilt, frozen, batch)
            return copy._replace(step=copy.step + 1, skipped=copy.skipped + 1), values

        return step

    go_back = Health.go_back
    monkeypatch.setattr(Health, 'go_back', lambda self, *a: went_back.append(1) or go_back(self, *a))
    monkeypatch.setattr(train, 'compile_step', poisoned)


def run():
    """The command, poisoned; its exit code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--stop-at', type=int, default=0)
    own, command = parser.parse_known_args()
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(monkeypatch, (own.stop_at,), NOTICE)
        return main.main(command)


if __name__ == '__main__':
    sys.exit(run())
