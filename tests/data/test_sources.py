"""Lists and class files: what is read, and that every mistake is one sentence naming the file and the line."""

import pytest

from mvdjax.data.sources import read_class_names, read_list
from mvdjax.errors import UserError


@pytest.fixture
def listed(tmp_path):
    def write(text, name='list.txt'):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def rows(path, **options):
    return [(r.path, r.label, r.line) for r in read_list(path, **options).records]


def test_paths_are_relative_to_the_list_or_to_root_or_absolute(listed, tmp_path):
    path = listed('a.mp4 0\nsub/b.mp4 12\n/far/c.mp4 3\n')
    assert rows(path) == [(f'{tmp_path}/a.mp4', 0, 1), (f'{tmp_path}/sub/b.mp4', 12, 2), ('/far/c.mp4', 3, 3)]
    assert [r[0] for r in rows(path, root='/data')] == ['/data/a.mp4', '/data/sub/b.mp4', '/far/c.mp4']


def test_a_relative_list_gives_absolute_paths(listed, tmp_path, monkeypatch):
    listed('a.mp4 0\n')
    monkeypatch.chdir(tmp_path)
    assert rows('list.txt') == [(f'{tmp_path}/a.mp4', 0, 1)]


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        ('my video 1.mp4 2\n', 'my video 1.mp4'),
        ('two  spaces.mp4 2\n', 'two  spaces.mp4'),
        ('übung/скакать 跳.mp4 2\n', 'übung/скакать 跳.mp4'),
        ('a.mp4\t2\n', 'a.mp4'),
        ('my video.mp4\t2\n', 'my video.mp4'),
        ('a.mp4   2\n', 'a.mp4'),
        ('a.mp4 2 \n', 'a.mp4'),
        ('  a.mp4 2', 'a.mp4'),
        ('a.mp4 2\r\n', 'a.mp4'),
        ('\ufeffa.mp4 2\r\n', 'a.mp4'),  # the mark that Windows editors write first
        ('a\u2028b.mp4 2\n', 'a\u2028b.mp4'),  # a line separator to Python, a letter to a file system
    ],
)
def test_odd_but_clear_lines(listed, tmp_path, text, name):
    assert rows(listed(text)) == [(f'{tmp_path}/{name}', 2, 1)]


def test_blank_lines_are_ignored_and_line_numbers_stay_true(listed):
    assert [r[1:] for r in rows(listed('\n\na.mp4 0\r\n   \nb.mp4 1\n\n'))] == [(0, 3), (1, 5)]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'lists no files; put one "path label"'),
        ('\n \n', 'lists no files'),
        ('a.mp4 0\nb.mp4\n', r':2: \'b\.mp4\' has one column; a line is "path label"'),
        ('a.mp4,0\n', r':1: .* has one column'),
        ('a.mp4 0\nb.mp4 jump\n', r":2: label 'jump' is not a whole number"),
        ('a.mp4 0.5\n', "label '0.5' is not a whole number"),
        ('a.mp4 1_0\n', "label '1_0' is not a whole number"),
        ('0 a.mp4\n', r"label 'a\.mp4' is not a whole number"),
        ('my video.mp4\n', r"label 'video\.mp4' is not a whole number"),
        ('a.mp4 -1\n', r':1: label -1 is out of range; labels start at 0'),
    ],
)
def test_wrong_lines_are_named(listed, text, message):
    path = listed(text)
    with pytest.raises(UserError, match=message) as found:
        read_list(path)
    assert path in str(found.value)
    assert '\n' not in str(found.value)


@pytest.mark.parametrize('label', [4, -1])
def test_labels_out_of_range(listed, label):
    path, classes = listed(f'a.mp4 3\nb.mp4 {label}\n'), listed('a\nb\nc\nd\n', 'classes.txt')
    for options in ({'num_classes': 4}, {'class_file': classes}):
        with pytest.raises(UserError, match=rf':2: label {label} is out of range; there are classes 0 to 3'):
            read_list(path, **options)
    good = listed('a.mp4 3\n')
    assert read_list(good, class_file=classes).class_names == ('a', 'b', 'c', 'd')
    assert rows(good, num_classes=4)[0][1] == 3
    assert rows(listed('a.mp4 400\n'))[0][1] == 400  # nothing says how many there are


def test_a_list_that_cannot_be_opened(listed, tmp_path):
    with pytest.raises(UserError, match=r'list .*none\.txt does not exist; check the path'):
        read_list(str(tmp_path / 'none.txt'))
    with pytest.raises(UserError, match='cannot be read as UTF-8 text'):
        read_list(str(tmp_path))
    with pytest.raises(UserError, match=r'list\.txt cannot be read as UTF-8 text'):
        read_list(listed(b'\xff\xfe\x00bin 0\n'))


def test_class_names(listed):
    assert read_class_names(listed('move left\r\nSpringen über\n\n\n')) == ('move left', 'Springen über')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a\nb\na\n', r"classes\.txt:3: class name 'a' is blank or repeated"),
        ('a\nb\na \n', r"classes\.txt:3: class name 'a' is blank or repeated"),
        ('a\n\nb\n', r"classes\.txt:2: class name '' is blank or repeated"),
        ('', r'classes\.txt names no classes'),
        ('\n\n', r'classes\.txt names no classes'),
    ],
)
def test_wrong_class_files(listed, text, message):
    path, classes = listed('a.mp4 0\n'), listed(text, 'classes.txt')
    with pytest.raises(UserError, match=message):
        read_list(path, class_file=classes)


def test_a_missing_class_file_and_a_wrong_number_of_classes(listed, tmp_path):
    path = listed('a.mp4 0\n')
    with pytest.raises(UserError, match=r'class names .*none\.txt does not exist'):
        read_list(path, class_file=str(tmp_path / 'none.txt'))
    with pytest.raises(UserError, match=r'classes\.txt names 2 classes, the config says 3'):
        read_list(path, class_file=listed('a\nb\n', 'classes.txt'), num_classes=3)
