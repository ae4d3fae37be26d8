"""Plots of a data set as `mvdjax data check` found it: what the files are, and how even the classes are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from mvdjax.analysis.curves import COLORS, INK, SOFT, style_panel

DPI = 110
WIDTH, HEIGHT = 4.9, 3.3  # inches of a panel
LOG_FROM = 30.0  # ratio of the 99th to the first percentile from which an axis is logarithmic
BARS = 8  # of a kind; the rest is summed up
NAMED_CLASSES = 60  # up to here every class gets a bar with its name
MARK = '#b03a48'

File = Mapping[str, Any]  # an entry of `files` in check.json


def draw_files(files: Sequence[File], image: bool, clip: int, path: str) -> None:
    """Writes a PNG of what the files of a list are.

    Args:
      files: the usable ones.
      image: whether they are images.
      clip: frames of a clip, marked where it is above 0.
      path: of the file.

    Raises:
      OSError: it cannot be written.
    """
    panels: list[Callable[[Axes], None]] = [
        lambda panel: _sizes(panel, files),
        lambda panel: _bars(panel, 'format' if image else 'codec in container', [_codec(file) for file in files]),
    ]
    if image:
        panels.append(lambda panel: _histogram(panel, 'size of the file (kB)', [f['bytes'] / 1e3 for f in files]))
    else:
        rates = [8e-6 * file['bytes'] / file['seconds'] for file in files if file['seconds']]
        panels = [
            lambda panel: _histogram(panel, 'length (seconds)', [file['seconds'] for file in files if file['fps']]),
            lambda panel: _histogram(panel, 'length (frames)', [file['frames'] for file in files], clip),
            lambda panel: _bars(panel, 'frames a second', [f'{file["fps"]:.3g}' for file in files], numeric=True),
            *panels,
            lambda panel: _histogram(panel, 'data rate (Mbit/s)', rates),
        ]
    rows = len(panels) // 3
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(3 * WIDTH, rows * HEIGHT), dpi=DPI, layout=engine)
    for panel, draw in zip(figure.subplots(rows, 3).flat, panels, strict=True):
        draw(panel)
        style_panel(panel)
    figure.savefig(path)


def draw_classes(classes: Sequence[Mapping[str, Any]], path: str) -> None:
    """Writes a PNG of the number of usable files of each class: bars with names, or a sorted curve of many.

    Raises:
      OSError: it cannot be written.
    """
    counts = np.array([entry['good'] for entry in classes])
    many = len(counts) > NAMED_CLASSES
    height = 4.2 if many else 1.1 + 0.24 * len(counts)
    figure = Figure(figsize=(2 * WIDTH, height), dpi=DPI, layout='constrained')
    panel = figure.subplots()
    if many:
        ordered = np.sort(counts)[::-1]
        panel.fill_between(np.arange(len(ordered)), ordered, step='mid', color=COLORS[0], alpha=0.25)
        panel.step(np.arange(len(ordered)), ordered, where='mid', color=COLORS[0])
        panel.set_xlabel(f'{len(counts)} classes, from the largest to the smallest')
        panel.set_ylabel('usable files')
        panel.set_xlim(-0.5, len(ordered) - 0.5)
        panel.set_ylim(bottom=0)
        panel.axhline(float(np.median(counts)), color=SOFT, lw=1, ls='--')
        panel.annotate(
            f'median {np.median(counts):g}', (len(ordered) - 1, np.median(counts)), (-4, 4), textcoords='offset points',
            ha='right', color=SOFT,
        )  # fmt: skip
    else:
        places = np.arange(len(counts))
        panel.barh(places, counts, color=[COLORS[0] if count else MARK for count in counts], height=0.72)
        names = [f'{entry["label"]}  {_short(entry["name"], 40)}'.strip() for entry in classes]
        panel.set_yticks(places, names, parse_math=False)
        for place, count in zip(places, counts, strict=True):
            panel.annotate(
                f'{count}', (count, place), (4, 0), textcoords='offset points', va='center', fontsize=9,
                color=INK if count else MARK,
            )  # fmt: skip
        panel.invert_yaxis()
        panel.set_xlabel('usable files')
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        panel.set_xlim(0, 1.06 * max(counts.max(), 1))
    style_panel(panel)
    if not many:
        panel.grid(axis='y', visible=False)
        panel.tick_params(axis='y', length=0)
        panel.margins(y=0.01)
    figure.savefig(path)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f'{name[: length - 1]}…'


def _codec(file: File) -> str:
    container = file['container'].split(',')[0]
    return f'{file["codec"]} in {container}' if container else file['codec']


def _histogram(panel: Axes, title: str, values: Sequence[float], mark: int = 0) -> None:
    """A histogram; `mark` is a value to point at."""
    panel.set_xlabel(title)
    panel.set_ylabel('files')
    known = np.array([value for value in values if value > 0], float)
    if not known.size:
        panel.text(0.5, 0.5, 'not known', transform=panel.transAxes, ha='center', color=SOFT)
        return
    low, high = np.percentile(known, [1, 99])
    count = int(np.clip(2 * np.sqrt(known.size), 10, 40))
    if high > LOG_FROM * low:
        bins = np.geomspace(known.min(), known.max() * 1.0001, count + 1)
        panel.set_xscale('log')
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        panel.xaxis.set_minor_formatter(NullFormatter())
    elif np.all(known == np.round(known)) and np.ptp(known) <= count:
        bins = np.arange(known.min() - 0.5, known.max() + 1)  # whole numbers: a bin for each
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    else:
        bins = np.linspace(known.min(), known.max() + 1e-6, count + 1)
    panel.hist(known, bins.tolist(), color=COLORS[0])
    panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    median = float(np.median(known))
    panel.axvline(median, color=SOFT, lw=1.2, ls='--')
    _note(panel, f'median {median:.3g}', SOFT)
    if mark:
        panel.axvline(mark, color=MARK, lw=1.2, ls='--')
        _note(panel, f'a clip spans {mark}: {int((known < mark).sum())} files are shorter', MARK, left=True)


def _note(panel: Axes, text: str, color: str, left: bool = False) -> None:
    """Words above a panel, where they hide nothing."""
    panel.annotate(
        text, (0 if left else 1, 1), (0, 4), 'axes fraction', 'offset points', fontsize=9, color=color,
        ha='left' if left else 'right',
    )  # fmt: skip


def _bars(panel: Axes, title: str, values: Sequence[str], numeric: bool = False) -> None:
    """How often each value comes; of many the most frequent, sorted by number where they are numbers."""
    counter = Counter(values)
    top = counter.most_common(BARS)
    if numeric:
        top.sort(key=lambda pair: float(pair[0]))
    rest = len(values) - sum(count for _, count in top)
    if rest:
        top.append((f'{len(counter) - BARS} others', rest))
    places = np.arange(len(top))
    panel.barh(places, [count for _, count in top], color=COLORS[0], height=0.7)
    panel.set_yticks(places, [name or '?' for name, _ in top], parse_math=False)
    panel.invert_yaxis()
    panel.set_ylim(max(len(top), 3) - 0.4, -0.6)
    panel.set_xlabel(f'files, by {title}')
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.set_xlim(0, 1.15 * max((count for _, count in top), default=1))
    for place, (_, count) in zip(places, top, strict=True):
        panel.annotate(f'{count}', (count, place), (4, 0), textcoords='offset points', va='center', fontsize=9)


def _sizes(panel: Axes, files: Sequence[File]) -> None:
    """Width and height: a disc for each, its area the number of files; the most frequent are named."""
    counter = Counter((file['width'], file['height']) for file in files)
    panel.set_xlabel('width (pixels)')
    panel.set_ylabel('height (pixels)')
    if not counter:
        return
    (widths, heights), counts = np.array(list(counter)).T, np.array(list(counter.values()))
    side = 1.12 * max(widths.max(), heights.max())
    panel.plot([0, side], [0, side], color='#e5e7eb', lw=1)
    panel.scatter(widths, heights, 12 + 500 * counts / counts.sum(), color=COLORS[0], alpha=0.45, linewidths=0)
    named = [f'{w} x {h}: {_percent(count, len(files))}' for (w, h), count in counter.most_common(3)]
    _note(panel, ',  '.join(named), SOFT)
    panel.set_xlim(0, side)
    panel.set_ylim(0, 1.12 * heights.max())


def _percent(part: int, whole: int) -> str:
    return f'{100 * part / whole:.0f} %' if 100 * part >= whole else '< 1 %'
