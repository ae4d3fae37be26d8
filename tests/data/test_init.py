"""`mvdjax data init`: the lists of a folder, which files are held out, and that they can be trained on."""

import csv
import shlex

import pytest

from mvdjax import config as configs
from mvdjax.data import init
from mvdjax.data.sources import NO_LABEL, read_list
from mvdjax.errors import UserError
from mvdjax.main import main


@pytest.fixture
def folder(tmp_path):
    """A class of 20 videos, one of 5, one of 2 and one of 1, with names that need care."""
    sizes = {'jump, high': 20, 'run': 5, 'Über "die" Bank': 2, 'walk': 1}
    for name, count in sizes.items():
        (tmp_path / 'mine' / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / 'mine' / name / f'clip {i}, take 1.mp4').touch()
    return tmp_path / 'mine'


def paths(lists):
    return {split: [file for _, file in pairs] for split, pairs in lists.splits.items()}


def test_the_lists_hold_every_file_once_and_a_share_of_each_class(folder):
    lists = init.find(str(folder), val=0.2, test=0.1)
    assert lists.class_names == ('jump, high', 'run', 'walk', 'Über "die" Bank')
    counts = {
        s: {n: sum(pair[0] == n for pair in pairs) for n in lists.class_names} for s, pairs in lists.splits.items()
    }
    assert {split: list(count.values()) for split, count in counts.items()} == {
        'train': [14, 3, 1, 1],
        'val': [4, 1, 0, 1],
        'test': [2, 1, 0, 0],  # never the last file of a class
    }
    every = sorted(file for files in paths(lists).values() for file in files)
    assert every == sorted(str(p.relative_to(folder)) for p in folder.glob('*/*'))


def test_the_choice_depends_on_the_seed_and_the_names_alone(folder):
    lists = init.find(str(folder))
    assert init.find(str(folder) + '/') == lists
    assert init.find(str(folder), seed=1).splits['val'] != lists.splits['val']
    before = set(paths(lists)['val'])
    (folder / 'new class').mkdir()
    for i in range(10):
        (folder / 'new class' / f'{i}.mp4').touch()
    assert before < set(paths(init.find(str(folder)))['val'])  # other classes are not touched
    (folder / 'run' / 'one more.mp4').touch()
    assert len(before - set(paths(init.find(str(folder)))['val'])) <= 1
    assert set(init.find(str(folder), val=0.0).splits) == {'train'}


def test_what_is_written_is_what_is_read(folder, tmp_path, capsys):
    output = tmp_path / 'lists'
    assert main(['data', 'init', str(folder), f'--output={output}', '--val=0.2']) == 0
    lists = init.find(str(folder), val=0.2)
    for split in ('train', 'val'):
        files = read_list(f'{output}/{split}.csv', num_classes=4, class_file=f'{output}/classes.txt')
        assert files.class_names == lists.class_names
        expected = [(f'{folder}/{file}', lists.class_names.index(name)) for name, file in lists.splits[split]]
        assert [(r.path, r.label) for r in files.records] == expected
    with open(output / 'train.csv', encoding='utf-8', newline='') as file:
        first = next(csv.DictReader(file))
    assert first['class_name'] == 'jump, high'
    printed = capsys.readouterr().out
    assert f'{output}/train.csv: 22 files' in printed
    assert f'--config=configs/finetune/own_videos.py:{output} ' in printed
    assert 'c.data.num_classes = c.task.num_classes = 4' in printed
    assert 'note: 1 classes are not in every list, such as walk' in printed
    assert 'note: there is no test list: own_videos.py scores "test" on val.csv' in printed
    assert main(['data', 'init', str(folder), f'--output={tmp_path / "none"}', '--val=0']) == 0
    assert 'note: there is no val list, so nothing to evaluate on' in capsys.readouterr().out


def test_the_printed_command_can_be_pasted_whatever_the_folder_is_called(folder, capsys):
    odd = folder.rename(folder.parent / "my vids' home")
    assert main(['data', 'init', str(odd)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if 'mvdjax train' in line]
    assert shlex.split(line.rstrip('\\'))[2] == f'--config=configs/finetune/own_videos.py:{odd}'


def test_lists_in_the_folder_itself_move_with_it(folder, tmp_path):
    assert main(['data', 'init', str(folder)]) == 0
    moved = folder.rename(tmp_path / 'elsewhere')
    for record in read_list(f'{moved}/train.csv').records:
        assert record.path.startswith(f'{moved}/')
        assert record.label >= 0
    assert len(read_list(str(moved)).records) == 28  # the lists do not get in the way of the folder as a list


def test_nothing_is_overwritten_unless_asked(folder, capsys):
    assert main(['data', 'init', str(folder)]) == 0
    (folder / 'val.csv').write_text('mine')
    (folder / 'train.csv').unlink()
    assert main(['data', 'init', str(folder)]) == 1
    assert 'val.csv exists; give another --output, or --overwrite' in capsys.readouterr().err
    assert (folder / 'val.csv').read_text() == 'mine'
    assert not (folder / 'train.csv').exists()
    assert main(['data', 'init', str(folder), '--overwrite']) == 0
    assert (folder / 'val.csv').read_text().startswith('path,label')


def test_splits_that_are_made_already_are_kept(tmp_path):
    for name in (
        'train/run/a.mp4',
        'train/run/b.mp4',
        'train/jump/c.mp4',
        'Validation/jump/d.mp4',
        'Validation/new/e.mp4',
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    lists = init.find(str(tmp_path), test=0.3)
    assert lists.class_names == ('jump', 'new', 'run')
    assert sorted(paths(lists)['train'] + paths(lists)['test']) == [
        'train/jump/c.mp4',
        'train/run/a.mp4',
        'train/run/b.mp4',
    ]
    assert len(lists.splits['test']) == 1
    assert paths(lists)['val'] == ['Validation/jump/d.mp4', 'Validation/new/e.mp4']


def test_a_folder_without_classes_is_a_list_to_pretrain_on(tmp_path, capsys):
    for i in range(10):
        (tmp_path / f'{i}.mp4').touch()
    (tmp_path / 'poster.jpg').touch()
    assert main(['data', 'init', str(tmp_path), '--val=0.3']) == 0
    train, val = (read_list(f'{tmp_path}/{name}.csv') for name in ('train', 'val'))
    assert (len(train.records), len(val.records)) == (7, 3)
    assert {r.label for r in train.records} == {NO_LABEL}
    assert not (tmp_path / 'classes.txt').exists()
    printed = capsys.readouterr().out
    assert 'note: left out: 1 images (a list holds videos or images; there are 10 videos)' in printed
    assert 'pretrain on the list' in printed


def test_images(tmp_path):
    for name in ('cat/1.JPG', 'cat/2.png', 'dog/1.jpeg', 'dog/2.webp'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert len(init.find(str(tmp_path), val=0.5).splits['val']) == 2


def test_what_no_lists_can_be_made_of(tmp_path):
    def refused(message, **options):
        with pytest.raises(UserError, match=message):
            init.find(str(tmp_path), **options)

    refused('holds no video or image; give the folder whose sub-folders are the classes')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'a.mp4').touch()
    refused('--val and --test are shares that leave something to train on, not 0.5 and 0.5', val=0.5, test=0.5)
    refused('--val and --test are shares', val=-0.1)
    (tmp_path / 'loose.mp4').touch()
    refused(r'holds loose\.mp4 beside its class folders')
    (tmp_path / 'loose.mp4').rename(tmp_path / 'run' / 'line\nbreak.mp4')
    refused(r"the name 'run/line\\nbreak\.mp4' begins or ends with a space or is not plain text; rename it")
    (tmp_path / 'run').rename(tmp_path / 'val')
    (tmp_path / 'val' / 'line\nbreak.mp4').unlink()
    refused('val has no sub-folders; put each file into that of its class')
    (tmp_path / 'val' / 'run').mkdir()
    (tmp_path / 'val' / 'a.mp4').rename(tmp_path / 'val' / 'run' / 'a.mp4')
    refused('has no folder train beside val; add it')
    with pytest.raises(UserError, match=r'none is not a folder'):
        init.find(str(tmp_path / 'none'))


def test_the_config_takes_the_folder_as_its_argument(folder, request):
    assert main(['data', 'init', str(folder)]) == 0
    file = str(request.config.rootpath / 'configs/finetune/own_videos.py')
    config = configs.load(f'{file}:{folder}')
    assert (config.task.num_classes, config.data.num_classes) == (4, 4)
    assert config.evals.test.data.files == f'{folder}/val.csv'  # no test list was asked for
    assert config.evals.test.note.startswith('there is no test list: this is the score on the validation list')
    for data in (config.data, config.evals.val.data, config.evals.test.data):
        files = configs.build(configs.Data, data.to_dict(), 'data').read()
        configs.make_task(config).check_files(files)
        assert len(files.class_names) == 4
    assert main(['data', 'init', str(folder), '--test=0.2', '--overwrite']) == 0
    tested = configs.load(f'{file}:{folder}').evals.test
    assert tested.data.files == f'{folder}/test.csv'
    assert 'note' not in tested
