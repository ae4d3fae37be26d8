"""The report as one HTML page that needs no other file."""

import base64
import datetime
import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mvdjax.analysis.runs import TRAIN, TrainedRun

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --page: #ffffff; --card: #f9fafb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --soft: #9ca3af; --line: #374151; --page: #111827; --card: #1f2937; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--page);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .25rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; }
p { margin: 0 0 1rem; }
.soft { color: var(--soft); overflow-wrap: anywhere; }
.note { border-left: .25rem solid #d1661c; padding: .4rem .8rem; background: var(--card); overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .9rem; }
.scroll img { display: block; width: 100%; height: auto; min-width: min(44rem, var(--width)); max-width: var(--width);
  border-radius: .5rem; border: 1px solid var(--line); background: #fff; }
pre { overflow-x: auto; padding: 1rem; border-radius: .5rem; background: var(--card); font-size: .85rem; }
summary { cursor: pointer; }
"""


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
        f'<p class="soft">{count}, written by <code>mvdjax report</code> on {_text(now)}</p>',
        _overview(runs),
        '<h3>Curves</h3>',
        _image(curves, 'Loss, scores and learning rate over the steps of each run'),
    ]
    for run in runs:
        body += _section(run, pictures.get(run.name), notes.get(run.name))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>Training report: {_text(", ".join(r.name for r in runs))}</title>\n<style>{STYLE}</style>\n</head>\n'
        '<body>\n' + '\n'.join(body) + '\n</body>\n</html>\n'
    )


def _overview(runs: Sequence[TrainedRun]) -> str:
    """A row per run."""
    rows = []
    for run in runs:
        scores = run.results or {}
        test = f'{scores["set"]}: top-1 {scores["top1"]:.1f} %' if 'top1' in scores else ''
        rows.append([run.name, run.task, run.progress, _number(run.last(TRAIN).get('loss', '')), test])
    return _table(['run', 'task', 'trained', 'last loss', 'result'], rows)


def _section(run: TrainedRun, picture: str | None, note: str | None) -> list[str]:
    """Everything about one run."""
    parts = [
        f'<h2>{_text(run.name)}</h2>',
        f'<p class="soft">{_text(" · ".join(t for t in (run.task, run.progress, run.workdir) if t))}</p>',
    ]
    if run.meta is None:
        parts.append('<p class="note">No checkpoint yet: task and config are not known.</p>')
    if run.results:
        parts += ['<h3>Test results</h3>', _pairs(_flat(run.results))]
    if picture:
        parts += ['<h3>What the model sees and predicts</h3>', _image(picture, f'Masked sample of {run.name}')]
    if note:
        parts.append(f'<p class="note">No picture: {_text(note)}</p>')
    for kind in (TRAIN, *run.sets):
        if run.last(kind):
            parts += [f'<h3>Last metrics: {_text(kind)}</h3>', _pairs(run.last(kind).items())]
    if run.meta:
        text = json.dumps(run.meta['config'], indent=2)
        parts.append(f'<details><summary>Config</summary><pre>{_text(text)}</pre></details>')
    return parts


def _flat(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """results.json without nesting: lists as their lengths, the recipe on one line."""
    flat = []
    for name, value in results.items():
        if isinstance(value, dict):
            value = ', '.join(f'{k} {v}' for k, v in value.items())
        flat.append((name, len(value) if isinstance(value, list) else value))
    return flat


def _pairs(pairs: Iterable[tuple[str, Any]]) -> str:
    return _table(['name', 'value'], [[name, _number(value)] for name, value in pairs])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = ''.join(f'<th>{_text(cell)}</th>' for cell in head)
    lines = ''.join('<tr>' + ''.join(f'<td>{_text(cell)}</td>' for cell in row) + '</tr>\n' for row in rows)
    return f'<div class="scroll"><table>\n<tr>{top}</tr>\n{lines}</table></div>'


def _number(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _text(text: str) -> str:
    return html.escape(text)


def _image(path: str, description: str) -> str:
    """An <img> that is never enlarged beyond its pixels, and on a phone scrolls instead of becoming unreadable."""
    with open(path, 'rb') as file:
        data = file.read()
    width = int.from_bytes(data[16:20], 'big')  # PNG: the header chunk comes first
    source = f'data:image/png;base64,{base64.b64encode(data).decode()}'
    name = _text(os.path.basename(path))
    return (
        f'<div class="scroll"><img src="{source}" style="--width: {width}px" alt="{_text(description)}" title="{name}">'
        '</div>'
    )
