"""The picture of a masked-pretraining run: what goes in, what is hidden, what the model makes of it."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mvdjax.analysis.reconstruct import MaskedSamples, Reconstruction

INK, SOFT = '#1f2937', '#6b7280'
GREY = 150  # of masked pixels
VISIBLE, MASKED = '#f2b134', '#33415c'
COLUMNS = 8  # most frames of a clip in a row
CELL = 144  # pixels of a cell, about: small frames are enlarged by a whole number
GAP, TUBELET_GAP, MARGIN, CAPTION, HEAD, FRAMES, SPACE = 4, 14, 24, 50, 84, 34, 14  # pixels
DPI = 100


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the picture.

    Attributes:
      title: what it is.
      caption: what to know about it.
      cells: uint8 (columns, h, w, 3), or bool (columns, h', w') for patch grids.
    """

    title: str
    caption: str
    cells: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the cells are, in pixels from the left."""

    side: tuple[int, int]  # height, width of a cell
    lefts: Sequence[int]
    groups: Sequence[Sequence[int]]  # columns of each tubelet
    width: int
    height: int


def draw_samples(title: str, subtitle: str, samples: MaskedSamples, found: Reconstruction | None, path: str) -> None:
    """Writes the PNG.

    Args:
      title: its heading.
      subtitle: the line below it.
      samples: one clip, or several images.
      found: the model's reconstruction of them, if it predicts pixels.
      path: of the file.

    Raises:
      OSError: the file cannot be written.
    """
    frames = shown_frames(samples.video.shape[1], samples.patch[0])
    rows = make_rows(samples, found, frames)
    draw_rows(title, subtitle, rows, path, frames if len(samples.video) == 1 else (), samples.patch[0])


def draw_rows(
    title: str, subtitle: str, rows: Sequence[Row], path: str, frames: Sequence[int] = (), tubelet: int = 1
) -> None:
    """Writes the PNG of any rows with cells of one size.

    Args:
      title: its heading.
      subtitle: the line below it.
      rows: from top to bottom.
      path: of the file.
      frames: numbers of the frames of a clip in the columns; none where every column is another image.
      tubelet: frames that stand closer together, as they are of one token.

    Raises:
      OSError: the file cannot be written.
    """
    is_clip = bool(frames)
    slots = [frame // tubelet for frame in frames] if is_clip else list(range(len(rows[0].cells)))
    layout = _arrange(rows, slots, is_clip)
    figure = Figure(figsize=(layout.width / DPI, layout.height / DPI), dpi=DPI)
    canvas = np.full((layout.height, layout.width, 3), 255, np.uint8)
    draw_text(figure, MARGIN, 20, title, size=15, color=INK, weight='bold')
    draw_text(figure, MARGIN, 48, subtitle, size=11, color=SOFT)
    top = HEAD
    for number, row in enumerate(rows):
        draw_text(figure, MARGIN, top, row.title, size=12.5, color=INK, weight='bold')
        draw_text(figure, MARGIN, top + 24, row.caption, size=10.5, color=SOFT)
        if row.cells.dtype == np.bool_:
            for left, name, color in ((150, 'visible', VISIBLE), (236, 'hidden', MASKED)):
                draw_text(figure, MARGIN + left, top, '■', size=12.5, color=color)
                draw_text(figure, MARGIN + left + 18, top + 1, name, size=11, color=INK)
        top += CAPTION
        if is_clip and number == 0:
            _head(figure, layout, top, frames, tubelet)
            top += FRAMES
        for left, cell in zip(layout.lefts, row.cells, strict=True):
            canvas[top : top + layout.side[0], left : left + layout.side[1]] = draw_cell(cell, layout.side)
        top += layout.side[0] + SPACE
    figure.figimage(canvas)  # pixel for pixel: no resampling that would soften the borders of patches
    figure.savefig(path)


def shown_frames(frames: int, tubelet: int) -> list[int]:
    """The frames of a clip that are drawn: all, or in long clips the first of evenly spread tubelets."""
    if frames <= COLUMNS:
        return list(range(frames))
    slots = frames // tubelet
    return [round(i) * tubelet for i in np.linspace(0, slots - 1, min(COLUMNS, slots))]


def make_rows(samples: MaskedSamples, found: Reconstruction | None, frames: Sequence[int]) -> list[Row]:
    """The rows of the picture, every one with the frames `frames` of one clip, or with all images."""

    def flat(video: np.ndarray) -> np.ndarray:
        return video[:, frames].reshape(-1, *video.shape[2:])

    t, h, w = samples.patch
    tube = f'{t} frames x ' if t > 1 else ''
    size = f'{tube}{h} x {w} pixels'
    greyed = np.where(samples.pixel_mask, np.uint8(GREY), samples.video)
    grids = flat(samples.mask.repeat(t, axis=1))
    share = f'{100 * samples.mask.mean():.0f} % of the patches are hidden'
    rows = [
        Row('Input', 'after the crop and resize of the training recipe', flat(samples.video)),
        Row('What the encoder sees', f'{share}: the grey ones', flat(greyed)),
        Row('Which patches', f'a patch is {size}', grids),
    ]
    if found is None:
        return rows
    kept = 'Visible patches are copied from the input.'
    if found.visible_statistics is None:
        caption = f'The model predicts plain pixels: nothing is taken from the answer. {kept}'
        return [*rows, Row('Reconstruction', caption, flat(found.true_statistics))]
    return [
        *rows,
        Row(
            'Reconstruction with the true patch statistics: flatters the model',
            f"Each hidden patch gets the mean and contrast of the answer; only the detail is the model's. {kept}",
            flat(found.true_statistics),
        ),
        Row(
            'Reconstruction without them: what the model itself knows',
            f'Each hidden patch gets the average mean and contrast of the visible patches. {kept}',
            flat(found.visible_statistics),
        ),
    ]


def cell_side(height: int, width: int) -> tuple[int, int]:
    """(height, width) in which frames are drawn: small ones enlarged by a whole number."""
    scale = max(1, round(CELL / width)) if width <= CELL else CELL / width
    return round(height * scale), round(width * scale)


def _arrange(rows: Sequence[Row], slots: Sequence[int], is_clip: bool) -> _Layout:
    """Places the columns; those of one tubelet stand closer together."""
    side = cell_side(*rows[0].cells.shape[1:3])
    paired = len(set(slots)) < len(slots)
    lefts = [MARGIN]
    for before, after in itertools.pairwise(slots):
        lefts.append(lefts[-1] + side[1] + (TUBELET_GAP if paired and before != after else GAP))
    groups = [[i for i, s in enumerate(slots) if s == slot] for slot in dict.fromkeys(slots)]
    total = HEAD + FRAMES * is_clip + len(rows) * (CAPTION + side[0] + SPACE) + 8
    return _Layout(side, lefts, groups, max(lefts[-1] + side[1] + MARGIN, 900), total)


def _head(figure: Figure, layout: _Layout, top: int, frames: Sequence[int], tubelet: int) -> None:
    """Frame numbers above the columns; a bracket over those that share a tubelet."""
    for group in layout.groups:
        left, right = layout.lefts[group[0]], layout.lefts[group[-1]] + layout.side[1]
        first, last = frames[group[0]] + 1, frames[group[-1]] + 1
        name = f'frame {first}' if first == last else f'frames {first}-{last}'
        text = f'{name}: tubelet {frames[group[0]] // tubelet + 1}' if tubelet > 1 else name
        draw_text(figure, (left + right) / 2, top + 4, text, size=10, color=SOFT, ha='center')
        y = 1 - (top + 27) / layout.height
        figure.add_artist(Line2D([left / layout.width, right / layout.width], [y, y], color=SOFT, lw=1.2))


def draw_cell(cell: np.ndarray, side: tuple[int, int]) -> np.ndarray:
    """A frame, or a patch grid in two colours with white lines, as uint8 (*side, 3)."""
    if cell.dtype != np.bool_:
        method = cv2.INTER_NEAREST if cell.shape[0] <= side[0] else cv2.INTER_AREA
        return np.asarray(cv2.resize(cell, (side[1], side[0]), interpolation=method))
    y, x = (np.arange(n) * count // n for n, count in zip(side, cell.shape, strict=True))
    drawn = np.where(cell[y][:, x, None], _rgb(MASKED), _rgb(VISIBLE))
    drawn[1:][np.diff(y) > 0] = 255
    drawn[:, 1:][:, np.diff(x) > 0] = 255
    return drawn


def _rgb(color: str) -> np.ndarray:
    """'#rrggbb' as uint8 (3,)."""
    return np.frombuffer(bytes.fromhex(color[1:]), np.uint8)


def draw_text(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Text with its upper left corner at these pixels."""
    width, height = figure.get_size_inches() * figure.dpi
    figure.text(x / width, 1 - y / height, text, va='top', parse_math=False, **style)
