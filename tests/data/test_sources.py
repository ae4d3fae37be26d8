"""Lists and class files: what is read, and that every mistake is one sentence naming the file and the line."""

import fsspec
import pytest

from mvdjax.data.sources import NO_LABEL, check_same_classes, read_class_names, read_list
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
    'text',
    [
        'my video.mp4 3\nb.avi 0\n',
        'my video.mp4\t3\nb.avi\t0\n',
        'path label\nmy video.mp4 3\nb.avi 0\n',
        'my video.mp4,3\nb.avi,0\n',
        'my video.mp4, 3\r\n"b.avi", 0\r\n',
        '"my video.mp4","3"\n"b.avi","0"\n',
        'my video.mp4;3\nb.avi;0\n',
        'path,label\nmy video.mp4,3\nb.avi,0\n',
        '\ufefflabel,fps,video_path\r\n3,25,my video.mp4\r\n0,30,b.avi\r\n',
        '"File";"Class"\n"my video.mp4";3\nb.avi;0\n',
        'my video.mp4 250 3\nb.avi 17 0\n',  # path, number of frames, label
        'my video.mp4,250,3\nb.avi,17,0\n',
        '{"path": "my video.mp4", "label": 3}\n\n{"label": 0, "path": "b.avi", "fps": 25.0}\n',
        '{"video": "my video.mp4", "label": "3"}\n{"video": "b.avi", "label": "0"}\n',
    ],
)
def test_the_forms_of_a_list(listed, tmp_path, text):
    wanted = [(f'{tmp_path}/my video.mp4', 3), (f'{tmp_path}/b.avi', 0)]
    for name in ('list.txt', 'list.csv'):  # MVD's lists end in .csv and are space-separated
        assert [r[:2] for r in rows(listed(text, name))] == wanted
        assert [r[:2] for r in rows(listed(text, name), num_classes=4)] == wanted


@pytest.mark.parametrize(
    ('text', 'path'),
    [
        ('"one, two.mp4",1\n', 'one, two.mp4'),
        ('"say ""hi"".mp4",1\n', 'say "hi".mp4'),
        ('one, two.mp4 1\n', 'one, two.mp4'),
        ('a.mp4 (copy).mp4 1\n', 'a.mp4 (copy).mp4'),
        ('A.MP4,1\n', 'A.MP4'),
        ('without_suffix 1\n', 'without_suffix'),
        ('without_suffix,1\n', 'without_suffix'),
        ('clip 12 1\n', 'clip 12'),
    ],
)
def test_odd_paths(listed, tmp_path, text, path):
    assert rows(listed(text)) == [(f'{tmp_path}/{path}', 1, 1)]


@pytest.mark.parametrize(
    'text',
    [
        'a.mp4 jump high\nb b.mp4 run\n',
        'a.mp4\tjump high\nb b.mp4\trun\n',
        'a.mp4,jump high\nb b.mp4,run\n',
        'path,class_name\na.mp4,jump high\nb b.mp4,run\n',
        '{"path": "a.mp4", "label": "jump high"}\n{"path": "b b.mp4", "label": "run"}\n',
    ],
)
def test_labels_by_name(listed, tmp_path, text):
    path, classes = listed(text), listed('walk\nrun\njump high\n', 'classes.txt')
    files = read_list(path, class_file=classes)
    assert [(r.path, r.label) for r in files.records] == [(f'{tmp_path}/a.mp4', 2), (f'{tmp_path}/b b.mp4', 1)]
    assert files.class_names == ('walk', 'run', 'jump high')
    inferred = read_list(path)
    assert [r.label for r in inferred.records] == [0, 1]
    assert inferred.class_names == ('jump high', 'run')
    assert read_list(path, num_classes=2) == inferred
    with pytest.raises(UserError, match=r'the labels of .* name 2 classes, the config says 3; give the names'):
        read_list(path, num_classes=3)
    with pytest.raises(
        UserError, match=r"list\.txt:\d: .*classes\.txt has no class 'jump high'; did you mean 'jump hi'"
    ):
        read_list(path, class_file=listed('walk\nrun\njump hi\n', 'classes.txt'))


def test_a_name_behind_a_path_without_suffix_is_known_by_the_class_file(listed, tmp_path):
    path = listed('clip 12 run\n')
    assert rows(path, class_file=listed('run\n', 'classes.txt')) == [(f'{tmp_path}/clip 12', 0, 1)]


def test_with_a_class_file_numbers_and_names_may_mix(listed):
    classes = listed('walk\nrun\n', 'classes.txt')
    assert [r[1] for r in rows(listed('a.mp4 1\nb.mp4 walk\n'), class_file=classes)] == [1, 0]


def test_class_names_that_are_numbers(listed):
    """A whole number is the number of a class, and where that is another class than the one called so, it is said."""
    path, classes = listed('a.mp4 0\nb.mp4 2\n'), listed('0\n1\n10\n2\n', 'classes.txt')
    files = read_list(path, class_file=classes)
    assert [r.label for r in files.records] == [0, 2]
    assert files.notes == (f"{path}:2: label 2 is read as class number 2, '10'; the class called '2' is number 3",)
    assert not read_list(path, class_file=listed('0\n1\n2\n', 'classes.txt')).notes


@pytest.mark.parametrize(
    'text',
    [
        'a b.mp4\nc.mp4\n',
        'a b.mp4 0 -1\nc.mp4 0 -1\n',
        'path\na b.mp4\nc.mp4\n',
        '"a b.mp4"\nc.mp4\n',
        '{"path": "a b.mp4"}\n{"path": "c.mp4"}',
    ],
)
def test_lists_without_labels_are_for_pretraining(listed, tmp_path, text):
    path = listed(text)
    files = read_list(path)
    assert [(r.path, r.label) for r in files.records] == [
        (f'{tmp_path}/a b.mp4', NO_LABEL),
        (f'{tmp_path}/c.mp4', NO_LABEL),
    ]
    assert files.class_names == ()
    for options in ({'num_classes': 4}, {'class_file': listed('a\nb\n', 'classes.txt')}):
        with pytest.raises(UserError, match=r":\d: 'a b\.mp4' has no label; a line is \"path label\""):
            read_list(path, **options)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'lists no files; put one "path label"'),
        ('\n \n', 'lists no files'),
        ('path,label\n', 'lists no files'),
        ('a.mp4 0\nb.mp4\n', r':2: \'b\.mp4\' has no label; a line is "path label"'),
        ('a.mp4\nb.mp4 0\n', r':1: \'a\.mp4\' has no label'),
        ('a.mp4,0\n\nb.mp4\n', r':3: \'b\.mp4\' has no label'),
        ('a.mp4,0\nb.mp4,\n', r":2: 'b\.mp4' has an empty label"),
        ('a.mp4 0\nb.mp4 jump\n', r":2: label 'jump' is not a whole number"),
        ('a.mp4 jump\nb.mp4 0\n', r":2: label '0' is not a class name, but line 1 has 'jump'"),
        ('a.mp4 0.5\n', "label '0.5' is not a class name"),
        ('a.mp4 1_0\n', "label '1_0' is not a class name"),
        ('a.mp4 -1\n', r':1: label -1 is out of range; labels start at 0'),
        ('a.mp4 0 300\n', r':1: columns 0 and 300 behind the path are not understood; three columns are "path 0 -1"'),
        ('one, two.mp4,1\nb.mp4,0\n', r':1: .* is no line of a CSV list, .* stands in quotes'),
        ('a.mp4,0\none, two.mp4,1\n', r':2: 3 columns; .* stands in quotes'),
        ('a.mp4,0\n"b.mp4,1\n', r':2: .*; close the quotes'),
        ('a.mp4,0\n,1\n', r':2: the path is empty'),
        (
            'name,number\na.mp4,0\n',
            r":1: 'name,number' is no line of a CSV list, as the next is; a header names the columns",
        ),
        ('path,number\na.mp4,0\n', r':1: none of the columns path, number is named label'),
        ('fps,path,label\n25,a.mp4\n', r':2: 2 columns, fewer than the header names'),
        ('{"path": "a.mp4", "label": 0}\n{"path": "b.mp4"\n', r':2: not a JSON object \(.* at column'),
        ('{"label": 0}\n', r':1: no path; a line is'),
        ('{"path": "a.mp4", "label": 0.5}\n', r':1: label 0\.5 is neither a whole number nor a name'),
        ('{"path": "a.mp4", "label": true}\n', r':1: label True is neither'),
        ('{"path": "a.mp4", "label": 0}\nb.mp4 1\n', r':2: not a JSON object'),
        ('[{"path": "a.mp4", "label": 0}]\n', r': is one JSON array; write one object'),
        ('[\n "a.mp4",\n "b.mp4"\n]\n', r': is one JSON array; write one object'),
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
    with pytest.raises(UserError, match='holds no video or image; name a list'):
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


def test_lists_in_an_object_store():
    store = fsspec.filesystem('memory')
    store.pipe('/lists/train.csv', 'a.mp4,jump\r\n/local/b.mp4,run\r\ns3://other/c.mp4,run\r\n'.encode('utf-8-sig'))
    store.pipe('/lists/classes.txt', b'run\njump\n')
    files = read_list('memory://lists/train.csv', class_file='memory://lists/classes.txt')
    expected = [('memory://lists/a.mp4', 1), ('/local/b.mp4', 0), ('s3://other/c.mp4', 0)]
    assert [(r.path, r.label) for r in files.records] == expected
    files = read_list('memory://lists/train.csv', root='gs://bucket/videos/')
    assert files.records[0].path == 'gs://bucket/videos/a.mp4'
    with pytest.raises(
        UserError, match=r'list memory://lists/none\.csv cannot be fetched: no such file; check the path'
    ):
        read_list('memory://lists/none.csv')


def test_two_lists_must_number_their_classes_alike(listed):
    train, val = read_list(listed('a.mp4 jump\nb.mp4 run\n')), read_list(listed('a.mp4 run\nb.mp4 walk\n', 'val.txt'))
    with pytest.raises(UserError, match=r"class 0 is 'jump' in runs/x and 'run' in .*val\.txt; give both the same"):
        check_same_classes(train.class_names, 'runs/x', val)
    check_same_classes(train.class_names, 'runs/x', train)
    check_same_classes(('Jump!', 'r_u n'), 'runs/x', train)  # the names of another copy
    check_same_classes((), 'runs/x', val)
