"""`mvdjax report`: curves, masked samples and reconstructions of runs as PNGs and one HTML page.

Runs on its own beside a training that is still going; it reads run folders and changes nothing in them.
"""

import argparse
import os
from collections.abc import Sequence

from mvdjax.analysis.codes import TOKENIZER, draw_codes
from mvdjax.analysis.curves import draw_curves
from mvdjax.analysis.page import make_page
from mvdjax.analysis.pictures import draw_samples
from mvdjax.analysis.reconstruct import MASKED_TASKS, rate_of, read_samples, reconstruct
from mvdjax.analysis.runs import TrainedRun, read_runs
from mvdjax.console import say
from mvdjax.errors import UserError
from mvdjax.evaluate import make_writable


def write_report(workdirs: Sequence[str], output: str) -> list[str]:
    """Writes a report on runs.

    A run whose data or checkpoint cannot be read goes without its picture; one line says why.

    Args:
      workdirs: folders of `mvdjax train` runs, finished or not.
      output: folder to write to; files of an earlier report there are replaced.

    Returns:
      The paths written: curves.png, <run>_clip.png of each masked-pretraining run and tokenizer, report.html.

    Raises:
      UserError: a folder that holds no run, or an output that cannot be written.
    """
    runs = read_runs(workdirs)
    make_writable(output)
    curves = os.path.join(output, 'curves.png')
    draw_curves(runs, curves)
    pictures: dict[str, str] = {}
    notes: dict[str, str] = {}
    for run in runs:
        if run.task not in (*MASKED_TASKS, TOKENIZER):
            continue
        path = os.path.join(output, f'{run.name}_clip.png')
        try:
            (draw_codes if run.task == TOKENIZER else _draw_clip)(run, path)
        except UserError as error:
            notes[run.name] = str(error)
            say(f'{run.name}: no picture: {error}')
        else:
            pictures[run.name] = path
    page = os.path.join(output, 'report.html')
    with open(page, 'w', encoding='utf-8') as file:
        file.write(make_page(runs, curves, pictures, notes))
    return [curves, *pictures.values(), page]


def _draw_clip(run: TrainedRun, path: str) -> None:
    """The picture of a run of one of `MASKED_TASKS`."""
    assert run.meta is not None
    samples = read_samples(run)
    found = reconstruct(run, samples) if run.task == 'mae' else None
    what = 'a training clip' if len(samples.video) == 1 else 'training images'
    parts = [run.task, f'step {run.meta["step"]}', what, rate_of(run.meta['config'])]
    if found:
        flat = ' (flat patches score 1)' if found.normalized else ''
        parts.append(f'loss on the hidden patches {found.loss:.4f}{flat}')
    draw_samples(run.name, '  ·  '.join(parts), samples, found, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax report`."""
    parser.add_argument('workdirs', nargs='+', metavar='WORKDIR', help='--workdir of a training run, finished or not')
    parser.add_argument('--output', default='report', metavar='DIR', help='folder to write to (default: ./report)')
    parser.epilog = """Data paths in a config may be relative: start the report where the runs were started.

example:
  mvdjax report runs/video_teacher runs/student runs/motion --output=runs/report"""


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax report`."""
    for path in write_report(args.workdirs, args.output):
        say(path)
    return 0
