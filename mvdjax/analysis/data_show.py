"""`mvdjax data show`: pictures of exactly what the model will see for a config.

The samples come out of the pipeline that training reads, for the same seed and step, so what is drawn is what a run
gets: crops, flips, augmentation, masks, erased boxes, labels. Needs the data, but no accelerator and no checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import ml_collections
import numpy as np

from mvdjax import config as configs
from mvdjax.analysis.contact_sheet import Band, Strip, draw_sheets, write_film
from mvdjax.analysis.pictures import COLUMNS, GREY, shown_frames
from mvdjax.analysis.shown import TRAIN, Shown, ShownSet, describe, read_rows
from mvdjax.data.pipeline import Data
from mvdjax.errors import UserError

BOX = (220, 38, 38)  # RGB of the outline of an erased box


def show(
    config: ml_collections.ConfigDict, title: str, output: str, name: str = TRAIN, count: int = 8, step: int = 0
) -> list[str]:
    """Writes what a model will see.

    Args:
      config: a locked config.
      title: of the sheet.
      output: folder to write to; made if it is not there.
      name: 'train', or a name in config.evals.
      count: files to show, each with all its views.
      step: which training step, from 0; of an evaluation, which group of `count` files.

    Returns:
      The paths written: <name>.png or <name>_1.png..., <name>.mp4 (of clips), <name>.json.

    Raises:
      UserError: as `shown.read_rows`.
      OSError: the output cannot be written.
    """
    found = read_rows(config, name, count, step)
    Path(output).mkdir(parents=True, exist_ok=True)
    stem = os.path.join(output, name)
    images = found.rows[0].arrays['video'].shape[-4] == 1
    bands = _image_bands(found) if images else [_clip_band(i, row, found) for i, row in enumerate(found.rows, start=1)]
    written = draw_sheets(title, _subtitle(config, found, name, step), bands, stem)
    if not images:
        write_film(bands, f'{stem}.mp4')
        written.append(f'{stem}.mp4')
    facts: dict[str, Any] = {'set': name, 'step': step, 'seed': found.seed, 'batch': found.batch}
    facts |= {'recipe': found.data.recipe, 'options': dict(found.data.options)}
    facts['rows'] = [describe(row, found.files) for row in found.rows]
    Path(f'{stem}.json').write_text(json.dumps(facts, indent=1, default=list) + '\n', encoding='utf-8')
    return [*written, f'{stem}.json']


def _subtitle(config: ml_collections.ConfigDict, found: ShownSet, name: str, step: int) -> list[str]:
    """What the samples are, and what is not in the pictures."""
    views = max(row.view for row in found.rows) + 1
    files = len(found.rows) // views
    options = ', '.join(f'{key} {_value(value)}' for key, value in found.data.options.items())
    where = (
        f'step {step} with seed {found.seed}: {files} of the {found.batch} files of its batch'
        if name == TRAIN
        else f'files {step * files + 1} to {step * files + files} of {len(found.files.records)}'
    )
    lines = [f'{config.task_name}, {name}, {where}', f'recipe {found.data.recipe}: {options}']
    if 'erase' in found.rows[0].arrays:
        lines.append('Erased boxes are filled with fresh noise on the device; the noise here only stands for it.')
    if name == TRAIN and config.task.get('mix', None) is not None:
        lines.append('The config mixes clips and labels (task.mix): that happens on the device and is not shown.')
    return lines


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ' '.join(f'{v}' for v in value.values())
    if isinstance(value, tuple | list):
        return (' to ' if any(isinstance(v, float) for v in value) else ' x ').join(map(str, value))
    return str(value) or 'none'


def _words(number: int, row: Shown, found: ShownSet) -> tuple[str, str]:
    """(name of the file, what else there is to say of it)."""
    facts = describe(row, found.files)
    if facts['path'] is None:
        return f'{number}  cannot be read', f'line {found.files.records[facts["index"]].line}'
    said = [f'line {facts["line"]}']
    if facts['label'] >= 0:
        said.append(f'class {facts["label"]} {facts.get("class", "")}'.strip())
    if found.data.make().views > 1:
        said.append(f'view {facts["view"] + 1}')
    if 'masked' in facts:
        said.append(f'{facts["masked"]} of {facts["tokens"]} tokens hidden')
    if facts.get('substituted'):
        said.append(f'in place of {facts["substituted"]} that cannot be read')
    return f'{number}  {_short(facts["path"])}', '  ·  '.join(said)


def _short(path: str, length: int = 60) -> str:
    return path if len(path) <= length else '…' + path[1 - length :]


def _clip_band(number: int, row: Shown, found: ShownSet) -> Band:
    """The strips of a clip; of a test sample one for each view."""
    video = row.arrays['video']
    if video.ndim == 5:
        crops = max(1, int(found.data.options.get('crops', 1)))
        strips = [
            Strip(f'clip {i // crops + 1}' + (f', crop {i % crops + 1}' if crops > 1 else ''), view)
            for i, view in enumerate(video)
        ]
    else:
        strips = _strips(row, found.data)
    frames = shown_frames(strips[0].frames.shape[0], _patch(row, found.data)[0])
    return Band([_words(number, row, found)], [f'frame {i + 1}' for i in frames], frames, strips)


def _image_bands(found: ShownSet) -> list[Band]:
    """Images in rows of eight."""
    bands = []
    for start in range(0, len(found.rows), COLUMNS):
        rows = found.rows[start : start + COLUMNS]
        columns = [_strips(row, found.data) for row in rows]
        strips = [
            Strip(group[0].name, np.concatenate([strip.frames for strip in group]))
            for group in zip(*columns, strict=True)
        ]
        lines = [_words(start + i, row, found) for i, row in enumerate(rows, start=1)]
        heads = [str(start + i + 1) for i in range(len(rows))]
        bands.append(Band(lines, heads, range(len(rows)), strips))
    return bands


def _patch(row: Shown, data: Data) -> tuple[int, int, int]:
    """(frames, rows, columns) of a token; one frame where there are no masks."""
    return tuple(data.options['patch']) if 'mask' in row.arrays else (1, 1, 1)


def _strips(row: Shown, data: Data) -> list[Strip]:
    """What goes into the student, into the encoder and into the image teacher, as far as there is such a thing."""
    video = row.arrays['video']
    height, width = video.shape[1:3]
    strips = [Strip(f'input\n{height} x {width}', _erased(video, row.arrays.get('erase')))]
    if 'mask' in row.arrays:
        hidden = pixel_mask(row.arrays['mask'], video.shape, _patch(row, data))
        strips.append(Strip('encoder sees', np.where(hidden, np.uint8(GREY), video)))
    if 'teacher_video' in row.arrays:
        teacher = row.arrays['teacher_video']
        strips.append(Strip(f'image teacher\n{teacher.shape[1]} x {teacher.shape[2]}', teacher))
    return strips


def pixel_mask(mask: np.ndarray, shape: Sequence[int], patch: tuple[int, int, int]) -> np.ndarray:
    """The mask of every pixel.

    Args:
      mask: bool (tokens,), True = masked.
      shape: (t, h, w, c) of the clip.
      patch: (frames, rows, columns) of a token.

    Returns:
      bool (t, h, w, 1).

    Raises:
      UserError: the mask is for another grid.
    """
    grid = tuple(side // p for side, p in zip(shape[:3], patch, strict=True))
    if mask.size != np.prod(grid):
        raise UserError(f'the recipe masks {mask.size} tokens, a clip of patches {patch} has {grid}')
    pixels = mask.reshape(grid)
    for axis, side in enumerate(patch):
        pixels = pixels.repeat(side, axis)
    return pixels[..., None]


def _erased(video: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """The clip with noise in the box, and a line around it."""
    if box is None or not box.any():
        return video
    top, left, height, width = (int(value) for value in box)
    shown = video.copy()
    noise = np.random.default_rng(0).integers(0, 256, (len(video), height, width, 3), dtype=np.uint8)
    shown[:, top : top + height, left : left + width] = noise
    for frame in shown:
        cv2.rectangle(frame, (left, top), (left + width - 1, top + height - 1), BOX, 1)
    return shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mvdjax data show`."""
    configs.add_config_argument(parser)
    parser.add_argument('--output', default='shown', metavar='DIR', help='folder to write to (default: ./%(default)s)')
    parser.add_argument('--set', default=TRAIN, help='train, or a set of config.evals (default: %(default)s)')
    parser.add_argument('--count', type=int, default=8, help='files to show, with all their views (default: 8)')
    parser.add_argument(
        '--step', type=int, default=0, help='training step, from 0; of an evaluation, the group of --count files'
    )


def run(args: argparse.Namespace) -> int:
    """Runs `mvdjax data show`."""
    config = configs.load(args.config, args.overrides)
    for path in show(config, args.config, args.output, args.set, args.count, args.step):
        print(path)
    return 0
