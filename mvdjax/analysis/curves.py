"""Curves of training runs: one group of panels per run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mvdjax.analysis.runs import TRAIN, TrainedRun

INK, SOFT = '#1f2937', '#6b7280'  # text, and text that matters less
COLORS = ('#1f6fb4', '#d1661c', '#2a8a5c', '#8a4fa3', '#b03a48')
COLUMNS = 3
WIDTH, HEIGHT, SCORE_HEIGHT = 5.4, 4.4, 1.3  # inches of a run's panels, and how much scores add
DPI = 110
SMOOTH_FROM = 60  # points from which a curve is shown smoothed
LOG_FROM = 30.0  # ratio of greatest to least loss from which the axis is logarithmic
ABOVE = 4  # curves whose names have room above a panel
SCORES = ('top1', 'top5')  # metrics in percent


def draw_curves(runs: Sequence[TrainedRun], path: str) -> None:
    """Writes a PNG with the loss, evaluations and learning rate of each run.

    Raises:
      OSError: the file cannot be written.
    """
    columns = 2 if len(runs) == 4 else min(COLUMNS, len(runs))
    rows = -(-len(runs) // columns)
    height = HEIGHT + SCORE_HEIGHT * any(_scores(run) for run in runs)
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(WIDTH * columns, height * rows), dpi=DPI, layout=engine)
    grid = figure.add_gridspec(rows, columns)
    for number, run in enumerate(runs):
        _draw_run(figure, grid[divmod(number, columns)], run)
    figure.savefig(path)


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Centred means over `window` points (odd), fewer at both ends. (n,) -> (n,)."""
    kernel = np.ones(window)
    total = np.convolve(np.pad(np.asarray(values, float), window // 2), kernel, 'valid')
    return total / np.convolve(np.pad(np.ones(len(values)), window // 2), kernel, 'valid')


def _draw_run(figure: Figure, place: SubplotSpec, run: TrainedRun) -> None:
    """The panels of a run, one above the other on a common step axis: loss, scores if any, learning rate if any."""
    scores = _scores(run)
    rate = run.series(TRAIN, 'learning_rate')
    heights = [3.0] + ([1.6] if scores else []) + ([1.0] if rate[0] else [])
    panels: list[Any] = list(
        place.subgridspec(len(heights), 1, height_ratios=heights, hspace=0.06).subplots(sharex=True, squeeze=False)[
            :, 0
        ]
    )
    top = panels[0]
    subtitle = '  ·  '.join(t for t in (run.task, run.progress, _score_text(run)) if t)
    top.set_title(f'{run.name}\n\n', loc='left', fontsize=13, fontweight='bold', color=INK, parse_math=False)
    top.annotate(subtitle, (0, 1), (0, 24), 'axes fraction', 'offset points', fontsize=10, color=SOFT, parse_math=False)
    _draw_losses(top, run)
    if scores:
        for number, (name, metric) in enumerate(scores):
            panels[1].plot(
                *run.series(name, metric), 'o-', ms=4, color=COLORS[number % len(COLORS)], label=f'{name} {metric}'
            )
        panels[1].set_ylabel('score (%)')
        _legend(panels[1])
    if rate[0]:
        panels[-1].plot(*rate, color=SOFT, lw=1.5, marker='.' if len(rate[0]) < SMOOTH_FROM else None)
        panels[-1].set_ylabel('rate')
        peak = max(rate[1])
        panels[-1].set_yticks([0.0, peak], ['0', f'{peak:.2g}'])
        panels[-1].set_ylim(0, 1.2 * peak or None)
    for panel in panels:
        style_panel(panel)
    panels[-1].set_xlabel('optimizer step')
    panels[-1].xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    panels[-1].set_xlim(left=0)
    figure.align_ylabels(panels)


def _draw_losses(panel: Axes, run: TrainedRun) -> None:
    """The training loss, its parts where it has several, and the losses of evaluation sets."""
    parts = sorted({name for r in run.records if r['kind'] == TRAIN for name in r if name.startswith('loss')})
    if 'loss' in parts and len(parts) == 2:  # the only part is the whole
        parts = ['loss']
    drawn: list[float] = []
    unit = 'loss'
    for number, name in enumerate(parts):
        steps, values = run.series(TRAIN, name)
        drawn += values
        color, label = COLORS[number % len(COLORS)], name.replace('loss', 'train', 1).replace('_', ', ', 1)
        if len(steps) < SMOOTH_FROM:
            panel.plot(steps, values, 'o-', ms=4, lw=1.6, color=color, label=label)
        else:
            window = len(steps) // 60 * 2 + 3
            unit = f'loss (mean of {window} points)'
            panel.plot(steps, values, lw=0.8, alpha=0.3, color=color)
            panel.plot(steps, smooth(values, window), lw=1.8, color=color, label=label)
    for number, name in enumerate(run.sets, start=len(parts)):
        steps, values = run.series(name, 'loss')
        if steps:
            drawn += values
            panel.plot(steps, values, 'D', ms=6, mec='white', color=COLORS[number % len(COLORS)], label=name)
    if not drawn:
        panel.text(0.5, 0.5, 'no losses in metrics.jsonl', transform=panel.transAxes, ha='center', color=SOFT)
        return
    if min(drawn) > 0 and max(drawn) > LOG_FROM * min(drawn):
        panel.set_yscale('log')
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_ylabel(unit)
    _legend(panel)


def _scores(run: TrainedRun) -> list[tuple[str, str]]:
    """The (evaluation set, metric) pairs that a run has records of."""
    return [(name, metric) for name in run.sets for metric in SCORES if run.series(name, metric)[0]]


def _legend(panel: Axes) -> None:
    """A line above the panel, where it hides no point; of many curves, two columns within it."""
    if len(panel.get_legend_handles_labels()[0]) > ABOVE:
        panel.legend(fontsize=9, frameon=False, loc='upper right', ncols=2, handlelength=1.3, columnspacing=1.2)
        return
    panel.legend(
        fontsize=9,
        frameon=False,
        loc='lower left',
        bbox_to_anchor=(0, 0.99),
        ncols=ABOVE,
        borderaxespad=0,
        handlelength=1.3,
        columnspacing=1.2,
    )


def _score_text(run: TrainedRun) -> str:
    found = run.results or {}
    return ', '.join(f'{found["set"]} {metric} {found[metric]:.1f} %' for metric in SCORES[:1] if metric in found)


def style_panel(panel: Axes) -> None:
    """A light grid behind, no box around."""
    panel.grid(color='#e5e7eb', lw=0.8)
    panel.set_axisbelow(True)
    panel.spines[['top', 'right']].set_visible(False)
    panel.spines[['left', 'bottom']].set_color('#9ca3af')
    panel.tick_params(labelsize=10, colors=INK)
    panel.yaxis.label.set(size=11, color=INK)
    panel.xaxis.label.set(size=11, color=INK)
    panel.margins(x=0.03)
