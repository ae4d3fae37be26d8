"""AVA key frames: the published reader's boxes and labels from both forms of the annotations, and their errors."""

import json
from pathlib import Path

import numpy as np
import pytest

from mvdjax.data.datasets import ava
from mvdjax.data.sources import NO_LABEL, read_list
from mvdjax.errors import UserError

GOLDEN = json.loads((Path(__file__).parent.parent / 'golden/data/ava_dataset.json').read_text())
SIZES = {'movA': (400, 240), 'movB': (320, 240)}


def write(folder, **files):
    for name, content in files.items():
        name, _, suffix = name.rpartition('_')
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f'{name.replace("22", "v2.2")}.{suffix}').write_text(text)
    for movie in SIZES:
        (folder / f'{movie}.mkv').touch()
    return str(folder)


def check(files, expected):
    """Records against the golden items; boxes in float32, as the published code holds them."""
    assert len(files.records) == len(expected)
    for record, item in zip(files.records, expected, strict=True):
        info = item['info']
        assert (record.movie, record.time) == (info['movie'], info['timestamp'])
        boxes = ava.pixel_boxes(record.boxes, info['width'], info['height'])
        np.testing.assert_allclose(boxes, item['boxes_xyxy'], rtol=0, atol=5e-5)
        if 'scores' in item:
            np.testing.assert_array_equal(np.float32(record.scores), np.float32(item['scores']))
            assert record.actions == ((),) * len(boxes)
        else:
            assert [[a + 1 for a in actions] for actions in record.actions] == item['label_ids_1based']
            assert record.scores == (1.0,) * len(boxes)
        assert record.label == NO_LABEL
        assert record.path.endswith(f'{info["movie"]}.mkv')


def test_the_json_form(tmp_path):
    content = {'images': GOLDEN['images'], 'annotations': GOLDEN['annotations']}
    root = write(
        tmp_path,
        ava_train_22_min_json=content,
        ava_val_22_json=content,
        ava_val_det_person_bbox_json=GOLDEN['detections'],
    )
    check(read_list(f'ava:train:{root}'), GOLDEN['train'])
    val = read_list(f'ava:val:{root}')
    check(val, GOLDEN['val'])
    assert not any('annotated boxes' in note for note in val.notes)


def official():
    """The golden annotations as the lines of the official file: boxes as shares, a line for each action."""
    lines = []
    images = {image['id']: image for image in GOLDEN['images']}
    for item in GOLDEN['train']:
        info = item['info']
        assert info in [{k: image[k] for k in info} for image in images.values()]
        for person, (box, actions) in enumerate(zip(item['boxes_xyxy'], item['label_ids_1based'], strict=True)):
            shares = (np.asarray(box) + [0, 0, 1, 1]) / [info['width'], info['height'], info['width'], info['height']]
            for action in actions:
                values = ','.join(f'{v:.9f}' for v in shares)
                lines.append(f'{info["movie"]},{info["timestamp"]:04d},{values},{action},{person}')
    return '\n'.join(lines) + '\n'


ACTIONS = 'item {\n  name: "stand"\n  id: 1\n}\nitem {\n  name: "touch (an object)"\n  id: 3\n}\n'


def test_the_official_form(tmp_path):
    root = write(tmp_path, ava_train_22_csv=official(), ava_val_22_csv=official(), ava_action_list_22_pbtxt=ACTIONS)
    train = read_list(f'ava:train:{root}')
    check(train, GOLDEN['train'])
    assert train.class_names == ('stand', 'action 2', 'touch (an object)')
    assert [record.line for record in train.records] == [1, 7, 13, 19]
    assert read_list(f'ava:val:{root}').notes[0].startswith('ava:val has annotated boxes: the published scores use')
    write(tmp_path, ava_train_excluded_timestamps_22_csv='movA,0902\nmovB,0904\n')
    check(read_list(f'ava:train:{root}'), GOLDEN['train'][1:])


def test_one_second_clips(tmp_path):
    root = write(tmp_path, ava_train_22_csv=official())
    for movie in SIZES:
        (tmp_path / f'{movie}.mkv').unlink()
        (tmp_path / movie).mkdir()
    (tmp_path / 'movA/904.mp4').touch()
    files = read_list(f'ava:train:{root}')
    assert [(record.path, record.time) for record in files.records] == [(f'{root}/movA/904.mp4', 904.0)]
    assert '3 of the 4 files' in files.notes[0]


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('movA,0902,0.1,0.2,0.3,0.4,1', r':2: not "movie,second,left,top,right,bottom,action,person"'),
        ('movA,0902,0.1,0.2,x,0.4,1,0', r':2: not "movie'),
        ('movA,0902,10,20,30,40,1,0', r':2: box .* of action 1; boxes are shares of the frame'),
        ('movA,0902,0.3,0.2,0.1,0.4,1,0', r':2: box'),
        ('movA,0902,0.1,0.2,0.3,0.4,0,0', r':2: .* actions count from 1'),
    ],
)
def test_wrong_lines(tmp_path, line, message):
    root = write(tmp_path, ava_train_22_csv=f'movA,0902,0.1,0.2,0.3,0.4,1,0\n{line}\n')
    with pytest.raises(UserError, match=r'ava_train_v2\.2\.csv' + message):
        read_list(f'ava:train:{root}')


def test_files_of_another_kind(tmp_path):
    root = write(tmp_path, ava_train_22_json={'pictures': []}, ava_val_22_json='{"images": [')
    with pytest.raises(UserError, match=r"ava_train_v2\.2\.json: not the JSON form of AVA \(KeyError\('images'\)\)"):
        read_list(f'ava:train:{root}')
    with pytest.raises(UserError, match=r'ava_val_v2\.2\.json:1: not JSON'):
        read_list(f'ava:val:{root}')
