"""The report: what it writes, that its pictures tell the truth, and what it says when something is missing."""

import base64
import html.parser
import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvdjax import config as configs
from mvdjax import main
from mvdjax.analysis.curves import smooth
from mvdjax.analysis.pictures import CAPTION, HEAD, MARGIN, SPACE, make_rows, shown_frames
from mvdjax.analysis.reconstruct import MaskedSamples, Reconstruction, fill_masked, read_batch, read_samples
from mvdjax.analysis.report import write_report
from mvdjax.analysis.runs import read_runs
from mvdjax.data.demo import DemoSpec, write_demo
from mvdjax.data.pipeline import Data
from mvdjax.errors import UserError
from mvdjax.metric_writer import MetricWriter
from mvdjax.resume import meta_data
from mvdjax.saving import Checkpoints
from mvdjax.tasks import mae
from mvdjax.train_state import TrainState, abstract_params

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('report_data')
    write_demo(root, DemoSpec(pretrain=8, labelled=0, val=0, test=0, images=8, workers=1), progress=False)
    return root


def save_random(workdir: Path, spec: str, overrides: list[str]) -> Path:
    """A run folder as `train` leaves it, with random parameters: nothing is compiled to make it."""
    config = configs.load(f'{CONFIGS}/{spec}', overrides)
    task, settings = configs.make_task(config), Data(**configs.section(config, 'data'))
    sample = settings.make()(settings.read().records[0], np.random.default_rng(0))
    one = sample if settings.make().views > 1 else {name: value[None] for name, value in sample.items()}
    batch = {name: value[:1] for name, value in one.items()}
    rng = np.random.default_rng(0)
    shapes = abstract_params(task, batch)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.05, x.shape), jnp.float32), shapes)
    with Checkpoints(str(workdir), 1) as saved:
        saved.save(
            TrainState(jnp.int32(2), jnp.int32(0), params, {}, None),
            {**meta_data(config, task, settings.read(), batch['video'], None), 'step': 2},
        )
    with MetricWriter(str(workdir), 0) as writer:
        writer.write(2, 'train', {'epoch': 2.0, 'loss': 1.0, 'learning_rate': 1e-3})
    return workdir


@pytest.fixture(scope='module')
def image_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp('runs') / 'image_teacher'
    return save_random(workdir, 'mae/demo_nano.py:debug', [f'--config.data.files={data}/images.txt'])


@pytest.fixture(scope='module')
def clip_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp('runs') / 'video_teacher'
    overrides = [f'--config.data.files={data}/pretrain.txt', '--config.task.target=videomae_raw']
    return save_random(workdir, 'videomae/demo_nano.py:debug', overrides)


def write_run(workdir: Path, records: list[dict[str, Any]], config: dict[str, Any] | None = None) -> Path:
    """A run folder with metrics and, if there is a config, a checkpoint without usable parameters."""
    workdir.mkdir(parents=True)
    if records:
        (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
    if config is not None:
        step = workdir / 'checkpoints' / '7'
        (step / 'params').mkdir(parents=True)
        (step / 'meta').mkdir()
        (step / 'meta' / 'metadata').write_text(json.dumps({'schema_version': 1, 'step': 7, 'config': config}))
    return workdir


def train_record(step: int, **values: float) -> dict[str, Any]:
    return {'step': step, 'kind': 'train', 'epoch': step / 4, 'loss': 1 / step, 'learning_rate': 1e-3, **values}


def mvd_config(files: str) -> dict[str, Any]:
    return configs.load(f'{CONFIGS}/mvd/demo_nano.py:debug', [f'--config.data.files={files}']).to_dict()


def read_picture(path: str) -> np.ndarray:
    picture = cv2.imread(path)
    assert picture is not None, path
    return picture


def test_report_of_all_kinds_of_runs(image_run: Path, clip_run: Path, data: Path, tmp_path: Path) -> None:
    student = write_run(tmp_path / 'student', [train_record(7)], mvd_config(f'{data}/pretrain.txt'))
    (student / 'results.json').write_text(json.dumps({'set': 'test', 'top1': 12.345, 'undecodable': []}))
    output = tmp_path / 'new' / 'report'
    paths = write_report([str(image_run), str(clip_run), str(student)], str(output))
    clips = ['image_teacher_clip.png', 'video_teacher_clip.png', 'student_clip.png']
    assert paths == [str(output / name) for name in ('curves.png', *clips, 'report.html')]
    assert sorted(p.name for p in output.iterdir()) == sorted(Path(p).name for p in paths)

    sizes = {}
    for path in paths[:-1]:
        picture = read_picture(path)
        sizes[Path(path).name] = picture.shape[:2]
        assert picture.std() > 10, f'{path} is blank'
        assert 900 <= picture.shape[1] <= 2000
    # Rows: three for every run, two reconstructions of normalised targets, one of plain pixels, none of features.
    image_height, clip_height, student_height = (sizes[name][0] for name in clips)
    assert clip_height - student_height == image_height + 34 - clip_height > 150

    page = (output / 'report.html').read_text()
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(e) for e in embedded] == [Path(p).read_bytes() for p in paths[:-1]]
    for text in ('image_teacher', 'video_teacher', 'top-1 12.3 %', 'step 2', '&quot;global_batch&quot;: 8', 'viewport'):
        assert text in page
    assert 'http' not in page, 'the page must need no network'
    assert 'No picture' not in page
    html.parser.HTMLParser().feed(page)


def test_every_report_of_a_run_shows_the_same_samples(image_run: Path, clip_run: Path) -> None:
    expected = (((8, 1, 40, 40, 3), 10 / 16), ((1, 8, 40, 40, 3), 0.75))
    for run, (shape, masked) in zip(read_runs([str(image_run), str(clip_run)]), expected, strict=True):
        first, second = read_samples(run), read_samples(run)
        assert first.video.shape == shape
        np.testing.assert_array_equal(first.video, second.video)
        np.testing.assert_array_equal(first.mask, second.mask)
        np.testing.assert_allclose(first.pixel_mask.mean(), masked)


@pytest.mark.parametrize('target', ['mae', 'mae_raw', 'videomae', 'videomae_raw'])
def test_a_perfect_prediction_gives_the_input_only_with_the_truth(target: str) -> None:
    rng = np.random.default_rng(0)
    patch, mask = (2, 4, 4), {'kind': 'tube', 'ratio': 0.75}
    task = mae.Task({'variant': 'nano', 'patch': patch}, {}, mask, target)
    # Smooth enough within a patch that the deviations of patches differ, as in pictures.
    video = (rng.random((2, 4, 8, 8, 3)) * rng.random((2, 1, 8, 8, 1)) * 255).astype(np.uint8)
    masks = np.zeros((2, 2, 2, 2), np.bool_)
    masks[:, :, :, 1] = True
    masked = np.stack([np.flatnonzero(m) for m in masks])
    prediction = np.take_along_axis(np.asarray(task.targets(jnp.asarray(video))), masked[..., None], axis=1)
    samples = MaskedSamples(video, masks, patch)
    with_truth = fill_masked(task, samples, prediction, masked, true_statistics=True)
    without = fill_masked(task, samples, prediction, masked, true_statistics=False)
    np.testing.assert_array_equal(with_truth, video)
    hidden = np.broadcast_to(samples.pixel_mask, video.shape)
    np.testing.assert_array_equal(without[~hidden], video[~hidden])
    assert (without != video).any() == (not target.endswith('_raw'))

    # A model that says nothing: the truth's statistics paint each patch's mean; without them all patches are alike.
    if target == 'videomae':
        nothing = np.zeros_like(prediction)
        flattering = fill_masked(task, samples, nothing, masked, true_statistics=True)[0, :2, :4, 4:]
        honest = fill_masked(task, samples, nothing, masked, true_statistics=False)
        assert abs(float(flattering[..., 0].mean()) - float(video[0, :2, :4, 4:, :][..., 0].mean())) < 1
        assert len(np.unique(honest[0][samples.pixel_mask[0, ..., 0]], axis=0)) == 1


def test_rows_say_where_the_statistics_come_from() -> None:
    samples = MaskedSamples(np.zeros((1, 4, 8, 8, 3), np.uint8), np.zeros((1, 2, 2, 2), np.bool_), (2, 4, 4))
    normalized = make_rows(samples, Reconstruction(1.0, True, samples.video, samples.video), [0, 2])
    assert ['with the true patch statistics' in r.title for r in normalized] == [False, False, False, True, False]
    assert 'visible patches' in normalized[4].caption
    plain = make_rows(samples, Reconstruction(1.0, False, samples.video, None), [0, 2])
    assert len(plain) == 4
    assert 'nothing is taken from the answer' in plain[3].caption
    assert [r.cells.shape[0] for r in normalized] == [2] * 5


def test_shown_frames() -> None:
    assert shown_frames(8, 2) == list(range(8))
    assert shown_frames(16, 2) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert shown_frames(32, 2) == [0, 4, 8, 12, 18, 22, 26, 30]


def test_smooth_keeps_constants_and_length() -> None:
    np.testing.assert_allclose(smooth([3.0] * 9, 5), np.full(9, 3.0))
    np.testing.assert_allclose(smooth([0.0, 3.0, 6.0], 3), [1.5, 3.0, 4.5])


def test_metrics_without_checkpoint_with_evaluations_and_nan(tmp_path: Path) -> None:
    records = [train_record(step, loss_image=1.0, loss_video=2.0) for step in range(1, 80)]
    records += [{'step': 79, 'kind': 'val', 'top1': 50.0, 'loss': 1.0}, train_record(80, loss=float('nan'))]
    one = write_run(tmp_path / 'one' / 'run$1_<b>', records)
    two = write_run(tmp_path / 'two' / 'run$1_<b>', [train_record(1)])
    curves, page = write_report([str(one), str(two)], str(tmp_path / 'report'))
    assert read_picture(curves).std() > 10
    text = Path(page).read_text()
    assert 'No checkpoint yet' in text
    assert 'run$1_&lt;b&gt;-2' in text, 'runs of the same name must be told apart'


def test_missing_data_leave_the_picture_out(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / 'student', [], mvd_config('quickstart/data/pretrain.txt'))
    paths = write_report([str(run)], str(tmp_path / 'report'))
    assert [Path(p).name for p in paths] == ['curves.png', 'report.html']
    (line,) = capsys.readouterr().out.strip().split('\n')
    assert 'no picture' in line
    assert 'quickstart/data/pretrain.txt' in line
    assert 'start the report in the folder' in line
    assert 'No picture' in Path(paths[-1]).read_text()


def test_a_checkpoint_that_does_not_fit_leaves_the_picture_out(
    image_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = tmp_path / 'other'
    shutil.copytree(image_run, other)
    path = other / 'checkpoints' / '2' / 'meta' / 'metadata'
    meta = json.loads(path.read_text())
    meta['config']['task']['decoder']['width'] = 32
    path.write_text(json.dumps(meta))
    assert len(write_report([str(other)], str(tmp_path / 'report'))) == 2
    assert 'does not fit' in capsys.readouterr().out


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    empty = tmp_path / 'empty'
    empty.mkdir()
    for folder in (empty, tmp_path / 'absent'):
        with pytest.raises(UserError, match=f'{folder} holds neither metrics nor checkpoints: give'):
            write_report([str(folder)], str(tmp_path / 'report'))
    run = write_run(tmp_path / 'run', [train_record(1)])
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        write_report([str(run)], str(tmp_path / 'file'))
    (run / 'results.json').write_text('{')
    with pytest.raises(UserError, match=r'results.json is damaged'):
        write_report([str(run)], str(tmp_path / 'report'))
    assert not (tmp_path / 'report').exists(), 'a failed report leaves no folder'
    assert main.main(['report', str(empty)]) == 1
    assert 'error: ' in capsys.readouterr().err


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = write_run(tmp_path / 'run', [train_record(1)])
    assert main.main(['report', str(run), f'--output={tmp_path}/report']) == 0
    assert capsys.readouterr().out.split() == [f'{tmp_path}/report/curves.png', f'{tmp_path}/report/report.html']


def test_a_tokenizer_shows_its_codes_and_what_they_alone_give(data: Path, tmp_path: Path) -> None:
    workdir = save_random(
        tmp_path / 'codes', 'bevt/demo_tokenizer.py:debug', [f'--config.data.files={data}/images.txt']
    )
    written = write_report([str(workdir)], str(tmp_path / 'report'))
    picture = cv2.imread(str(tmp_path / 'report' / 'codes_clip.png'))
    assert [Path(path).name for path in written] == ['curves.png', 'codes_clip.png', 'report.html']
    side = 128  # of a cell: 32 pixels, four times
    tops = [HEAD + CAPTION + number * (CAPTION + side + SPACE) for number in range(3)]
    shown, codes, output = (picture[top : top + side, MARGIN : MARGIN + side] for top in tops)
    samples, _ = read_batch(read_runs([str(workdir)])[0])
    np.testing.assert_array_equal(shown[::4, ::4, ::-1], samples['video'][0, 0])
    grid = codes.reshape(4, 32, 4, 32, 3)
    assert (grid == grid[:, :1, :, :1]).all()  # a code is one colour
    assert output.std() > 0
