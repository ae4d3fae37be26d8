"""`mvdjax bench compile`: what it takes until a step can run, and the memory that it will take, by its levers.

The real step of a config, for one device of this machine, from abstract arguments: nothing is read and nothing is run.
Lowering is counted with compiling, since a restart pays for it too. Memory is the compiler's own account.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from mvdjax import compile_cache
from mvdjax import config as configs
from mvdjax.analysis import plan_step, plan_topology
from mvdjax.bench import machine
from mvdjax.bench.measure import Candidate, Cost, Make, Result, interleaved
from mvdjax.console import say
from mvdjax.models.layers import REMAT_POLICIES

CONFIGS = ('configs/mvd/k400_vit_b_from_b_400.py', 'configs/mvd/k400_vit_h_from_h_800.py')
REMAT = tuple(policy for policy in REMAT_POLICIES if policy != 'none')
WAYS = ('scan', 'cache', 'unrolled', *REMAT)


def shorten(config: ml_collections.ConfigDict, rows: int, dtype: str, way: str) -> None:
    """Makes the config's step one of `rows` records on one device, every model of it in `dtype` and in that way."""
    config.run.global_batch, config.run.accumulate = rows, 1
    config.mesh = {'data': 1, 'fsdp': 1, 'tensor': 1, 'devices': 1}
    for node in _models(config.task):
        node.dtype, node.scan = dtype, way != 'unrolled'
        if way in REMAT:
            node.remat = way


def _models(node: ml_collections.ConfigDict) -> list[ml_collections.ConfigDict]:
    """The model sections in a section: those that name a variant or state a depth."""
    found = [node] if {'variant', 'depth'} & set(node) else []
    for child in node.values():
        if isinstance(child, ml_collections.ConfigDict):
            found += _models(child)
    return found


def compiler(config: str, overrides: Sequence[str], rows: int, dtype: str, way: str, cache: str) -> Make:
    """Call i compiles the step afresh; with a `cache` folder all but the first find its executable there."""
    loaded = configs.load(config, overrides)
    with loaded.unlocked():
        shorten(loaded, rows, dtype, way)
    compile_cache.use(cache, '')
    topology = plan_topology.find('local:1')

    def make(batch: int) -> Cost:
        del batch
        jax.clear_caches()
        step = plan_step.make_step(loaded, topology)
        wall, cpu = time.perf_counter(), time.process_time()
        compiled = step.function.lower(*step.arguments).compile()
        cost = Cost(1, time.process_time() - cpu, time.perf_counter() - wall)
        memory = compiled.memory_analysis()
        sizes = {'arguments_mib': memory.argument_size_in_bytes, 'temporaries_mib': memory.temp_size_in_bytes}
        return dataclasses.replace(cost, memory={name: size / 2**20 for name, size in sizes.items()})

    return make


def candidates(args: argparse.Namespace, folder: str) -> list[Candidate]:
    """A process for each config and way."""
    found = []
    for config in args.config or CONFIGS:
        name = os.path.splitext(os.path.basename(config))[0]
        for way in args.ways:
            arguments = {
                'config': config,
                'overrides': args.overrides,
                'rows': args.rows,
                'dtype': args.dtype,
                'way': way,
                'cache': os.path.join(folder, name) if way == 'cache' else '',
            }
            found.append(Candidate(f'{name} {way}', 'mvdjax.bench.compile:compiler', arguments))
    return found


def table(results: Mapping[str, Result]) -> str:
    """CPU and elapsed seconds, the ratio of the former to the first row's, and the step's memory."""
    first = next(iter(results.values()))
    lines = [
        '| step | CPU s | elapsed s | CPU / first row | arguments GiB | temporaries GiB |',
        '|---|---|---|---|---|---|',
    ]
    for name, result in results.items():
        cpu, wall = result.cpu / 1000, result.wall / 1000
        sizes = ' | '.join(f'{result.memory[key] / 1024:.2f}' for key in ('arguments_mib', 'temporaries_mib'))
        lines.append(f'| {name} | {cpu:.1f} | {wall:.1f} | {result.cpu / first.cpu:.2f} | {sizes} |')
    return '\n'.join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax bench compile`."""
    parser.add_argument(
        '--config', action='append', metavar='FILE', help=f'may be given again (default: {" and ".join(CONFIGS)})'
    )
    parser.add_argument(
        '--ways',
        nargs='+',
        choices=WAYS,
        default=['scan', 'cache', 'unrolled'],
        help='scanned layers, the same from a cache of executables, unrolled layers (these by default), or scanned '
        'layers with another remat policy than the config has',
    )
    parser.add_argument('--rows', type=int, default=1, help='records per step (default: 1)')
    parser.add_argument('--dtype', default='float32', help='that the models compute in (default: float32)')
    parser.add_argument('--repeats', type=int, default=1, help='measured compilations after the first (default: 1)')
    parser.add_argument('--output', help='write the figures and the machine as JSON')


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax bench compile`."""
    with tempfile.TemporaryDirectory() as folder:
        results = interleaved(candidates(args, folder), args.repeats, lambda name, batch: say(f'{name}: {batch}'))
    say(table(results))
    if args.output:
        facts: dict[str, Any] = machine.facts(('jax', 'jaxlib', 'flax'))
        rows = {name: dataclasses.asdict(result) for name, result in results.items()}
        with open(args.output, 'w', encoding='utf-8') as file:
            json.dump({'machine': facts, 'rows': args.rows, 'dtype': args.dtype, 'compilations': rows}, file, indent=1)
    return 0
