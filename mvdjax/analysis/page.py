"""The report as one HTML page that needs no other file."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mvdjax.analysis import parts
from mvdjax.analysis.runs import TRAIN, TrainedRun


def make_page(runs: Sequence[TrainedRun], curves: str, pictures: Mapping[str, str], notes: Mapping[str, str]) -> str:
    """The page.

    Args:
      runs: the runs, in order.
      curves: path of the curves' PNG.
      pictures: run name -> path of its picture's PNG.
      notes: run name -> why it has no picture.

    Returns:
      HTML with the pictures embedded.

    Raises:
      OSError: a picture cannot be read.
    """
    now = datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')
    count = '1 run' if len(runs) == 1 else f'{len(runs)} runs'
    body = [
        '<h1>Training report</h1>',
        f'<p class="soft">{count}, written by <code>mvdjax report</code> on {parts.text(now)}</p>',
        _overview(runs),
        '<h3>Curves</h3>',
        parts.image(curves, 'Loss, scores and learning rate over the steps of each run'),
    ]
    for run in runs:
        body += _section(run, pictures.get(run.name), notes.get(run.name))
    return parts.document(f'Training report: {", ".join(run.name for run in runs)}', body)


def _overview(runs: Sequence[TrainedRun]) -> str:
    """A row per run."""
    rows = []
    for run in runs:
        scores = run.results or {}
        test = f'{scores["set"]}: top-1 {scores["top1"]:.1f} %' if 'top1' in scores else ''
        rows.append([run.name, run.task, run.progress, parts.number(run.last(TRAIN).get('loss', '')), test])
    return parts.table(['run', 'task', 'trained', 'last loss', 'result'], rows)


def _section(run: TrainedRun, picture: str | None, note: str | None) -> list[str]:
    """Everything about one run."""
    body = [
        f'<h2>{parts.text(run.name)}</h2>',
        f'<p class="soft">{parts.text(" · ".join(t for t in (run.task, run.progress, run.workdir) if t))}</p>',
    ]
    if run.meta is None:
        body.append('<p class="note">No checkpoint yet: task and config are not known.</p>')
    if run.results:
        body += ['<h3>Test results</h3>', parts.pairs(_flat(run.results))]
    if picture:
        body += ['<h3>What the model sees and predicts</h3>', parts.image(picture, f'Masked sample of {run.name}')]
    if note:
        body.append(f'<p class="note">No picture: {parts.text(note)}</p>')
    for kind in (TRAIN, *run.sets):
        if run.last(kind):
            body += [f'<h3>Last metrics: {parts.text(kind)}</h3>', parts.pairs(run.last(kind).items())]
    if run.meta:
        text = json.dumps(run.meta['config'], indent=2)
        body.append(f'<details><summary>Config</summary><pre>{parts.text(text)}</pre></details>')
    return body


def _flat(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """results.json without nesting: lists as their lengths, the recipe on one line."""
    flat = []
    for name, value in results.items():
        if isinstance(value, dict):
            value = ', '.join(f'{k} {v}' for k, v in value.items())
        flat.append((name, len(value) if isinstance(value, list) else value))
    return flat
