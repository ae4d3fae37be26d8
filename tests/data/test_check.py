"""`mvdjax data check`: everything wrong with a list and its files is found, named by line, and left out of the copy."""

import hashlib
import json
import os
import shutil

import av
import numpy as np
import pytest
from video_files import X264, encode, remux

from mvdjax import main
from mvdjax.data import check as module
from mvdjax.data.check import Options, check
from mvdjax.data.check_list import read_whole, write_clean
from mvdjax.data.check_text import errors, problems, warnings
from mvdjax.data.decode import Blob
from mvdjax.data.demo import encode_image
from mvdjax.data.examine import Facts, Job, examine
from mvdjax.data.sources import read_list

SMALL = {'height': 32, 'width': 48, **X264}
TRAIN = """good.mp4 0
moving.mp4 1
no_label_here

copy of good.mp4 1
other.mkv 0
short.mp4 2
cut.mp4 0
text.mp4 0
empty.mp4 0
missing.mp4 1
good.mp4 0
good.mp4 nine
turned.mp4 7
leak.mp4 1
"""


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """A folder with a training and a validation list, in which nearly everything is wrong once."""
    root = tmp_path_factory.mktemp('corpus')
    encode(root / 'good.mp4', 'libx264', 12, **SMALL)
    shutil.copy(root / 'good.mp4', root / 'copy of good.mp4')
    remux(root / 'good.mp4', root / 'other.mkv', lambda position, packet: packet)
    times = [0, 40, 80, 300, 340, 380, 420, 460, 500, 540]
    encode(root / 'moving.mp4', 'libx264', 10, times=times, **SMALL)
    encode(root / 'short.mp4', 'libx264', 2, **SMALL)
    encode(root / 'turned.mp4', 'libx264', 9, rotation=90, **SMALL)
    encode(root / 'val.mp4', 'libx264', 11, **SMALL)
    shutil.copy(root / 'val.mp4', root / 'leak.mp4')
    whole = (root / 'good.mp4').read_bytes()
    (root / 'cut.mp4').write_bytes(whole[: len(whole) // 3])
    (root / 'text.mp4').write_text('no video\n' * 40)
    (root / 'empty.mp4').write_bytes(b'')
    (root / 'train.txt').write_text(TRAIN)
    (root / 'val.txt').write_text('val.mp4 1\n')
    (root / 'classes.txt').write_text('run\njump\nsit\nstand\n')
    return root


def run_check(corpus, output, **options):
    lists = [str(corpus / 'train.txt'), str(corpus / 'val.txt')]
    options = {'workers': 1, 'frames': 8, 'class_file': str(corpus / 'classes.txt'), **options}
    return check(lists, str(output), Options(**options), progress=False)


@pytest.fixture(scope='module')
def found(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp('checked')
    return run_check(corpus, output), output


def facts(result, name):
    return next(file for file in result['files'] if os.path.basename(file['path']) == name)


def test_every_wrong_line_and_file_is_named(found):
    train, val = found[0]['lists']
    assert {bad['line']: bad['text'] for bad in train['bad_lines']} == {
        3: 'no_label_here',
        13: 'good.mp4 nine',
        14: 'turned.mp4 7',
    }
    said = {bad['line']: bad['problem'] for bad in train['bad_lines']}
    assert 'label' in said[3]
    assert "'nine'" in said[13]
    assert 'out of range; there are classes 0 to 3' in said[14]
    bad = {entry['line']: (os.path.basename(entry['path']), entry['problem']) for entry in train['bad_files']}
    assert {line: name for line, (name, _) in bad.items()} == {
        8: 'cut.mp4',
        9: 'text.mp4',
        10: 'empty.mp4',
        11: 'missing.mp4',
    }
    assert 'cannot be decoded' in bad[8][1]
    assert bad[10][1] == 'is empty'
    assert bad[11][1] == 'does not exist'
    assert (train['files'], train['good'], train['kept']) == (11, 7, 6)
    assert (val['files'], val['good'], val['kept'], val['bad_lines'], val['bad_files']) == (1, 1, 1, [], [])


def test_facts_of_files(found):
    good = facts(found[0], 'good.mp4')
    expected = {'frames': 12, 'width': 48, 'height': 32, 'fps': 30.0, 'seconds': 0.4, 'codec': 'h264', 'rotation': 0}
    assert expected.items() <= good.items()
    assert (good['pixels'], good['full'], good['variable'], good['notes']) == ('yuv420p', True, False, [])
    assert good['listed'] == [[0, 1, 0], [0, 12, 0]]
    assert facts(found[0], 'moving.mp4')['variable'] is True
    assert facts(found[0], 'val.mp4')['bytes'] > 0


def test_duplicates_and_leaks(found):
    train = found[0]['lists'][0]
    (group,) = train['duplicates']
    assert group['lines'] == [1, 5, 6, 12]  # the same bytes, the same pictures in another container, the same path
    assert (group['same'], group['labels']) == ('bytes', [0, 1, 0, 0])
    (leak,) = found[0]['leaks']
    assert (leak['same'], leak['lists'], leak['lines']) == ('bytes', [0, 1], [15, 1])


def test_classes_count_what_can_be_used(found):
    classes = found[0]['lists'][0]['classes']
    assert [(c['name'], c['files'], c['good']) for c in classes] == [
        ('run', 6, 3),
        ('jump', 4, 3),
        ('sit', 1, 1),
        ('stand', 0, 0),
    ]
    said = [line for lines in warnings(found[0]).values() for line in lines]
    assert sum('1 of 4 classes have no usable file: 3 stand' in line for line in said) == 1


def test_short_videos(found):
    train = found[0]['lists'][0]
    assert [(file['line'], file['frames']) for file in train['short_files']] == [(7, 2)]


def test_hashes_are_what_the_documentation_says(found, corpus):
    def line(name, label):
        file = corpus / name
        content = file.read_bytes() if file.exists() else b''
        digest = hashlib.sha256(content).hexdigest() if content or file.exists() else 'unreadable'
        return f'{digest} {label}\n'

    records = read_whole(str(corpus / 'train.txt'), '', None, str(corpus / 'classes.txt')).files.records
    lines = [line(os.path.basename(r.path), r.label) for r in records]
    hashes = found[0]['lists'][0]['hashes']
    assert hashes['order'] == hashlib.sha256(''.join(lines).encode()).hexdigest()
    assert hashes['content'] == hashlib.sha256(''.join(sorted(lines)).encode()).hexdigest()


def test_the_clean_list_is_the_list_without_what_is_wrong(found, corpus):
    train = found[0]['lists'][0]
    with open(train['clean'], encoding='utf-8') as file:
        kept = file.read().split('\n')
    dropped = {3, 8, 9, 10, 11, 13, 14, 15}  # the leak too: the validation set stays whole
    assert kept == [line for i, line in enumerate(TRAIN.split('\n'), start=1) if i not in dropped]
    files = read_list(train['clean'], train['root'], 4)
    assert [os.path.exists(record.path) for record in files.records] == [True] * 6
    again = check([train['clean'], str(corpus / 'val.txt')], os.path.dirname(train['clean']) + '/again', Options(
        root=str(corpus), workers=1), progress=False)  # fmt: skip
    assert not any(errors(again).values())


def test_files_written_agree_with_the_result(found):
    result, output = found
    assert json.loads((output / 'check.json').read_text()) == json.loads(json.dumps(result))
    lines = (output / 'problems.txt').read_text().splitlines()
    assert lines == list(problems(result))
    assert sum(line.startswith('error: ') for line in lines) == 3 + 4 + 1
    assert f'{output}' not in ''.join(lines)


def test_a_second_run_decodes_only_what_is_new(found, corpus, tmp_path, monkeypatch):
    jobs = []

    def record(function, given, workers, at_work):
        jobs.extend(given)
        return enumerate([function(job, lambda seconds: None) for job in given])

    monkeypatch.setattr(module, 'run_jobs', record)
    output = shutil.copytree(found[1], tmp_path / 'output')
    again = run_check(corpus, output)
    unread = {'empty.mp4', 'missing.mp4'}  # nothing of these can be kept
    assert {os.path.basename(job.path) for job in jobs} <= unread
    assert again['files'] == json.loads(json.dumps(found[0]['files']))
    cache = output / 'cache.jsonl'
    cache.write_text(cache.read_text()[:-40])  # a kill in the middle of a line
    jobs.clear()
    run_check(corpus, output)
    assert len({os.path.basename(job.path) for job in jobs} - unread) == 1
    jobs.clear()
    run_check(corpus, output, full=False)  # what is known of every frame will do
    assert {os.path.basename(job.path) for job in jobs} <= unread


def test_a_file_that_moved_is_known_by_its_content(corpus, tmp_path):
    known = Facts(sha256=hashlib.sha256((corpus / 'good.mp4').read_bytes()).hexdigest(), frames=99)
    job = Job(str(corpus / 'copy of good.mp4'), False, True, 60.0, {known.sha256: known})
    assert examine(job, lambda seconds: None) == known
    other = Job(str(corpus / 'val.mp4'), False, True, 60.0, {known.sha256: known})
    assert examine(other, lambda seconds: None).frames == 11


def test_quick_reads_the_index_and_the_first_frame(corpus):
    full, quick = (
        examine(Job(str(corpus / 'turned.mp4'), False, full, 60.0), lambda seconds: None) for full in (True, False)
    )
    assert (quick.frames, quick.width, quick.height, quick.rotation) == (9, 32, 48, full.rotation)
    assert full.rotation in (90, 270)
    assert (quick.full, quick.pictures, quick.sha256) == (False, '', full.sha256)


def test_damage_inside_makes_a_file_bad_and_at_its_end_shorter(tmp_path):
    path = encode(tmp_path / 'whole.mp4', 'libx264', 24, height=64, width=96, preset='veryfast', bf='0', g='6')
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    whole = path.read_bytes()

    def damaged(name, packets):
        data = bytearray(whole)
        for start, size in (places[packet] for packet in packets):
            data[start + 5 : start + size] = bytes(size - 5)
        (tmp_path / name).write_bytes(data)
        return examine(Job(str(tmp_path / name), False, True, 60.0), lambda seconds: None)

    inside = damaged('inside.mp4', [8, 9])  # frames 8 to 11 of 24: the next keyframe is 12
    assert 'is damaged' in inside.problem
    end = damaged('end.mp4', [20, 21, 22, 23])
    assert end.problem == ''
    assert end.frames == 20
    assert len(end.notes) == 1
    assert '20' in end.notes[0]


def test_a_hanging_decoder_costs_one_file_and_is_not_remembered(corpus, tmp_path):
    (tmp_path / 'list.txt').write_text(f'{corpus}/good.mp4 0\n')
    options = {'paths': [str(tmp_path / 'list.txt')], 'output': str(tmp_path / 'out'), 'progress': False}
    hung = check(options=Options(workers=1, patience=1e-6), **options)
    assert 'hangs' in hung['lists'][0]['bad_files'][0]['problem']
    assert check(options=Options(workers=1), **options)['lists'][0]['bad_files'] == []


def test_a_slow_store_is_no_hanging_decoder(corpus, monkeypatch):
    limits = []

    def fetch(path):
        assert limits.pop() >= 900
        return Blob(path, (corpus / 'good.mp4').read_bytes())

    monkeypatch.setattr('mvdjax.data.media.fetch', fetch)
    assert examine(Job('s3://bucket/good.mp4', False, False, 60.0), limits.append).problem == ''
    assert limits
    assert max(limits) < 70  # from then on the decoder's


def test_images(tmp_path):
    rgb = np.zeros((20, 30, 3), np.uint8)
    (tmp_path / 'a.jpg').write_bytes(encode_image(rgb))
    (tmp_path / 'b.jpg').write_bytes(b'no image')
    (tmp_path / 'images.txt').write_text('a.jpg 0\nb.jpg 1\n')
    result = check([str(tmp_path / 'images.txt')], str(tmp_path / 'out'), Options(workers=1), progress=False)
    (one,) = result['lists']
    assert one['image']
    assert [bad['line'] for bad in one['bad_files']] == [2]
    assert {'width': 30, 'height': 20, 'frames': 1, 'codec': 'jpeg'}.items() <= facts(result, 'a.jpg').items()


def test_exit_codes_and_screen(found, corpus, tmp_path, capsys):
    output = shutil.copytree(found[1], tmp_path / 'output')
    names = f'--class_file={corpus}/classes.txt'
    argv = ['data', 'check', str(corpus / 'train.txt'), str(corpus / 'val.txt'), names, '--frames=8', '--workers=1']
    assert main.main([*argv, f'--output={output}']) == 1
    said = capsys.readouterr().out
    assert 'train.txt:11: ' in said
    assert 'missing.mp4 does not exist' in said
    assert '7 of 11 videos are good, 3 lines are wrong' in said
    assert f'with data.root={corpus}' in said
    assert '8 errors' in said
    fine = ['data', 'check', str(corpus / 'val.txt'), '--workers=1', f'--output={tmp_path}/fine']
    assert main.main(fine) == 0
    assert main.main([*fine, '--frames=100']) == 0
    assert main.main([*fine, '--frames=100', '--strict']) == 1


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['none.txt'], 'none.txt does not exist'),
        (['{0}/train.txt', '{0}/train.txt'], 'given twice'),
        (['{0}/train.txt', '--output={0}'], 'would replace it'),
        (['{0}/train.txt', '--patience=0'], 'patience'),
        (['{0}/good.mp4'], 'cannot be read as UTF-8'),
    ],
)
def test_mistakes_are_one_sentence(corpus, tmp_path, capsys, argv, message):
    argv = [part.format(corpus) for part in argv]
    if not any(part.startswith('--output') for part in argv):
        argv.append(f'--output={tmp_path}/out')
    assert main.main(['data', 'check', *argv]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_wrong_lines_of_a_long_list_with_a_heading(tmp_path):
    lines = ['path,label', *(f'"v, {i}.mp4",{i % 3}' for i in range(1500))]
    for place, text in ((7, 'x.mp4,none'), (700, 'y.mp4,9'), (1499, 'z.mp4,-1')):
        lines[place] = text
    path = tmp_path / 'list.csv'
    path.write_text('\r\n'.join(lines))
    checked = read_whole(str(path), '', 3, '')
    assert [bad.line for bad in checked.bad_lines] == [8, 701, 1500]
    assert len(checked.files.records) == 1497
    assert write_clean(checked, {2, 3}, tmp_path / 'clean.csv') == 1495
    clean = (tmp_path / 'clean.csv').read_bytes().decode()
    assert clean == '\r\n'.join(line for i, line in enumerate(lines) if i not in (1, 2, 7, 700, 1499))
    assert len(read_list(str(tmp_path / 'clean.csv'), num_classes=3).records) == 1495


def test_classes_that_only_the_list_names_keep_their_numbers(corpus, tmp_path, capsys):
    (tmp_path / 'named.jsonl').write_text(
        '{"path": "none.mp4", "label": "a"}\n{"path": "val.mp4", "label": "b"}\nno json\n'
    )
    argv = ['data', 'check', f'{tmp_path}/named.jsonl', f'--root={corpus}', '--workers=1', f'--output={tmp_path}/out']
    assert main.main(argv) == 1
    assert (
        f'to be used with data.root={corpus} data.class_file={tmp_path}/out/named_classes.txt'
        in capsys.readouterr().out
    )
    clean = read_list(f'{tmp_path}/out/named.jsonl', str(corpus), 2, f'{tmp_path}/out/named_classes.txt')
    assert [(record.path, record.label) for record in clean.records] == [(f'{corpus}/val.mp4', 1)]


def test_a_folder_of_classes(corpus, tmp_path, monkeypatch):
    for name in ('run/a b.mp4', 'sit/c.mp4'):
        (tmp_path / 'mine' / name).parent.mkdir(parents=True)
        shutil.copy(corpus / 'val.mp4', tmp_path / 'mine' / name)
    monkeypatch.chdir(tmp_path)
    (one,) = check(['mine'], 'out', Options(workers=1), progress=False)['lists']
    assert (one['good'], one['kept']) == (2, 2)
    clean = read_list(one['clean'], class_file=one['class_file'])
    assert [(r.path, clean.class_names[r.label]) for r in clean.records] == [
        (f'{tmp_path}/mine/run/a b.mp4', 'run'),
        (f'{tmp_path}/mine/sit/c.mp4', 'sit'),
    ]


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path, capsys):
    (tmp_path / 'list.txt').write_text('a.mp4 0\n')
    (tmp_path / 'file').write_text('')
    assert main.main(['data', 'check', str(tmp_path / 'list.txt'), f'--output={tmp_path}/file/check']) == 1
    error = capsys.readouterr().err
    assert f'{tmp_path}/file/check cannot be written (Not a directory): give another --output' in error
