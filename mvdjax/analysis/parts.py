"""Parts of an HTML page that needs no other file."""

import base64
import html
import os
from collections.abc import Iterable, Sequence
from typing import Any

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


def document(title: str, body: Sequence[str]) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n'
        '<body>\n' + '\n'.join(body) + '\n</body>\n</html>\n'
    )


def pairs(values: Iterable[tuple[str, Any]]) -> str:
    """A table of names and values."""
    return table(['name', 'value'], [[name, number(value)] for name, value in values])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide."""
    top = ''.join(f'<th>{text(cell)}</th>' for cell in head)
    lines = ''.join('<tr>' + ''.join(f'<td>{text(cell)}</td>' for cell in row) + '</tr>\n' for row in rows)
    return f'<div class="scroll"><table>\n<tr>{top}</tr>\n{lines}</table></div>'


def number(value: Any) -> str:
    """A value in few digits."""
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def text(words: str) -> str:
    """Text, escaped."""
    return html.escape(words)


def image(path: str, description: str) -> str:
    """An <img> that is never enlarged beyond its pixels, and on a phone scrolls instead of becoming unreadable."""
    with open(path, 'rb') as file:
        data = file.read()
    width = int.from_bytes(data[16:20], 'big')  # PNG: the header chunk comes first
    source = f'data:image/png;base64,{base64.b64encode(data).decode()}'
    name = text(os.path.basename(path))
    return (
        f'<div class="scroll"><img src="{source}" style="--width: {width}px" alt="{text(description)}" title="{name}">'
        '</div>'
    )
