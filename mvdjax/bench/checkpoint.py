"""`mvdjax bench checkpoint`: what a save costs a run, in steps.

The real step and state of a config on the devices that this process has, random values in place of data. Rounds of
steps without a save and of as many with one take turns; a save begins with the round's first step, and its round lasts
until it is committed, verification included. What a round with a save takes longer is what the save costs; what the
loop waits for before it may take its next step is shown beside it: on an accelerator that has its host to itself, that
is all.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from mvdjax import config as configs
from mvdjax.analysis import plan_step, plan_topology
from mvdjax.bench import machine
from mvdjax.bench.compile import shorten
from mvdjax.console import say
from mvdjax.errors import UserError
from mvdjax.saving import Checkpoints

CONFIG = 'configs/videomae/k400_vit_b.py'


@dataclasses.dataclass(frozen=True)
class Round:
    """What some steps took.

    Attributes:
      wall: seconds.
      cpu: seconds of CPU time, all threads of this process.
      blocked: seconds in the call that saves.
      late: seconds that the save went on after the last step.
    """

    wall: float
    cpu: float
    blocked: float = 0.0
    late: float = 0.0


class Bench:
    """A step with its state on the devices, and a folder to save it in."""

    def __init__(self, step: plan_step.Step, folder: str) -> None:
        """Makes the values and takes one step, which compiles."""
        key = jax.random.key(0)

        def value(x: Any) -> jax.Array:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding)
            # Random: zeros would be compressed to nothing. Positive: second moments are.
            return jax.device_put(jax.random.uniform(key, x.shape, x.dtype, 1e-6, 1e-2), x.sharding)

        state, self._frozen, self._batch = (jax.tree.map(value, tree) for tree in step.arguments)
        self._function = step.function
        self._saved = Checkpoints(folder, keep=1)
        self._saved.rehearse(state)
        self._state = state
        self.bytes = sum(x.nbytes for x in jax.tree.leaves(state))
        self.steps(1)

    def steps(self, count: int, save: bool = False) -> Round:
        """Takes steps, the state saved before the first of them or not."""
        wall, cpu, blocked = time.perf_counter(), time.process_time(), 0.0
        if save:
            self._saved.save(self._state, {'schema_version': 1, 'step': int(self._state.step)})
            blocked = time.perf_counter() - wall
        for _ in range(count):
            self._state, values = self._function(self._state, self._frozen, self._batch)
            jax.block_until_ready(values)
        end = time.perf_counter()
        if save:
            self._saved.wait()
        done = time.perf_counter()
        return Round(done - wall, time.process_time() - cpu, blocked, done - end)


def summary(plain: list[Round], saving: list[Round], count: int) -> dict[str, float]:
    """Medians over the rounds; costs in seconds and in steps."""
    step = statistics.median(r.wall for r in plain) / count
    cpu = statistics.median(r.cpu for r in plain) / count
    extra = statistics.median(b.wall - a.wall for a, b in zip(plain, saving, strict=True))
    extra_cpu = statistics.median(b.cpu - a.cpu for a, b in zip(plain, saving, strict=True))
    blocked = statistics.median(r.blocked for r in saving)
    return {
        'step_s': step,
        'step_cpu_s': cpu,
        'save_blocked_s': blocked,
        'save_blocked_steps': blocked / step,
        'save_extra_s': extra,
        'save_extra_steps': extra / step,
        'save_cpu_s': extra_cpu,
        'save_cpu_steps': extra_cpu / cpu,
        'save_late_s': statistics.median(r.late for r in saving),
    }


def text(found: dict[str, float], size: int, every: int) -> str:
    """The figures as a table, and what they come to at a save interval."""
    most = max(found['save_blocked_steps'], found['save_extra_steps'], found['save_cpu_steps'])
    rows = [
        '| | seconds | steps |',
        '|---|---|---|',
        f'| a step | {found["step_s"]:.2f} ({found["step_cpu_s"]:.2f} CPU) | 1 |',
        f'| a save: the loop waits | {found["save_blocked_s"]:.2f} | {found["save_blocked_steps"]:.2f} |',
        f'| a save: its round takes longer | {found["save_extra_s"]:.2f} | {found["save_extra_steps"]:.2f} |',
        f'| a save: CPU time | {found["save_cpu_s"]:.2f} | {found["save_cpu_steps"]:.2f} |',
    ]
    return '\n'.join(rows) + (
        f'\n{size / 2**30:.2f} GiB per save, verified; at one save in {every} steps at most '
        f'{100 * most / every:.2f} % of the time, under 5 % from one in {most / 0.05:.0f} steps on'
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax bench checkpoint`."""
    parser.add_argument('--config', default=CONFIG, metavar='FILE', help=f'default: {CONFIG}')
    parser.add_argument('--rows', type=int, default=1, help='records per step (default: 1)')
    parser.add_argument('--dtype', default='float32', help='that the models compute in (default: float32)')
    parser.add_argument('--steps', type=int, default=4, help='in a round (default: 4)')
    parser.add_argument('--repeats', type=int, default=3, help='rounds of each kind (default: 3)')
    parser.add_argument('--folder', help='to save in (default: a temporary one)')
    parser.add_argument('--output', help='write the figures and the machine as JSON')


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax bench checkpoint`."""
    if args.rows < 1 or args.steps < 1 or args.repeats < 1:
        raise UserError('--rows, --steps and --repeats must be at least 1')
    config = configs.load(args.config, args.overrides)
    with config.unlocked():
        shorten(config, args.rows, args.dtype, scan=True)
    plain, saving = [], []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bench = Bench(plan_step.make_step(config, plan_topology.find('local:1')), folder)
        bench.steps(1, save=True)  # folders, threads
        for number in range(args.repeats):
            say(f'round {number + 1} of {args.repeats}')
            plain.append(bench.steps(args.steps))
            saving.append(bench.steps(args.steps, save=True))
    found = summary(plain, saving, args.steps)
    say(text(found, bench.bytes, config.run.save_every))
    if args.output:
        facts = machine.facts(('jax', 'jaxlib', 'orbax-checkpoint', 'tensorstore'))
        rounds = {k: [dataclasses.asdict(r) for r in v] for k, v in (('plain', plain), ('saving', saving))}
        with open(args.output, 'w', encoding='utf-8') as file:
            json.dump({'machine': facts, 'bytes': bench.bytes, 'figures': found, 'rounds': rounds}, file, indent=1)
    return 0
