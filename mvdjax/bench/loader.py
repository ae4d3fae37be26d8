"""`mvdjax bench loader`: what a clip costs, by our loader, by FFmpeg alone, and by a loader as the published one.

CPU time per clip is the figure that travels from machine to machine; so do ratios, since all candidates take turns in
one run. What is measured stands in `plan`; how, in `measure`; the ways to make a clip, in `ways`.
"""

import argparse
import os

from mvdjax.errors import UserError

PEERS = ('decord',)
PARTS = ('distil', 'finetune', 'workers')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `mvdjax bench loader`."""
    parser.add_argument('--peer', choices=PEERS, help='measure a loader written as the published one, too')
    parser.add_argument('--videos', metavar='LIST', help='a list of your own videos (default: made once, see --cache)')
    parser.add_argument(
        '--parts', nargs='+', choices=PARTS, default=list(PARTS), help='what to measure (default: everything)'
    )
    parser.add_argument('--batch', type=int, default=16, help='clips per batch (default: %(default)s)')
    parser.add_argument('--size', type=int, default=224, help='side of the clips in pixels (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=5, help='measured batches of each way (default: %(default)s)')
    parser.add_argument(
        '--workers', nargs='+', type=int, default=[1, 2], help='numbers of worker processes to compare (default: 1 2)'
    )
    parser.add_argument('--count', type=int, default=8, help='videos to make of each kind (default: %(default)s)')
    parser.add_argument(
        '--cache',
        default=os.path.join('~', '.cache', 'mvdjax', 'bench'),
        help='folder of the videos that are made (default: %(default)s)',
    )
    parser.add_argument('--need', type=float, help='clips a second your training takes: prints the cores that feed it')
    parser.add_argument('--output', metavar='FILE.json', help='write all measurements there')


def run(args: argparse.Namespace) -> int:
    """Runs the measurement, prints tables and writes the JSON. Raises UserError."""
    for name, least in (('batch', 1), ('size', 16), ('repeats', 1), ('count', 1)):
        if getattr(args, name) < least:
            raise UserError(f'--{name} must be at least {least}, not {getattr(args, name)}')
    if min(args.workers) < 1:
        raise UserError('--workers takes numbers of worker processes, each at least 1')
    if args.size % 16:
        raise UserError(f'--size must be a multiple of 16, the side of a patch, not {args.size}')
    from mvdjax.bench import loader_report, plan, report_file  # here, since they import the data system
    from mvdjax.bench.measure import Result

    jobs = plan.make_plan(args)
    done: list[plan.Job] = []
    results: dict[str, Result] = {}
    for part in dict.fromkeys(job.part for job in jobs):  # each is kept as soon as it is measured
        results.update(plan.measure_part(jobs, part, args.repeats))
        measured = [job for job in jobs if job.part == part]
        done += measured
        print(f'\n{loader_report.text(measured, results, args.need)}\n', flush=True)
        if args.output:
            report_file.write(args.output, loader_report.document(args, done, results))
    return 0
