"""`mvdjax data show`: what it draws is what the pipeline gives a run, and the drawing says so."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mvdjax import config as configs
from mvdjax import main
from mvdjax.analysis.contact_sheet import Band, Strip, pages_of
from mvdjax.analysis.data_show import _erased, pixel_mask, show, strips_of
from mvdjax.analysis.pictures import GREY
from mvdjax.analysis.shown import _NamingRecipe, _rows, read_rows
from mvdjax.data.pipeline import BadFiles, Data, empty_sample, eval_batches, train_batches, train_streams
from mvdjax.data.schema import Record
from mvdjax.errors import UserError
from mvdjax.feed import read_streams
from mvdjax.settings import Run

CONFIGS = Path(__file__).parents[2] / 'configs'
AUGMENTED = ['data.options.erasing=1.0', 'data.options.rand_augment=rand-m7-n4-mstd0.5-inc1']


def load(demo_data, spec, *overrides):
    lists = {'mae': 'images', 'videomae': 'pretrain', 'mvd': 'pretrain', 'finetune': 'motion_train'}
    own = [f'data.files={demo_data}/{lists[spec.split("/")[0]]}.txt']
    if spec.startswith('finetune'):
        own += [f'data.class_file={demo_data}/motion_classes.txt']
        own += [f'evals.{name}.data.class_file={demo_data}/motion_classes.txt' for name in ('val', 'test')]
        own += [f'evals.{name}.data.files={demo_data}/motion_{name}.txt' for name in ('val', 'test')]
    return configs.load(f'{CONFIGS}/{spec}', [f'--config.{text}' for text in (*own, *overrides)])


@pytest.mark.parametrize(
    ('spec', 'overrides', 'views', 'keys'),
    [
        ('mae/demo_nano.py', ['run.global_batch=16'], 1, {'video', 'mask'}),
        ('mvd/demo_nano.py', ['data.options.teacher_size=32'], 4, {'video', 'mask', 'teacher_video'}),
        ('finetune/demo_nano.py', AUGMENTED, 2, {'video', 'label', 'erase'}),
    ],
)
def test_what_is_shown_is_what_a_run_reads(demo_data, spec, overrides, views, keys):
    config = load(demo_data, spec, 'run.seed=7', *overrides)
    data = configs.build(Data, configs.section(config, 'data'), 'data')
    batch = next(
        train_batches(
            data, data.read(), seed=7, global_batch=config.run.global_batch, start_step=2, steps=3, bad=BadFiles(None)
        )
    )
    found = read_rows(config, 'train', 3, 2)
    assert len(found.rows) == 3 * views
    assert [row.view for row in found.rows] == list(range(views)) * 3
    for i, row in enumerate(found.rows):
        assert keys <= row.arrays.keys()
        for name in batch:
            np.testing.assert_array_equal(row.arrays[name], batch[name][i], err_msg=name)
    lines = (demo_data / Path(data.files).name).read_text().splitlines()
    for row in found.rows:
        path, label = lines[row.record.line - 1].split()
        assert row.record.path.endswith(path)
        assert row.record.label == int(label)
        if 'label' in keys:
            assert row.arrays['label'] == int(label)


def test_what_is_shown_of_streams_side_by_side(demo_data):
    config = load(demo_data, 'videomae/demo_nano.py', 'data.options.views=1').unlock()
    options = {'size': 32, 'patch': (1, 8, 8), 'masked': 6, 'smallest_block': 2, 'short_sides': (36, 40)}
    options['token_size'] = 16
    images = {'files': f'{demo_data}/images.txt', 'recipe': 'bevt_images', 'options': options}
    config.streams = {'image': {'data': images, 'batch': 6}}
    run = configs.build(Run, configs.section(config, 'run'), 'run')
    streams = read_streams(config, run)
    both = next(train_streams(streams, seed=run.seed, start_step=1, steps=2, bad=BadFiles(None)))
    for name, stream in (('train', run.stream), ('image', 'image')):
        found = read_rows(config, name, 2, 1)
        rows = found.rows
        np.testing.assert_array_equal(np.stack([r.arrays['video'] for r in rows]), both[stream]['video'][:2])
    names = [strip.name.split('\n') for strip in strips_of(rows[0], found.data)]
    assert names == [['input', '32 x 32'], ['encoder sees'], ['tokenizer', '16 x 16']]


def test_what_is_shown_of_an_evaluation_is_what_it_scores(demo_data):
    config = load(demo_data, 'finetune/demo_nano.py')
    data = configs.build(Data, config.evals.val.data.to_dict(), 'evals.val.data')
    files = data.read()
    scored = eval_batches(data, files, batch=8, empty=empty_sample(data, files), bad=BadFiles(None))
    expected = next(scored)['video']
    rows = read_rows(config, 'val', 3, 2).rows
    assert [row.record.line for row in rows] == [7, 8]  # the third group of three of eight files
    np.testing.assert_array_equal(np.stack([row.arrays['video'] for row in rows]), expected[6:])
    with pytest.raises(UserError, match='has 8 files, no group 3 of 3'):
        read_rows(config, 'val', 3, 3)


def test_a_file_that_cannot_be_read_is_shown_as_such(demo_data, tmp_path):
    lines = (demo_data / 'motion_val.txt').read_text().splitlines()
    text = ''.join(f'{demo_data}/{line}\n' for line in lines[:2]) + f'{tmp_path}/none.mp4 0\n'
    (tmp_path / 'list.txt').write_text(text)
    config = load(demo_data, 'finetune/demo_nano.py', f'evals.val.data.files={tmp_path}/list.txt')
    assert [row.record is None for row in read_rows(config, 'val', 3, 0).rows] == [False, False, True]
    show(config, 'title', str(tmp_path), 'val', 3)
    assert json.loads((tmp_path / 'val.json').read_text())['rows'][2]['path'] is None
    config = load(demo_data, 'finetune/demo_nano.py', f'data.files={tmp_path}/list.txt')
    assert sum(int(row.arrays['substituted']) > 0 for row in read_rows(config, 'train', 8, 0).rows) > 0


def test_the_files_written(demo_data, tmp_path, capsys):
    argv = [
        *('data', 'show', f'--config={CONFIGS}/videomae/demo_nano.py', f'--output={tmp_path}', '--count=2', '--step=1'),
        *(f'--config.data.files={demo_data}/pretrain.txt', '--config.data.options.views=2'),
    ]
    assert main.main(argv) == 0
    assert capsys.readouterr().out.split() == [f'{tmp_path}/train.{end}' for end in ('png', 'mp4', 'json')]
    picture = cv2.imread(f'{tmp_path}/train.png')
    assert picture is not None
    assert 1000 < picture.shape[1] < 1700
    # Three quarters of the pixels of the rows that show what the encoder sees: 4 clips of 8 frames, 160 pixels a side.
    grey = (picture == GREY).all(axis=-1).sum()
    assert abs(grey / (4 * 8 * 160 * 160) - 0.75) < 0.01
    with av.open(f'{tmp_path}/train.mp4') as film:
        assert sum(1 for _ in film.decode(video=0)) == 48
    facts = json.loads((tmp_path / 'train.json').read_text())
    assert (facts['set'], facts['step'], facts['batch'], facts['recipe']) == ('train', 1, 8, 'pretrain')
    assert [(row['view'], row['masked'], row['tokens']) for row in facts['rows']] == [(0, 48, 64), (1, 48, 64)] * 2


def test_images_have_no_film(demo_data, tmp_path):
    paths = show(load(demo_data, 'mae/demo_nano.py'), 'title', str(tmp_path), count=9)
    assert [Path(path).name for path in paths] == ['train.png', 'train.json']


def test_pages_hold_every_band_in_order_and_no_more_than_fits():
    strip = Strip('input', np.zeros((8, 40, 40, 3), np.uint8))
    bands = [Band([(str(i), '')], [''] * 8, range(8), [strip] * (1 + i % 3)) for i in range(20)]
    pages = list(pages_of(bands, 1500))
    assert [band for page in pages for band in page] == bands
    assert all(sum(band.height for band in page) <= 1500 for page in pages)
    assert len(pages) < 10
    assert [len(page) for page in pages_of(bands[:3], 10)] == [1, 1, 1]  # one that fits nowhere has a page of its own


def test_masks_of_pixels():
    mask = np.array([True, False, False, False, False, False, False, True])
    pixels = pixel_mask(mask, (4, 4, 6, 3), (2, 2, 3))[..., 0]
    assert pixels[:2, :2, :3].all()
    assert pixels[2:, 2:, 3:].all()
    assert pixels.sum() == 2 * 2 * 2 * 3
    with pytest.raises(UserError, match='8 tokens'):
        pixel_mask(mask, (4, 8, 6, 3), (2, 2, 3))


def test_erased_boxes():
    video = np.full((2, 10, 12, 3), 100, np.uint8)
    shown = _erased(video, np.array([2, 3, 4, 5]))
    inside = np.zeros((10, 12), bool)
    inside[2:6, 3:8] = True
    assert (shown[:, ~inside] == 100).all()
    assert ((shown[:, inside] != 100).any(axis=-1)).mean() > 0.95
    assert (video == 100).all()
    assert _erased(video, np.zeros(4, np.int32)) is video


def test_mistakes_are_one_sentence(demo_data, tmp_path, capsys):
    argv = ['data', 'show', f'--config={CONFIGS}/mae/demo_nano.py', f'--config.data.files={demo_data}/images.txt']
    for more, message in (('--set=tset', "no set 'tset'; it has none"), ('--count=0', '--count must be at least 1')):
        assert main.main([*argv, f'--output={tmp_path}', more]) == 1
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_records_with_very_long_paths_come_back_whole():
    record = Record('/' + 'ü' * 4000 + '/"b".mp4', 3, 7)
    naming = _NamingRecipe(lambda record, rng: {'label': np.int32(record.label)})
    naming.recipe.views = 1
    sample = naming(record, np.random.default_rng(0))
    (row,) = _rows({name: np.asarray(value)[None] for name, value in sample.items()}, 1)
    assert row.record == record
