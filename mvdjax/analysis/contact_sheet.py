"""Contact sheets: labelled strips of frames as PNG pages, and the same clips as a film."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction

import cv2
import numpy as np
from matplotlib.figure import Figure

from mvdjax.analysis.pictures import CELL, DPI, GAP, INK, MARGIN, SOFT, cell_side, draw_cell, draw_text
from mvdjax.data.demo import encode_video

LABELS = 170  # pixels to the left of the strips
TITLE, LINE, HEAD, SPACE = 40, 21, 22, 22  # pixels: a sheet's title, a line of text, column heads, between bands
MAX_HEIGHT = 4200  # pixels of a page
FILM_WIDTH = 1600  # pixels, about
FILM_RATE = 8  # frames a second: 30 a second with a stride of 4, about
FILM_SECONDS = 6
CAPTION = 18  # pixels above a tile of the film


@dataclasses.dataclass(frozen=True)
class Strip:
    """Frames side by side.

    Attributes:
      name: what they are.
      frames: uint8 (t, h, w, 3), all of them.
    """

    name: str
    frames: np.ndarray


@dataclasses.dataclass(frozen=True)
class Band:
    """Strips below each other that belong together.

    Attributes:
      lines: what they show: (important, less important) words, a line each.
      heads: what stands above each column.
      columns: which of the frames of a strip are shown.
      strips: at least one, all with the same number of frames.
    """

    lines: Sequence[tuple[str, str]]
    heads: Sequence[str]
    columns: Sequence[int]
    strips: Sequence[Strip]

    @property
    def height(self) -> int:
        """In pixels."""
        strips = sum(cell_side(*strip.frames.shape[1:3])[0] + GAP for strip in self.strips)
        return LINE * len(self.lines) + HEAD + strips + SPACE


def draw_sheets(title: str, lines: Sequence[str], bands: Sequence[Band], stem: str) -> list[str]:
    """Writes the pages.

    Args:
      title: of every page.
      lines: below it.
      bands: a page takes as many as fit.
      stem: path of the files without their end: '.png', or '_1.png', '_2.png'... of several.

    Returns:
      The paths.

    Raises:
      OSError: a file cannot be written.
    """
    pages = list(pages_of(bands, MAX_HEIGHT - TITLE - LINE * len(lines)))
    paths = [f'{stem}.png'] if len(pages) == 1 else [f'{stem}_{i}.png' for i in range(1, len(pages) + 1)]
    for number, (page, path) in enumerate(zip(pages, paths, strict=True), start=1):
        of = f'  ({number} of {len(pages)})' if len(pages) > 1 else ''
        _draw_page(title + of, lines, page, path)
    return paths


def pages_of(bands: Sequence[Band], height: int) -> Iterator[list[Band]]:
    """The bands, page by page of this height in pixels."""
    page: list[Band] = []
    for band in bands:
        if page and sum(b.height for b in page) + band.height > height:
            yield page
            page = []
        page.append(band)
    yield page


def _draw_page(title: str, lines: Sequence[str], bands: Sequence[Band], path: str) -> None:
    top = MARGIN + TITLE + LINE * len(lines)
    height = top + sum(band.height for band in bands) + MARGIN
    right = [LABELS + len(b.columns) * (cell_side(*b.strips[0].frames.shape[1:3])[1] + GAP) for b in bands]
    width = max(1100, MARGIN + max(right) + MARGIN)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    canvas = np.full((height, width, 3), 255, np.uint8)
    draw_text(figure, MARGIN, MARGIN - 4, title, size=15, color=INK, weight='bold')
    for number, line in enumerate(lines):
        draw_text(figure, MARGIN, MARGIN + TITLE - 8 + number * LINE, line, size=10.5, color=SOFT)
    for band in bands:
        for bold, soft in band.lines:
            draw_text(figure, MARGIN, top, f'{bold}', size=11, color=INK, weight='bold')
            draw_text(figure, MARGIN + LABELS + 420, top, soft, size=10.5, color=SOFT)
            top += LINE
        side = cell_side(*band.strips[0].frames.shape[1:3])
        lefts = [MARGIN + LABELS + i * (side[1] + GAP) for i in range(len(band.columns))]
        for left, head in zip(lefts, band.heads, strict=True):
            draw_text(figure, left + side[1] / 2, top + 4, head, size=9.5, color=SOFT, ha='center')
        top += HEAD
        for strip in band.strips:
            draw_text(figure, MARGIN, top + 4, strip.name, size=10.5, color=INK)
            side = cell_side(*strip.frames.shape[1:3])
            for left, column in zip(lefts, band.columns, strict=True):
                canvas[top : top + side[0], left : left + side[1]] = draw_cell(strip.frames[column], side)
            top += side[0] + GAP
        top += SPACE
    figure.figimage(canvas)  # pixel for pixel: no resampling that would soften the borders of patches
    figure.savefig(path)


def write_film(bands: Sequence[Band], path: str) -> None:
    """Writes an MP4 in which all strips play at once, over and over, for some seconds.

    Args:
      bands: of clips; the strips of a band stay side by side.
      path: of the file.

    Raises:
      OSError: it cannot be written.
    """
    per_band = max(len(band.strips) for band in bands)
    columns = per_band * max(1, round(FILM_WIDTH / (CELL + GAP) / per_band))
    columns = min(columns, per_band * len(bands), 12)
    length = max(strip.frames.shape[0] for band in bands for strip in band.strips)
    tiles = []
    for number, band in enumerate(bands, start=1):
        names = [f'{number} {strip.name.splitlines()[0]}' for strip in band.strips]
        tiles += [_tile(strip, name, length) for strip, name in zip(band.strips, names, strict=True)]
        if per_band <= columns:
            tiles += [np.full_like(tiles[-1], 255)] * (per_band - len(band.strips))
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    rows = -(-len(tiles) // columns)
    film = np.full((length, rows * height + GAP, columns * width + GAP, 3), 255, np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // columns * height + GAP, place % columns * width + GAP
        film[:, top : top + tile.shape[1] - GAP, left : left + tile.shape[2] - GAP] = tile[:, GAP:, GAP:]
    film = film[:, : film.shape[1] // 2 * 2, : film.shape[2] // 2 * 2]  # 4:2:0 video has even sides
    times = max(1, round(FILM_SECONDS * FILM_RATE / length))
    data = encode_video(np.concatenate([film] * times), Fraction(FILM_RATE), 'mp4')
    with open(path, 'wb') as file:
        file.write(data)


def _tile(strip: Strip, name: str, length: int) -> np.ndarray:
    """A strip as uint8 (length, h, w, 3) with its name above and a border to the left and the top."""
    height, width = cell_side(*strip.frames.shape[1:3])
    tile = np.full((length, height + CAPTION + GAP, width + GAP, 3), 255, np.uint8)
    for i, canvas in enumerate(tile):
        frame = strip.frames[min(i, len(strip.frames) - 1)]
        canvas[CAPTION + GAP :, GAP:] = draw_cell(frame, (height, width))
        cv2.putText(canvas, name, (GAP, CAPTION), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (31, 41, 55), 1, cv2.LINE_AA)
    return tile
