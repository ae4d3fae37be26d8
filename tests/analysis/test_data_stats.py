"""`mvdjax data stats`: the page holds what check.json says, and its pictures, and nothing from elsewhere."""

import base64
import html.parser
import json
import re
from pathlib import Path

import cv2
import pytest

from mvdjax import main
from mvdjax.analysis.data_stats import write_stats
from mvdjax.data.check import SCHEMA, Options, check
from mvdjax.errors import UserError


@pytest.fixture(scope='module')
def checked(demo_data, tmp_path_factory):
    """A check of a list with a wrong line, a missing file and a leak, and of its validation list."""
    folder = tmp_path_factory.mktemp('stats')
    train = (demo_data / 'motion_train.txt').read_text()
    leak = (demo_data / 'motion_val.txt').read_text().splitlines()[0]
    (folder / 'motion_train.txt').write_text(f'{train}no<b>label\nnone.mp4 1\n{leak}\n')
    (folder / 'motion_val.txt').write_text((demo_data / 'motion_val.txt').read_text())
    lists = [str(folder / name) for name in ('motion_train.txt', 'motion_val.txt')]
    names = str(demo_data / 'motion_classes.txt')
    options = Options(root=str(demo_data), class_file=names, full=False, frames=20, workers=1)
    return check(lists, str(folder / 'out'), options, progress=False), folder / 'out'


def test_the_page(checked, tmp_path, capsys):
    result, folder = checked
    assert main.main(['data', 'stats', str(folder), f'--output={tmp_path}/stats']) == 0
    paths = capsys.readouterr().out.split()
    names = [f'motion_{split}_{what}.png' for split in ('train', 'val') for what in ('files', 'classes')]
    assert [Path(path).name for path in paths] == [*names, 'stats.html']
    for path in paths[:-1]:
        picture = cv2.imread(path)
        assert picture is not None
        assert picture.std() > 10, f'{path} is blank'
    page = Path(paths[-1]).read_text()
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(e) for e in embedded] == [Path(path).read_bytes() for path in paths[:-1]]
    assert '3 errors' in page
    assert 'no&lt;b&gt;label' in page
    assert 'none.mp4 does not exist' in page
    assert '17 of 18' in page
    assert 'move_left' not in page, 'class names are in the pictures'
    assert result['lists'][0]['hashes']['content'] in page
    assert 'http' not in page, 'the page must need no network'
    html.parser.HTMLParser().feed(page)


def test_images_and_many_classes(checked, tmp_path):
    result = json.loads(json.dumps(checked[0]))
    one = result['lists'][0]
    one['image'] = True
    one['classes'] = [{'label': i, 'name': f'class {i}', 'files': i, 'good': i} for i in range(100)]
    result['lists'], result['leaks'] = [one], []
    (tmp_path / 'check.json').write_text(json.dumps(result))
    paths = write_stats(str(tmp_path / 'check.json'), str(tmp_path))
    assert [Path(path).name for path in paths] == ['motion_train_files.png', 'motion_train_classes.png', 'stats.html']
    assert '100 classes of 0 to 99 usable files; 1 of them have none' in Path(paths[-1]).read_text()


@pytest.mark.parametrize(
    ('text', 'message'),
    [(None, 'run `mvdjax data check LIST'), ('{', 'cannot be read'), (f'{{"schema": {SCHEMA + 1}}}', 'not a check')],
)
def test_mistakes_are_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / 'check.json').write_text(text)
    with pytest.raises(UserError, match=message):
        write_stats(str(tmp_path), str(tmp_path / 'stats'))
    assert not (tmp_path / 'stats').exists()
