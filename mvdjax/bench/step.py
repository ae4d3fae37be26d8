"""`mvdjax bench step`: what a training step costs, beside the published code's and the matrix rate of the device.

Nothing of the data system is needed or imported; teachers are untrained, pixels random. Ways take turns in one run.
"""

import argparse
import os
import statistics
from collections.abc import Mapping
from typing import Any

import ml_collections

from mvdjax import config_file
from mvdjax.bench import machine, report_file, rounds
from mvdjax.bench.measure import Candidate, Result, interleaved
from mvdjax.bench.peer_mvd import MODES, SIZES
from mvdjax.errors import UserError

DTYPES = ('float32', 'bfloat16')
PACKAGES = ('mvdjax', 'jax', 'jaxlib', 'flax', 'torch', 'timm')
OURS, MATRIX = 'ours', 'matrix products'
SCHEMA = 1  # raise it with every change of a key's meaning
# Several processes share one accelerator here.
ENVIRONMENT = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', 'TF_CPP_MIN_LOG_LEVEL': '2'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `mvdjax bench step`."""
    parser.add_argument(
        '--config', required=True, metavar='FILE[:ARG]', help='the recipe; change a value with --config.section.key=...'
    )
    parser.add_argument(
        '--batch',
        type=int,
        default=1,
        help='clips per step over all devices, without accumulation (default: %(default)s)',
    )
    parser.add_argument('--dtype', choices=DTYPES, help="compute type of all models (default: the config's)")
    parser.add_argument('--steps', type=int, default=1, help='steps that are timed at once (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=5, help='rounds, of which medians are taken (default: 5)')
    parser.add_argument(
        '--peer', metavar='DIR', help='measure the published code in this checkout, too (needs torch, einops, timm)'
    )
    parser.add_argument(
        '--peer_modes', nargs='+', choices=MODES, help='how it computes (default: float32 for float32, else the others)'
    )
    parser.add_argument('--threads', type=int, default=0, help="PyTorch's threads on a CPU (default: its own choice)")
    parser.add_argument('--output', metavar='FILE.json', help='write all measurements there')


def run(args: argparse.Namespace) -> int:
    """Runs the measurement, prints a table and writes the JSON. Raises UserError."""
    rounds.check(args, ('batch', 'steps', 'repeats'))
    config = _config(args)
    dtype = _dtypes(config, args.dtype)
    candidates = [
        Candidate(
            OURS,
            'mvdjax.bench.step_ways:ours',
            {'sections': config.to_dict(), 'batch': args.batch, 'steps': args.steps},
        ),
        Candidate(MATRIX, 'mvdjax.bench.step_ways:matrix', {'dtype': dtype, 'steps': 20}),
    ]
    if args.peer:
        common = {'checkout': os.path.abspath(args.peer), 'batch': args.batch, 'steps': args.steps}
        common |= {'task': config.task_name, 'models': peer_models(config), 'threads': args.threads}
        for mode in args.peer_modes or (('float32',) if dtype == 'float32' else ('shipped', 'tuned')):
            candidates.append(Candidate(f'published, {mode}', 'mvdjax.bench.peer_mvd:step', {**common, 'mode': mode}))
    results = interleaved(candidates, args.repeats, rounds.teller(OURS, args.repeats), ENVIRONMENT, settle=True)
    rows = [row(candidate.name, results) for candidate in candidates]
    print('\n' + table(rows))
    if args.output:
        settings = {name: getattr(args, name) for name in ('config', 'batch', 'steps', 'repeats', 'peer')}
        facts = {'schema': SCHEMA, 'benchmark': 'step', 'machine': machine.facts(PACKAGES)}
        report_file.write(args.output, {**facts, 'settings': {**settings, 'dtype': dtype}, 'rows': rows})
    return 0


def _config(args: argparse.Namespace) -> ml_collections.ConfigDict:
    """The config, its teachers untrained."""
    _, config = config_file.read(args.config)
    for text in args.overrides:
        config_file.override(config, text)
    for name in ('task_name', 'task', 'data', 'optim', 'run', 'mesh'):
        if name not in config:
            raise UserError(f'{args.config} has no section {name!r}')
    for teacher in config.task.get('teachers', {}).values():
        teacher.checkpoint = 'random'
    return config


def _model_sections(node: Any) -> list[ml_collections.ConfigDict]:
    """The sections that describe a model, wherever they stand."""
    if not isinstance(node, ml_collections.ConfigDict):
        return []
    below = [found for child in node.values() for found in _model_sections(child)]
    return ([node] if 'variant' in node else []) + below


def _dtypes(config: ml_collections.ConfigDict, dtype: str | None) -> str:
    """Gives all models the compute type asked for; returns the one they have."""
    models = _model_sections(config.task)
    if dtype:
        for model in models:
            model.dtype = dtype
    found = {model.get('dtype', 'float32') for model in models}
    if len(found) != 1:
        raise UserError(f'the models compute in {" and ".join(sorted(found)) or "nothing"}: give --dtype')
    return found.pop()


def peer_models(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the published code has to build to do the same job.

    Raises:
      UserError: it has no such models.
    """
    options, task = config.data.options, config.task
    shape = (options.get('size'), options.get('length'))
    if config.task_name == 'mvd' and shape == (224, 16):
        decoder = next(iter(task.teachers.values())).decoder
        teachers = {teacher.model.variant for teacher in task.teachers.values()}
        if {task.student.variant, *teachers} <= set(SIZES) and len(teachers) == 1 and len(task.teachers) == 2:
            from mvdjax.models.vit import variant

            (teacher,) = teachers
            return {
                'student': task.student.variant,
                'teachers': teacher,
                'teacher_width': variant(teacher)['width'],
                'drop_path': task.student.get('drop_path', 0.0),
                **{name: decoder[name] for name in ('width', 'depth', 'heads')},
            }
    if config.task_name == 'classify' and shape == (224, 16) and task.model.get('variant') in SIZES:
        drop_path = task.model.get('drop_path', 0.0)
        return {'model': task.model.variant, 'classes': task.num_classes, 'drop_path': drop_path}
    raise UserError(
        '--peer: the published code distils (both teachers of one size) and fine-tunes ViT-S, B, L and H on 16 x 224 x '
        f'224 clips; this config is another {config.task_name} run'
    )


def row(name: str, results: Mapping[str, Result]) -> dict[str, Any]:
    """A line of the report, from the medians."""
    result, ours, products = results[name], results[OURS], results[MATRIX]
    rate = products.memory['flops_per_clip'] / products.wall * 1000
    flops = products.memory['flops_per_clip'] if name == MATRIX else ours.memory['flops_per_clip']
    return {
        'way': name,
        'ms_per_clip': result.wall,
        'ms_per_clip_each': list(result.wall_ms),
        'cpu_ms_per_clip': result.cpu,
        'clips_per_second': 1000 / result.wall,
        'tera_flops': flops / result.wall * 1000 / 1e12,
        'share_of_matrix_rate': flops / result.wall * 1000 / rate,
        'times_faster_than_this': statistics.median(
            theirs / mine for theirs, mine in zip(result.wall_ms, ours.wall_ms, strict=True)
        ),
        'memory_mib': {k: v for k, v in result.memory.items() if k.endswith('_mib')},
        'first_call_seconds': result.memory.get('first_call_seconds'),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The report, in Markdown."""
    lines = [
        '| way | ms per clip | clips/s | TFLOP/s (model) | share of the matrix rate | memory, MiB | ours is x faster |',
        '|---|---|---|---|---|---|---|',
    ]
    for line in rows:
        matrix = line['way'] == MATRIX
        memory = line['memory_mib'].get('device_peak_mib', line['memory_mib']['peak_rss_mib'])
        cells = [
            line['way'],
            '' if matrix else f'{line["ms_per_clip"]:.1f}',
            '' if matrix else f'{line["clips_per_second"]:.3g}',
            f'{line["tera_flops"]:.3g}',
            f'{line["share_of_matrix_rate"]:.2f}',
            '' if matrix else f'{memory:.0f}',
            '' if matrix else f'{line["times_faster_than_this"]:.2f}',
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)
