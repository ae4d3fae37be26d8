"""The report of `mvdjax bench loader`: tables for people, JSON for later, and both from the same numbers."""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mvdjax.bench import machine
from mvdjax.bench.measure import Result
from mvdjax.bench.plan import Job

SCHEMA = 1  # raise it with every change of a key's meaning
PACKAGES = ('mvdjax', 'av', 'numpy', 'opencv-python-headless', 'pillow', 'grain', 'decord', 'eva-decord')

Results = Mapping[str, Result]


def document(args: argparse.Namespace, jobs: Sequence[Job], results: Results) -> dict[str, Any]:
    """Everything that was measured, JSON-able."""
    names = ('peer', 'videos', 'parts', 'batch', 'size', 'repeats', 'workers', 'count')
    return {
        'schema': SCHEMA,
        'benchmark': 'loader',
        'machine': machine.facts(PACKAGES),
        'settings': {name: getattr(args, name) for name in names},
        'rows': [_row(job, results) for job in jobs],
        'worker_scaling': _scaling(jobs, results),
        'process_scaling': _scaling(jobs, results, apart=True),
    }


def _row(job: Job, results: Results) -> dict[str, Any]:
    result = results[job.candidate.name]
    return {
        'part': job.part,
        'videos': job.videos,
        'way': job.way,
        'clips_per_batch': result.clips,
        'cpu_ms_per_clip': result.cpu,
        'cpu_ms_per_clip_each': list(result.cpu_ms),
        'clips_per_second_per_core': 1000 / result.cpu,
        'clips_per_second': 1000 / result.wall,
        'wall_ms_per_clip_each': list(result.wall_ms),
        'times_faster_than_peer': results[job.peer].cpu / result.cpu if job.peer else None,
        'share_of_ffmpeg_cpu': result.cpu / results[job.ffmpeg].cpu if job.ffmpeg else None,
        'memory_mib': dict(result.memory),
    }


def _scaling(jobs: Sequence[Job], results: Results, apart: bool = False) -> float | None:
    """Clips a second with the most workers over those with the fewest; None if there is nothing to compare.

    With `apart` those of as many processes that have nothing to do with each other: what the machine allows.
    """
    chosen = [j for j in jobs if j.part == 'workers' and j.candidate.factory.endswith(':apart') == apart]
    counts = {job.candidate.arguments['count']: job for job in chosen}
    if len(counts) < 2:
        return None
    fewest, most = (results[counts[n].candidate.name] for n in (min(counts), max(counts)))
    return fewest.wall / most.wall


def text(jobs: Sequence[Job], results: Results, need: float | None) -> str:
    """The tables, in Markdown; `need` is the clips a second that a training takes."""
    rows = [_row(job, results) for job in jobs]
    blocks = [_table(title, [row for row in rows if row['part'] == part]) for part, title in _TITLES.items()]
    worker_rows = [row for row in rows if row['part'] == 'workers']
    if worker_rows:
        blocks.append(_worker_table(worker_rows, _scaling(jobs, results), _scaling(jobs, results, apart=True)))
    own = [row for row in rows if row['way'].startswith('ours')]
    if need is not None and own:
        blocks.append(_cores(own, need))
    return '\n\n'.join(block for block in blocks if block)


_TITLES = {
    'distil': 'Clips for distillation: 16 frames, decode, crop, resize, batch',
    'finetune': 'Clips for fine-tuning: RandAugment, two views of each decoded clip; cost per view',
}


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ''
    lines = [
        f'{title} (medians)',
        '',
        "| videos | way | CPU ms per clip | clips/s per core | x the published way | CPU / FFmpeg's |",
        '|---|---|---|---|---|---|',
    ]
    for row in rows:
        cells = [
            row['videos'],
            row['way'],
            f'{row["cpu_ms_per_clip"]:.1f}',
            f'{row["clips_per_second_per_core"]:.1f}',
            _number(row['times_faster_than_peer']),
            _number(row['share_of_ffmpeg_cpu']),
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.2f}'


def _worker_table(rows: Sequence[Mapping[str, Any]], scaling: float | None, ceiling: float | None) -> str:
    lines = [
        'The whole pipeline with worker processes (medians; memory of one worker, in MiB)',
        '',
        '| videos | workers | clips/s | CPU ms per clip, all processes | peak resident | fair share | its own |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        found = [row['memory_mib'].get(f'worker_{name}_mib') for name in ('peak_rss', 'pss', 'own')]
        memory = ['' if value is None else f'{value:.0f}' for value in found]
        speed = [f'{row["clips_per_second"]:.1f}', f'{row["cpu_ms_per_clip"]:.1f}']
        lines.append('| ' + ' | '.join([row['videos'], row['way'], *speed, *memory]) + ' |')
    if scaling is not None:
        lines += ['', f'From the fewest workers to the most, clips/s grow {scaling:.2f} times.']
    if ceiling is not None:
        lines += [f'As many processes without a pipeline give {ceiling:.2f} times: what the machine allows.']
    return '\n'.join(lines)


def _cores(rows: Sequence[Mapping[str, Any]], need: float) -> str:
    """How many cores keep up with a training."""
    lines = [f'Cores that make {need:g} clips a second:']
    for row in rows:
        lines.append(f'  {math.ceil(need * row["cpu_ms_per_clip"] / 1000)}  {row["videos"]}, {row["way"]}')
    return '\n'.join(lines)
