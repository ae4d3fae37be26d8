"""`mvdjax bench swin`: a two-stream step of a Swin, beside the published backbone in the same run; see `peer_swin`."""

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

from mvdjax.bench import machine, report_file, rounds
from mvdjax.bench.measure import Result, interleaved
from mvdjax.bench.peer_swin import candidates
from mvdjax.bench.step import DTYPES, ENVIRONMENT, PACKAGES
from mvdjax.models.layers import REMAT_POLICIES

SCHEMA = 1  # raise it with every change of a key's meaning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `mvdjax bench swin`."""
    parser.add_argument('--variant', default='T', help='of the Swin (default: %(default)s)')
    parser.add_argument('--clips', type=int, default=1, help='of 16 x 224 x 224 per step (default: %(default)s)')
    parser.add_argument('--images', type=int, default=8, help='of 224 x 224 per step (default: %(default)s)')
    parser.add_argument('--dtype', choices=DTYPES, default='float32', help='compute type (default: %(default)s)')
    parser.add_argument('--remat', default='none', help=f'of ours: {", ".join(REMAT_POLICIES)} (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=5, help='rounds, of which medians are taken (default: 5)')
    parser.add_argument('--peer', default='', metavar='DIR', help="checkout of BEVT's code (needs torch and einops)")
    parser.add_argument('--threads', type=int, default=0, help="PyTorch's threads on a CPU (default: its own choice)")
    parser.add_argument('--output', metavar='FILE.json', help='write all measurements there')


def run(args: argparse.Namespace) -> int:
    """Runs the measurement, prints a table and writes the JSON. Raises UserError."""
    rounds.check(args, ('clips', 'images', 'repeats'))
    ways = candidates(args.peer, args.variant, args.clips, args.images, args.dtype, args.threads, args.remat)
    results = interleaved(ways, args.repeats, rounds.teller(ways[0].name, args.repeats), ENVIRONMENT, settle=True)
    rows = [row(way.name, results, args.clips) for way in ways]
    print('\n' + table(rows))
    if args.output:
        settings = {k: getattr(args, k) for k in ('variant', 'clips', 'images', 'dtype', 'remat', 'repeats', 'peer')}
        facts = {'schema': SCHEMA, 'benchmark': 'swin', 'machine': machine.facts(PACKAGES)}
        report_file.write(args.output, {**facts, 'settings': settings, 'rows': rows})
    return 0


def row(name: str, results: Mapping[str, Result], clips: int) -> dict[str, Any]:
    """A line of the report; a step has `clips` of the clips that results count."""
    result, ours = results[name], results['ours']
    pairs = zip(result.wall_ms, ours.wall_ms, strict=True)
    return {
        'way': name,
        'ms_per_step': result.wall * clips,
        'cpu_ms_per_step': result.cpu * clips,
        'times_slower_than_ours': statistics.median(theirs / mine for theirs, mine in pairs),
        'memory_mib': dict(result.memory),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The report, in Markdown."""
    lines = ['| way | ms per step | CPU ms per step | ours is x faster |', '|---|---|---|---|']
    for line in rows:
        numbers = f'{line["ms_per_step"]:.0f} | {line["cpu_ms_per_step"]:.0f} | {line["times_slower_than_ours"]:.2f}'
        lines.append(f'| {line["way"]} | {numbers} |')
    return '\n'.join(lines)
