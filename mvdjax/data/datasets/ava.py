"""AVA v2.2: key frames, one a second, with boxes around people and the actions of each.

Two forms of the annotations are read. The official one: ava_train_v2.2.csv (movie, second, box, action, person),
ava_*_excluded_timestamps_v2.2.csv, ava_action_list_v2.2.pbtxt. And the JSON files that detection code is published
with (images, annotations with boxes in pixels; ava_val_det_person_bbox.json), which alone have detected people: the
published scores use those for validation, and key frames where nobody was found are left out.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mvdjax.data.datasets.tree import Annotation, Item, Tree
from mvdjax.data.schema import Record
from mvdjax.data.sources import NO_LABEL
from mvdjax.errors import UserError

MIN_SCORE = 0.8  # of a detected person, as published
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class KeyFrame(Record):
    """A key frame. `path` is its movie, or the one-second clip that starts at it; `label` is not used.

    Attributes:
      movie: id.
      time: of the key frame, in seconds of the whole movie (902 to 1798), even where `path` is a cut from it.
      boxes: people as (left, top, right, bottom) in shares of the width and height.
      actions: class numbers of each, from 0 (one less than the ids of the files); none where the boxes were detected.
      scores: of each detection; 1 where the boxes are annotated.
    """

    movie: str
    time: float
    boxes: tuple[Box, ...]
    actions: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]


def pixel_boxes(boxes: Sequence[Box], width: int, height: int) -> np.ndarray:
    """float32 (n, 4), left, top, right, bottom: in pixels of a frame, the last column and row inside, as published."""
    scaled = np.asarray(boxes, np.float64).reshape(-1, 4) * [width, height, width, height]
    return (scaled - [0, 0, 1, 1]).astype(np.float32)


def _item(movie: str, time: float, line: int, people: Iterable[tuple[Box, tuple[int, ...], float]]) -> Item:
    boxes, actions, scores = zip(*people, strict=True)
    record = KeyFrame('', NO_LABEL, line, movie, time, boxes, actions, scores)
    return Item((movie, f'{movie}/{time:g}', f'{movie}/{int(time):04d}'), record)


def read_names(tree: Tree) -> tuple[str, ...]:
    """Names of the actions in the order of their ids; () if there is no list of them."""
    file = tree.maybe(r'ava_action_list_v2\.2\.pbtxt', r'ava_action_list_v2\.\d.*\.pbtxt')
    if file is None:
        return ()
    text = ' '.join(line for _, line in tree.lines(file))
    items = re.findall(r'name:\s*"([^"]*)"\s*(?:label_)?id:\s*(\d+)', text)
    names = {int(number): name for name, number in items}
    if not names or min(names) < 1:
        raise UserError(f'{tree.path(file)} names no actions (item {{ name: "..." id: 1 }}); fetch it again')
    return tuple(names.get(i, f'action {i}') for i in range(1, max(names) + 1))  # the list of 60 has gaps


def _excluded(tree: Tree, split: str) -> set[tuple[str, float]]:
    file = tree.maybe(rf'ava_{split}_excluded_timestamps_v2\.\d\.csv')
    return set() if file is None else {(movie, float(time)) for _, (movie, time, *_) in tree.rows(file)}


def _official(tree: Tree, split: str) -> tuple[str, list[Item]]:
    """The key frames of the CSV file, in its order. A line is one action of one person."""
    file = tree.need(f'ava_{split}_v2.2.csv', rf'ava_{split}_v2\.2\.csv')
    excluded = _excluded(tree, split)
    frames: dict[tuple[str, float], tuple[int, dict[tuple[Box, str], list[int]]]] = {}
    for line, fields in tree.rows(file):
        try:
            movie, time, left, top, right, bottom, action, person = fields
            box = (float(left), float(top), float(right), float(bottom))
            key, number = (movie, float(time)), int(action) - 1
        except ValueError:
            raise UserError(
                f'{tree.path(file)}:{line}: not "movie,second,left,top,right,bottom,action,person"; '
                'fetch the file again'
            ) from None
        if number < 0 or not (0 <= box[0] <= box[2] <= 1 and 0 <= box[1] <= box[3] <= 1):
            raise UserError(
                f'{tree.path(file)}:{line}: box {box} of action {action}; boxes are shares of the frame, '
                'actions count from 1'
            )
        if key not in excluded:
            people = frames.setdefault(key, (line, {}))[1]
            people.setdefault((box, person), []).append(number)
    return file, [
        _item(*key, line, [(box, tuple(actions), 1.0) for (box, _), actions in people.items()])
        for key, (line, people) in frames.items()
    ]


def _shares(bbox: Sequence[float], width: int, height: int) -> Box:
    """(x, y, w, h) in pixels to shares. The last column of a box of width w is x + w - 1; boxes end at the frame's."""
    x, y, w, h = bbox
    left, right = (min(max(v, 0.0), width - 1.0) for v in (x, x + max(0.0, w - 1)))
    top, bottom = (min(max(v, 0.0), height - 1.0) for v in (y, y + max(0.0, h - 1)))
    return left / width, top / height, (right + 1) / width, (bottom + 1) / height


def from_json(images: Any, annotations: Any, detections: Any = None, min_score: float = MIN_SCORE) -> list[Item]:
    """Key frames from the JSON form, by image id; those without a person are left out.

    Args:
      images: entries with id, movie, timestamp, width, height.
      annotations: entries with image_id, bbox, action_ids (from 1): annotated people. Not used with detections.
      detections: entries with image_id, bbox, score: detected people; None for the annotated ones.
      min_score: detections below it are left out.
    """
    known = {image['id']: (image, position) for position, image in enumerate(images, start=1)}
    people: dict[int, list[tuple[Box, tuple[int, ...], float]]] = {}
    for entry in annotations if detections is None else detections:
        image, _ = known[entry['image_id']]
        box = _shares(entry['bbox'], image['width'], image['height'])
        if detections is None:
            person = (box, tuple(number - 1 for number in entry['action_ids']), 1.0)
        elif entry['score'] >= min_score:
            person = (box, (), float(entry['score']))
        else:
            continue
        people.setdefault(entry['image_id'], []).append(person)
    return [
        _item(known[i][0]['movie'], float(known[i][0]['timestamp']), known[i][1], people[i]) for i in sorted(people)
    ]


def read(tree: Tree, split: str) -> Annotation:
    """The key frames of a split: `train` with annotated people, `val` with detected ones where a file has them."""
    notes: tuple[str, ...] = ()
    detected = split == 'val' and tree.maybe(r'ava_val_det_person_bbox\.json')
    file = tree.maybe(rf'ava_{split}_v2\.2(?:_min)?\.json')
    try:
        if file is None:
            file, items = _official(tree, split)
        else:
            content = tree.json(file)
            found = tree.json(detected) if detected else None
            items = from_json(content['images'], content['annotations'], found)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f'{tree.path(file or "")}: not the JSON form of AVA ({error!r}); fetch the file again'
        ) from error
    if split == 'val' and not (detected and file.endswith('.json')):
        notes = ('ava:val has annotated boxes: the published scores use detected ones (ava_val_det_person_bbox.json)',)
    return Annotation(tree.path(file), items, read_names(tree), notes)
