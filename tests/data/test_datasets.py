"""The published data sets, from tiny trees in the formats in which their annotations are distributed."""

import json
import re

import fsspec
import pytest

from mvdjax.data import media
from mvdjax.data.datasets import manifest
from mvdjax.data.sources import NO_LABEL, read_list
from mvdjax.errors import UserError


@pytest.fixture
def tree(tmp_path):
    """Writes files below a folder: {path: text}; media are empty files, for only their names matter here."""

    def write(files, *empty):
        for name, content in {**files, **dict.fromkeys(empty, '')}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path)

    return write


def rows(files, root):
    return [(record.path.removeprefix(root + '/'), record.label, record.line) for record in files.records]


HEADER = 'label,youtube_id,time_start,time_end,split,is_cc\n'
KINETICS = {
    'annotations/train.csv': HEADER
    + '"abseiling, fast",-b_ID,1,11,train,0\nzumba,ccc,20,30,train,0\nzumba,gone,20,30,train,0\n',
    'annotations/val.csv': HEADER + 'zumba,vvv,5,15,val,0\narm wrestling,www,0,10,val,0\n',
    'annotations/test.csv': 'youtube_id,time_start,time_end,split\nttt,3,13,test\n',
}
CLIPS = (
    *('train/abseiling/-b_ID_000001_000011.mp4', 'train/zumba/ccc_000020_000030.mkv', 'val/vvv_000005_000015.mp4'),
    *('val/www.mp4', 'test/ttt_3_13.webm', 'train/zumba/ccc_000020_000030.jpg'),
)


def test_kinetics(tree):
    root = tree(KINETICS, *CLIPS)
    train = read_list(f'k400:train:{root}')
    # Classes are numbered over all splits: 'arm wrestling' is only in val.
    assert train.class_names == ('abseiling, fast', 'arm wrestling', 'zumba')
    assert rows(train, root) == [
        ('train/abseiling/-b_ID_000001_000011.mp4', 0, 2),
        ('train/zumba/ccc_000020_000030.mkv', 2, 3),
    ]
    assert train.path == f'{root}/annotations/train.csv'
    assert train.notes == (
        f'k400:train: 1 of the 3 files that {root}/annotations/train.csv lists are not under {root}, such as '
        'gone_000020_000030; they are left out',
        'k400:train: 2 files, usual are 246534; scores on other files are other scores',
        'k400:train: 3 classes, published are 400',
    )
    val = read_list('k600:val', root=root)
    assert rows(val, root) == [('val/vvv_000005_000015.mp4', 2, 2), ('val/www.mp4', 1, 3)]
    assert rows(read_list(f'k700:test:{root}'), root) == [('test/ttt_3_13.webm', NO_LABEL, 2)]


def test_labels_of_a_data_set_are_checked_against_the_config(tree):
    root = tree(KINETICS, *CLIPS)
    assert read_list(f'k400:val:{root}', num_classes=3).class_names[2] == 'zumba'
    with pytest.raises(UserError, match=r'val\.csv has 3 classes, the config says 400'):
        read_list(f'k400:val:{root}', num_classes=400)
    with pytest.raises(UserError, match=r'test\.csv:2: label -1 is out of range'):
        read_list(f'k400:test:{root}', num_classes=3)
    tree({'names.txt': 'zumba\nspare\nabseiling, fast\narm wrestling\n', 'few.txt': 'zumba\n'})
    files = read_list(f'k400:val:{root}', class_file=f'{root}/names.txt')
    assert [r.label for r in files.records] == [0, 3]  # numbered as the class file says
    assert files.class_names == ('zumba', 'spare', 'abseiling, fast', 'arm wrestling')
    with pytest.raises(UserError, match=r"few\.txt has no class 'abseiling, fast', which .*val\.csv has"):
        read_list(f'k400:val:{root}', class_file=f'{root}/few.txt')


def test_an_edition_of_kinetics_does_not_read_the_files_of_another(tree):
    root = tree(
        {
            'kinetics_600_train.csv': HEADER + 'wrong,ccc,20,30,train,0\n',
            'kinetics_400_train.csv': KINETICS['annotations/train.csv'],
            'k400_validate.csv': KINETICS['annotations/val.csv'],
        },
        *CLIPS,
    )
    assert len(read_list(f'k400:train:{root}').records) == 2
    assert len(read_list(f'k400:val:{root}').records) == 2
    assert read_list(f'k600:train:{root}').class_names == ('wrong',)
    with pytest.raises(UserError, match=r'k700: train\.csv is nowhere in .*; put the annotation files'):
        read_list(f'k700:train:{root}')


def test_what_is_no_annotation_file_of_kinetics(tree):
    root = tree({'train.csv': 'train/a.mp4 0\n', 'val.csv': HEADER + 'zumba,vvv,soon,15,val,0\n'}, 'train/a.mp4')
    with pytest.raises(
        UserError, match=r'train\.csv:1: no column youtube_id; this is not the annotation file of Kinetics'
    ):
        read_list(f'k400:train:{root}')
    tree({'train.csv': KINETICS['annotations/train.csv']})
    with pytest.raises(UserError, match=r'val\.csv:2: not a line of the annotation file; fetch it again'):
        read_list(f'k400:val:{root}')
    tree({'train.csv': ''})
    with pytest.raises(UserError, match=r'train\.csv is empty; fetch it again'):
        read_list(f'k400:train:{root}')


def test_two_copies_of_a_file_are_an_error_but_not_in_folders_of_two_splits(tree):
    root = tree(KINETICS, 'val/vvv.mp4', 'train/vvv.mp4', 'val/www.mp4')
    assert [name for name, *_ in rows(read_list(f'k400:val:{root}'), root)] == ['val/vvv.mp4', 'val/www.mp4']
    tree({}, 'val_256/vvv.mp4')
    with pytest.raises(UserError, match=r'k400: both val/vvv\.mp4 and val_256/vvv\.mp4 in .* are vvv; name a folder'):
        read_list(f'k400:val:{root}')


SSV2 = {
    'labels/labels.json': {'Bending something': '1', 'Approaching something with your camera': '0'},
    'labels/train.json': [
        {'id': '7', 'label': 'bending a spoon', 'template': 'Bending [something]', 'placeholders': ['a spoon']},
        {'id': '11', 'label': 'approaching', 'template': 'Approaching [something] with your camera'},
    ],
    'labels/validation.json': [{'id': '12', 'label': 'bending', 'template': 'Bending [something]'}],
    'labels/test.json': [{'id': '13'}, {'id': '14'}],
}
WEBMS = tuple(f'20bn-something-something-v2/{i}.webm' for i in (7, 11, 12, 13, 14))


def test_something_something(tree):
    root = tree(SSV2, *WEBMS)
    train = read_list(f'ssv2:train:{root}')
    assert train.class_names == ('Approaching something with your camera', 'Bending something')
    assert [r[:2] for r in rows(train, root)] == [(WEBMS[0], 1), (WEBMS[1], 0)]
    assert [r[:2] for r in rows(read_list(f'ssv2:val:{root}'), root)] == [(WEBMS[2], 1)]
    assert [r.label for r in read_list(f'ssv2:test:{root}').records] == [NO_LABEL] * 2
    tree({'labels/test-answers.csv': '13;Bending something\n14;Approaching something with your camera\n'})
    assert [r.label for r in read_list(f'ssv2:test:{root}').records] == [1, 0]
    tree({'labels/validation.json': [{'id': '12', 'template': 'Breaking [something]'}]})
    with pytest.raises(UserError, match=r"validation\.json: entry 1 \(12\): no class 'Breaking something'"):
        read_list(f'ssv2:val:{root}')


def test_the_first_names_of_something_something(tree):
    old = {f'something-something-v2-{name.split("/")[1]}': content for name, content in SSV2.items()}
    assert len(read_list(f'ssv2:train:{tree(old, *WEBMS)}').records) == 2


UCF = {
    'ucfTrainTestlist/classInd.txt': '1 Archery\r\n2 HandstandPushups\r\n',
    'ucfTrainTestlist/trainlist01.txt': 'Archery/v_Archery_g08_c01.avi 1\r\n'
    'HandstandPushups/v_HandStandPushups_g08_c02.avi 2\r\n',
    'ucfTrainTestlist/testlist01.txt': 'HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n',
    'ucfTrainTestlist/trainlist02.txt': 'Archery/v_Archery_g09_c01.avi 2\r\n',
}
AVIS = (
    *('UCF-101/Archery/v_Archery_g08_c01.avi', 'UCF-101/HandstandPushups/v_HandStandPushups_g08_c02.mp4'),
    'UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi',
)


def test_ucf101(tree):
    root = tree(UCF, *AVIS)
    train = read_list(f'ucf101:train1:{root}')
    assert train.class_names == ('Archery', 'HandstandPushups')
    assert rows(train, root) == [(AVIS[0], 0, 1), (AVIS[1], 1, 2)]  # re-encoded files count as well
    assert rows(read_list(f'ucf101:test1:{root}'), root) == [(AVIS[2], 1, 1)]
    with pytest.raises(UserError, match=r'trainlist02\.txt:1: class 2, but Archery is 1 in .*classInd\.txt'):
        read_list(f'ucf101:train2:{root}')
    with pytest.raises(
        UserError, match=r"UCF101 has no split 'val'; write ucf101:SPLIT with one of train1, test1, train2"
    ):
        read_list(f'ucf101:val:{root}')


def test_hmdb51(tree):
    splits = 'testTrainMulti_7030_splits'
    root = tree(
        {
            f'{splits}/wave_test_split1.txt': '20060723_wave_u.avi 1 \nb#1_wave_u.avi 0 \nc_wave_u.avi 2 \n',
            f'{splits}/brush_hair_test_split1.txt': 'April_brush_hair_u_0.avi 2 \nApril_brush_hair_u_1.avi 1 \n',
            f'{splits}/wave_test_split2.txt': 'b#1_wave_u.avi 1 \n',
            f'{splits}/brush_hair_test_split2.txt': 'April_brush_hair_u_0.avi 3 \n',
        },
        *(f'videos/wave/{name}.avi' for name in ('20060723_wave_u', 'b#1_wave_u', 'c_wave_u')),
        *(f'videos/brush_hair/April_brush_hair_u_{i}.avi' for i in range(2)),
    )
    train, test = read_list(f'hmdb51:train1:{root}'), read_list(f'hmdb51:test1:{root}')
    assert train.class_names == test.class_names == ('brush_hair', 'wave')
    assert [r[:2] for r in rows(train, root)] == [
        ('videos/brush_hair/April_brush_hair_u_1.avi', 0),
        ('videos/wave/20060723_wave_u.avi', 1),
    ]
    assert [r[:2] for r in rows(test, root)] == [
        ('videos/brush_hair/April_brush_hair_u_0.avi', 0),
        ('videos/wave/c_wave_u.avi', 1),
    ]
    with pytest.raises(UserError, match=r'brush_hair_test_split2\.txt:1: .* is not "name\.avi 0", 1 or 2'):
        read_list(f'hmdb51:train2:{root}')
    with pytest.raises(UserError, match=r'hmdb51: CLASS_test_split3\.txt is nowhere'):
        read_list(f'hmdb51:test3:{root}')


def test_diving48(tree):
    vocabulary = [['Back', '15som', '05Twis', 'FREE'], ['Back', '15som', 'NoTwis', 'PIKE']]
    train = [{'vid_name': '-mmq0PT-u8k_00155', 'start_frame': 0, 'label': 1, 'end_frame': 99}]
    root = tree(
        {
            'Diving48_vocab.json': vocabulary,
            'Diving48_V2_train.json': train,
            'Diving48_test.json': [{'vid_name': 'x_1', 'label': 0}],
        },
        *('rgb/-mmq0PT-u8k_00155.mp4', 'rgb/x_1.mp4'),
    )
    files = read_list(f'diving48:train:{root}')
    assert files.class_names == ('Back 15som 05Twis FREE', 'Back 15som NoTwis PIKE')
    assert rows(files, root) == [('rgb/-mmq0PT-u8k_00155.mp4', 1, 1)]
    assert any(
        'is of version 1, whose labels were corrected in V2' in note
        for note in read_list(f'diving48:test:{root}').notes
    )
    tree({'Diving48_V2_test.json': [{'vid_name': 'x_1', 'label': 2}]})
    with pytest.raises(UserError, match=r'Diving48_V2_test\.json: entry 1 has class 2; the vocabulary has 2'):
        read_list(f'diving48:test:{root}')


IMAGES = ('train/n03/n03_1.JPEG', 'train/n03/n03_2.JPEG', 'train/n01/n01_1.JPEG', 'val/n03/v2.JPEG', 'val/n01/v1.JPEG')


def test_imagenet(tree):
    root = tree({}, *(f'ILSVRC/Data/CLS-LOC/{name}' for name in IMAGES))
    train = read_list(f'imagenet:train:{root}')
    assert train.class_names == ('n01', 'n03')
    names = [(name.rpartition('/')[2], label) for name, label, _ in rows(train, root)]
    assert names == [('n01_1.JPEG', 0), ('n03_1.JPEG', 1), ('n03_2.JPEG', 1)]
    assert [r.label for r in read_list(f'imagenet:val:{root}').records] == [0, 1]
    tree({'LOC_synset_mapping.txt': 'n01 crane\nn02 tench, Tinca tinca\nn03 crane\n'})
    val = read_list(f'imagenet:val:{root}')
    assert val.class_names == ('crane (n01)', 'tench, Tinca tinca', 'crane (n03)')
    assert [r.label for r in val.records] == [0, 2]


def test_the_flat_validation_folder_of_imagenet(tree):
    root = tree({}, *IMAGES[:3], 'val/v1.JPEG', 'val/v2.JPEG')
    with pytest.raises(
        UserError, match=r'val has no sub-folders; put each image into the folder of its class, or LOC_val'
    ):
        read_list(f'imagenet:val:{root}')
    tree({'LOC_val_solution.csv': 'ImageId,PredictionString\nv2,n01 1 2 3 4 n01 5 6 7 8 \nv1,n03 1 2 3 4 \n'})
    assert [r[:2] for r in rows(read_list(f'imagenet:val:{root}'), root)] == [('val/v1.JPEG', 1), ('val/v2.JPEG', 0)]
    tree({}, 'val/v3.JPEG')
    with pytest.raises(UserError, match=r'LOC_val_solution\.csv has no line for v3\.JPEG'):
        read_list(f'imagenet:val:{root}')


def test_a_folder_of_ones_own(tree):
    root = tree(
        {},
        'train/run/b.mp4',
        'train/jump high/deep/a.MOV',
        'train/run/.hidden.mp4',
        'train/run/notes.txt',
        'val/walk/c.avi',
    )
    train = read_list(f'folder:train:{root}')
    assert train.class_names == ('jump high', 'run', 'walk')  # of all splits: val has a class that train lacks
    assert rows(train, root) == [('train/jump high/deep/a.MOV', 0, 1), ('train/run/b.mp4', 1, 2)]
    assert [r.label for r in read_list(f'folder:val:{root}').records] == [2]
    assert train.notes == ()
    with pytest.raises(UserError, match='has no folder test with one sub-folder per class'):
        read_list(f'folder:test:{root}')


def test_a_folder_of_splits_is_not_read_as_classes(tmp_path):
    for name in ('Training/run', 'validation/run'):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'a.mp4').touch()
    root = re.escape(str(tmp_path))
    with pytest.raises(
        UserError, match=rf'splits \(Training, validation\), not classes; write folder:train:{root} for'
    ):
        read_list(str(tmp_path))
    assert read_list(f'folder:train:{tmp_path}').class_names == ('run',)
    (tmp_path / 'walk').mkdir()
    (tmp_path / 'walk/a.mp4').touch()
    assert read_list(str(tmp_path)).class_names == ('Training', 'validation', 'walk')


def test_a_plain_folder_is_a_list(tree):
    root = tree({}, 'run/b.mp4', 'jump/a.jpg', 'jump/readme.txt')
    files = read_list(root)
    assert files.class_names == ('jump', 'run')
    assert rows(files, root) == [('jump/a.jpg', 0, 1), ('run/b.mp4', 1, 2)]
    assert rows(read_list(f'{root}/run'), root) == [('run/b.mp4', NO_LABEL, 1)]
    tree({'names.txt': 'walk\nrun\njump\n'})
    assert [r.label for r in read_list(root, class_file=f'{root}/names.txt').records] == [2, 1]
    with pytest.raises(UserError, match='label -1 is out of range'):
        read_list(f'{root}/run', num_classes=2)
    tree({}, 'loose.mp4')
    with pytest.raises(UserError, match=r'holds loose\.mp4 beside its class folders; move it into one of them'):
        read_list(root)


def test_a_data_set_in_an_object_store():
    store = fsspec.filesystem('memory')
    for name, text in UCF.items():
        store.pipe(f'/ucf/{name}', text.encode())
    for name in AVIS:
        store.pipe(f'/ucf/{name}', b'x')
    files = read_list('ucf101:train1:memory://ucf')
    assert [(r.path, r.label) for r in files.records] == [
        (f'memory://ucf/{AVIS[0]}', 0),
        (f'memory://ucf/{AVIS[1]}', 1),
    ]
    assert media.fetch(files.records[0].path).data == b'x'
    assert [r.label for r in read_list('memory://ucf/UCF-101').records] == [0, 1, 1]
    with pytest.raises(UserError, match=r'UCF101 is looked for in memory://none, which is no folder'):
        read_list('ucf101:train1:memory://none')


def test_paths_are_whole_wherever_a_process_stands(tree, monkeypatch):
    root = tree(UCF, *AVIS)
    monkeypatch.chdir(root)
    assert read_list('ucf101:train1:.').records[0].path == f'{root}/{AVIS[0]}'
    assert read_list('UCF-101').records[0].path == f'{root}/{AVIS[0]}'


def test_what_is_no_data_set(tree, monkeypatch):
    with pytest.raises(
        UserError, match=r"there is no data set 'ucf11' and no list ucf11:train1; did you mean 'ucf101'"
    ):
        read_list('ucf11:train1')
    with pytest.raises(
        UserError,
        match=r'UCF101 is looked for in data/ucf101, which is no folder; write ucf101:train1:FOLDER, .*none stated',
    ):
        read_list('ucf101:train1')
    root = tree(UCF)
    with pytest.raises(
        UserError, match=r'none of the 2 files that .*trainlist01\.txt lists is under .*, such as Archery/v_A'
    ):
        read_list(f'ucf101:train1:{root}')
    tree({'trainlist01.txt': '', 'x/classInd.txt': '1 A\n'})
    with pytest.raises(
        UserError, match=r'ucf101: both ucfTrainTestlist/classInd\.txt and x/classInd\.txt in .* keep one'
    ):
        read_list(f'ucf101:train1:{root}')
    tree({'odd:name.txt': 'a.mp4 1\n'})
    monkeypatch.chdir(root)
    assert rows(read_list('odd:name.txt'), root) == [('a.mp4', 1, 1)]  # a list with a colon in its name


def test_the_page_names_every_data_set_with_its_splits(request):
    text = (request.config.rootpath / 'docs/data.md').read_text()
    for name, known in manifest.DATASETS.items():
        line = next(line for line in text.split('\n') if line.startswith('|') and f'`{name}`' in line)
        for split, count in known.splits.items():
            assert split in line or (split[:-1] in ('train', 'test') and f'{split[:-1]}1' in line), (name, split)
            assert count is None or str(count) in line, (name, split)


def test_every_data_set_says_what_it_is():
    for name, known in manifest.DATASETS.items():
        assert known.splits
        assert known.title
        assert name == 'folder' or (known.classes > 1 and known.home.startswith('http') and known.terms), name
    totals = {name: sum(count or 0 for count in known.splits.values()) for name, known in manifest.DATASETS.items()}
    assert [totals['ucf101'], totals['hmdb51'], totals['ssv2']] == [3 * 13320, 3 * 5100, 220847]  # as published
