"""`mvdjax features`: the encoders' own numbers, rows that survive kills, and what is refused."""

import importlib
import json
import os
import pkgutil
import re
import resource
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import small_runs
from golden_weights import quick_jit

from mvdjax import config as configs
from mvdjax import feature_store, features, saving, tasks
from mvdjax import main as cli
from mvdjax.data.pipeline import make_recipe
from mvdjax.data.schema import FileList, Record
from mvdjax.errors import UserError
from mvdjax.models.video_swin import VideoSwin
from mvdjax.models.vq import VQ
from mvdjax.resume import meta_data
from mvdjax.tasks.base import model_input
from mvdjax.train_state import TrainState

SWIN = ('task.model.dtype=float32',)
STAGES = {  # name -> config, overrides
    'mae': ('mae', ()),
    'videomae': ('videomae', ()),
    'mvd': ('mvd', ()),
    'vit': ('finetune', ()),
    'bevt': ('bevt/k400_swin_b', SWIN),
    'bevt_images': ('bevt/in1k_swin_b', SWIN),
    'swin': ('finetune/ssv2_swin_b', SWIN),
    'codebook': ('bevt/in1k_tokenizer', SWIN),
}
OF_IMAGES = ('mae', 'bevt_images', 'codebook')


def load_config(name, data):
    file, overrides = STAGES[name]
    if file in small_runs.DEBUG:
        return small_runs.load(file, data, *overrides, arg='debug')
    spec = f'{small_runs.CONFIGS}/{file}.py:debug'
    return configs.load(spec, [f'--config.{text}' for text in overrides])


def drawn(tree, seed):
    """Parameters of no special kind: far enough from zero that every one of them shows."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.2 * random.standard_normal(x.shape)).astype(np.float32), tree)


def store(workdir, config, seed=0, step=1):
    """A checkpoint of a config's task, as a run writes it."""
    task = configs.make_task(config)
    data = configs.section(config, 'data')
    sample = make_recipe(data['recipe'], data['options']).blank()
    views = make_recipe(data['recipe'], data['options']).views
    batch = sample if views > 1 else {key: np.asarray(value)[None] for key, value in sample.items()}
    params = drawn(jax.eval_shape(task.init, jax.random.key(0), batch), seed)
    meta = meta_data(config, task, FileList('list', (Record('x', 0, 1),), ()), batch['video'], None)
    with saving.Checkpoints(str(workdir), 1) as saved:
        saved.save(TrainState(np.int32(step), np.int32(0), params, {}, drawn(params, seed + 7)), meta)
    return params


@pytest.fixture(scope='module')
def checkpoint(demo_data, tmp_path_factory):
    """name -> (path, config, parameters), each written once."""
    made = {}

    def get(name):
        if name not in made:
            config, workdir = load_config(name, demo_data), tmp_path_factory.mktemp(name)
            made[name] = str(workdir), config, store(workdir, config)
        return made[name]

    return get


@pytest.fixture(scope='module')
def videos(demo_data, tmp_path_factory):
    """A list of eleven videos with labels, the fourth of which is none."""
    root = tmp_path_factory.mktemp('videos')
    lines = [f'{demo_data}/{line}' for line in (demo_data / 'motion_train.txt').read_text().splitlines()[:11]]
    (root / 'broken.mp4').write_bytes(b'no video' * 99)
    lines[3] = f'{root}/broken.mp4 5'
    (root / 'list.txt').write_text('\n'.join(lines))
    return str(root / 'list.txt')


def extract(path, videos, output, batch=8, **spec):
    """The array and the two texts of a finished output."""
    features.write_features(features.make_job(path, str(videos), features.FeatureSpec(**spec)), str(output), batch)
    return read(output)


def read(output):
    about = json.loads((Path(output) / 'features.json').read_text())
    lines = [json.loads(line) for line in (Path(output) / 'videos.jsonl').read_text().splitlines()]
    array = np.load(Path(output) / 'features.npy', mmap_mode='r')
    assert about['finished']
    assert list(array.shape) == about['array']['shape']
    assert len(about['array']['axes']) == array.ndim
    assert len(lines) == len(array)
    return array, about, lines


def clips_of(path, about):
    """uint8 (views, t, h, w, 3) of a video, as the file says they were cut."""
    return make_recipe('views', about['views'])(Record(path, 0, 0), np.random.default_rng(0))['video']


def own_maps(name, task, params, clips):
    """(views, t, h, w, width): what the module says itself, called as the models' documentation has it."""
    model = task.backbone()
    x = model_input(clips.reshape(-1, 1, *clips.shape[2:]) if name in OF_IMAGES else clips, model)
    if isinstance(model, VQ):
        _, info = quick_jit(model.apply)({'params': params}, x[:, 0])
        found = info['vectors']
    elif isinstance(model, VideoSwin):
        image = name == 'bevt_images'
        apply = quick_jit(model.apply, static_argnames=('image',))
        output, info = apply({'params': params['backbone']}, x, image=image)
        found = output if name == 'swin' else info['stage2']
    else:
        found, _ = quick_jit(model.apply)({'params': params['backbone']}, x)
        found = found[:, int(model.cls_token) :]
    rows, columns = (side // 10 for side in clips.shape[2:4]) if found.ndim == 3 else found.shape[-3:-1]
    return np.asarray(found, np.float32).reshape(len(clips), -1, rows, columns, found.shape[-1])


@pytest.mark.parametrize('name', [name for name in STAGES if name != 'videomae'])  # which is below
def test_features_are_what_the_model_says_itself(checkpoint, demo_data, tmp_path, name):
    path, config, params = checkpoint(name)
    video = str(sorted((demo_data / 'videos' / 'train').iterdir())[1])
    frames = {'frames': 3} if name in OF_IMAGES else {}
    clip, about, _ = extract(path, video, tmp_path / 'clip', **frames)
    task, clips = configs.make_task(config), clips_of(video, about)
    if about['checkpoint']['task'] == 'classify':
        apply = quick_jit(task.classifier().apply)
        _, info = apply({'params': params}, model_input(clips, task.backbone()))
        expected = np.mean(info['pooled'], axis=0)
    else:
        maps = own_maps(name, task, params, clips)
        expected = maps.mean(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(clip[0], expected, rtol=1e-4, atol=1e-4)
    assert np.std(expected) > 0.01
    if name == 'mae':
        dense, about, _ = extract(path, video, tmp_path / 'dense', kind='dense', **frames)
        np.testing.assert_allclose(dense[0], maps, rtol=1e-4, atol=1e-4)
        assert maps.shape[1] == 3
        assert about['array']['axes'] == ['video', 'view', 'time', 'row', 'column', 'channel']


@pytest.mark.parametrize('name', ['videomae', 'bevt'])
def test_a_layer_is_its_output_before_any_norm(checkpoint, demo_data, tmp_path, name):
    """Of the ViT: what the last block gives where those after the first change nothing."""
    path, config, params = checkpoint(name)
    video = str(sorted((demo_data / 'videos' / 'train').iterdir())[0])
    found, about, _ = extract(path, video, tmp_path / 'x', kind='dense', layer=1)
    model = configs.make_task(config).backbone()
    weights = params['backbone']
    if name == 'videomae':
        blocks = weights['encoder']['blocks']
        silent = {'attn': 'proj', 'mlp': 'fc2'}
        blocks = {
            part: {**leaf, silent[part]: jax.tree.map(lambda x: np.r_[x[:1], 0 * x[1:]], leaf[silent[part]])}
            if part in silent
            else leaf
            for part, leaf in blocks.items()
        }
        weights = {**weights, 'encoder': {'blocks': blocks}}
    _, info = quick_jit(model.apply)({'params': weights}, model_input(clips_of(video, about), model))
    expected = np.asarray(info['last_block' if name == 'videomae' else 'stage1'])
    np.testing.assert_allclose(found[0], expected.reshape(found[0].shape), rtol=1e-4, atol=1e-4)


def test_every_task_hands_out_an_encoder():
    modules = [importlib.import_module(f'{tasks.__name__}.{m.name}') for m in pkgutil.iter_modules(tasks.__path__)]
    found = [module.Task for module in modules if hasattr(module, 'Task')]
    assert len(found) >= 5
    assert all(callable(getattr(task, 'feature_encoder', None)) for task in found)


@pytest.fixture(scope='module')
def whole(checkpoint, videos, tmp_path_factory):
    """The features of the list, computed in one go."""
    output = tmp_path_factory.mktemp('whole')
    return output, *extract(checkpoint('vit')[0], videos, output, batch=4)


def test_rows_are_the_lines_of_the_list_and_broken_videos_are_listed(whole, videos):
    output, array, about, lines = whole
    listed = [line.rsplit(maxsplit=1) for line in Path(videos).read_text().splitlines()]
    assert [[line['path'], str(line['label'])] for line in lines] == listed
    assert np.isnan(array[3]).all()
    assert np.isfinite(np.delete(array, 3, axis=0)).all()
    assert ['error' in line for line in lines] == [i == 3 for i in range(11)]
    assert len({row.tobytes() for row in np.asarray(array)}) == 11
    assert about['videos']['unreadable'] == 1
    (bad,) = (output / 'bad_videos.jsonl').read_text().splitlines()
    assert json.loads(bad)['reason'] == lines[3]['error']


def test_order_and_batch_change_no_number(checkpoint, videos, whole, tmp_path):
    _, array, _, _ = whole
    text = Path(videos).read_text().splitlines()
    (tmp_path / 'list.txt').write_text('\n'.join(text[::-1]))
    found, _, _ = extract(checkpoint('vit')[0], tmp_path / 'list.txt', tmp_path / 'x', batch=16)
    np.testing.assert_allclose(found[::-1], array, rtol=1e-5, atol=1e-5)


KILLED = """
import os, signal, sys
import conftest
from mvdjax import feature_store
from mvdjax import main as cli

append, calls = feature_store._append, []

def cut(path, content):
    calls.append(path)
    if len(calls) == 3:  # the array of the second batch
        append(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    append(path, content)

feature_store._append = cut
cli.main(sys.argv[1:])
"""


def test_a_run_that_was_killed_goes_on_to_the_same_features(checkpoint, videos, whole, tmp_path, capsys):
    path, output = checkpoint('vit')[0], tmp_path / 'x'
    arguments = ['features', f'--checkpoint={path}', f'--videos={videos}', f'--output={output}', '--batch=4']
    tests = Path(__file__).parent
    environment = {**os.environ, 'PYTHONPATH': f'{tests}:{tests.parent}'}
    done = subprocess.run([sys.executable, '-c', KILLED, *arguments], env=environment, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (output / 'features.npy').exists()
    first = len((output / 'videos.jsonl').read_text().splitlines())
    assert 0 < first < 11
    written = (output / 'features.npy.unfinished').read_bytes()
    kept = 128 + 4 * 32 * first  # header, and rows of 32 numbers
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert f'{output} has {first} of 11 videos; going on' in out
    assert 'did not come to an orderly end' in out
    assert (output / 'features.npy').read_bytes()[:kept] == written[:kept]
    # Another process may compile or split its work otherwise: the last bit is its own.
    np.testing.assert_allclose(read(output)[0], whole[1], rtol=1e-5, atol=1e-6)
    for name in ('videos.jsonl', 'bad_videos.jsonl'):
        assert (output / name).read_bytes() == (whole[0] / name).read_bytes(), name
    assert sorted(os.listdir(output)) == ['bad_videos.jsonl', 'features.json', 'features.npy', 'videos.jsonl']

    before = (output / 'features.npy').stat().st_mtime_ns
    assert cli.main(arguments) == 0
    assert f'{output} is finished: features of 10 of 11 videos, float32 (11, 32); 1' in capsys.readouterr().out
    assert (output / 'features.npy').stat().st_mtime_ns == before


def test_views_average_and_the_moving_average(checkpoint, videos, whole, tmp_path):
    path, video = checkpoint('vit')[0], Path(videos).read_text().split()[0]
    views, about, _ = extract(path, video, tmp_path / 'views', each_view=True, dtype='float16')
    assert (views.shape, views.dtype, about['views']['clips']) == ((1, 2, 32), np.float16, 2)
    assert np.abs(views[0, 0] - views[0, 1]).max() > 1e-3
    np.testing.assert_allclose(views[0].astype(float).mean(axis=0), whole[1][0], rtol=2e-3, atol=2e-3)
    late = tmp_path / 'late.mp4'  # there when the same command is started again
    with pytest.raises(UserError, match=r'none of the 1 files of .*late\.mp4 can be read: see'):
        extract(path, late, tmp_path / 'other', views='3x2', use_ema=True)
    shutil.copy(video, late)
    other, about, _ = extract(path, late, tmp_path / 'other', views='3x2', use_ema=True)
    assert not (tmp_path / 'other' / 'bad_videos.jsonl').exists()
    assert (about['views']['clips'], about['views']['crops'], about['checkpoint']['ema']) == (3, 2, True)
    assert np.abs(other[0] - whole[1][0]).max() > 0.1


def test_a_full_disk_keeps_what_is_written(checkpoint, videos, whole, tmp_path, monkeypatch):
    job = features.make_job(checkpoint('vit')[0], videos, features.FeatureSpec())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r'GiB are to be written and .* are free: make room'):
            features.write_features(job, str(tmp_path / 'none'))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    append = feature_store._append

    def limited(path, content):
        """Nothing after the first batch fits."""
        at_most = path.stat().st_size + (len(content) // 2 if path.stat().st_size > 1000 else 10**6)
        resource.setrlimit(resource.RLIMIT_FSIZE, (at_most, limits[1]))
        try:
            append(path, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, '_append', limited)
        with pytest.raises(UserError, match=r'cannot be written .*: make room .* goes on after [48] of 11 videos'):
            features.write_features(job, str(tmp_path / 'x'), 4)
    features.write_features(job, str(tmp_path / 'x'), 4)
    np.testing.assert_array_equal(read(tmp_path / 'x')[0], whole[1])


def test_a_folder_of_other_features_is_refused(checkpoint, videos, whole, tmp_path):
    path, config, _ = checkpoint('vit')
    store(tmp_path / 'other', config, seed=1)
    output = str(whole[0])
    for checkpoint_, listed, spec, message in (
        (str(tmp_path / 'other'), videos, {}, r'checkpoint\.weights is .*, there it is'),
        (path, videos, {'kind': 'dense'}, r"kind is 'dense', there it is 'clip'.* another --output, or delete"),
        (path, Path(videos).read_text().split()[0], {}, r'array\.shape is \[1, 32\], there it is \[11, 32\]'),
    ):
        job = features.make_job(checkpoint_, listed, features.FeatureSpec(**spec))
        with pytest.raises(UserError, match=message):
            features.write_features(job, output)
    job = features.make_job(path, videos, features.FeatureSpec())
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.tex').write_text('x')
    with pytest.raises(UserError, match='is not empty and holds no features'):
        features.write_features(job, str(tmp_path / 'full'))
    with pytest.raises(UserError, match='is a file: --output is a folder'):
        features.write_features(job, str(tmp_path / 'full' / 'thesis.tex'))


def test_files_of_the_same_names_elsewhere_are_others(checkpoint, videos, tmp_path):
    source = Path(videos).read_text().split()[0]
    for folder in ('one', 'two'):
        (tmp_path / folder).mkdir()
        shutil.copy(source, tmp_path / folder / 'clip.mp4')
    extract(checkpoint('vit')[0], tmp_path / 'one', tmp_path / 'x')
    with pytest.raises(UserError, match=r'videos\.fingerprint is .*, there it is'):
        extract(checkpoint('vit')[0], tmp_path / 'two', tmp_path / 'x')


def test_a_finished_folder_that_lost_something_is_completed(checkpoint, videos, whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / 'x')
    array = tmp_path / 'x' / 'features.npy'
    with open(array, 'r+b') as file:
        file.truncate(array.stat().st_size // 2)
    extract(checkpoint('vit')[0], videos, tmp_path / 'x')
    assert 'is finished' not in capsys.readouterr().out
    np.testing.assert_allclose(read(tmp_path / 'x')[0], whole[1], rtol=1e-5, atol=1e-6)


def test_features_that_are_not_finite_are_none(checkpoint, videos, tmp_path, monkeypatch, capsys):
    real = features._write
    monkeypatch.setattr(
        features, '_write', lambda job, rows, bad, host, found: real(job, rows, bad, host, found.at[1].set(np.nan))
    )
    job = features.make_job(checkpoint('vit')[0], videos, features.FeatureSpec())
    found = features.write_features(job, str(tmp_path / 'x'), 16)
    lines = [json.loads(line) for line in (tmp_path / 'x' / 'videos.jsonl').read_text().splitlines()]
    assert 'its features are not finite' in lines[1]['error']
    assert found['unreadable'] == sum('error' in line for line in lines)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--kind=dens'], "--kind is one of clip, dense, not 'dens'"),
        (['--dtype=float64'], "--dtype is one of float32, float16, not 'float64'"),
        (['--layer=3'], 'there is no layer 3: the encoder has 2 blocks'),
        (['--views=5'], "--views is CLIPSxCROPS, such as 5x3, not '5'"),
        (['--batch=0'], '--batch must be at least 1, not 0'),
        (['--frames=7'], r'a video of \(frames, height, width\) \(7, 40, 40\) does not divide'),
        (['--kind=dense', '--each_view'], '--each_view is of --kind=clip'),
        (['--videos=no_such_list.txt'], 'no_such_list.txt does not exist'),
        (['--videos=no_such.mp4'], 'none of the 1 files of no_such.mp4 can be read'),
        (['--checkpoint=nowhere'], 'no checkpoint in nowhere'),
    ],
)
def test_bad_arguments_get_a_sentence(checkpoint, videos, tmp_path, capsys, arguments, message):
    given = [f'--checkpoint={checkpoint("vit")[0]}', f'--videos={videos}', f'--output={tmp_path}/x', *arguments]
    assert cli.main(['features', *given]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f'^error: .*{message}', last), last


def test_images_are_noted_as_still_clips_to_a_model_of_clips(checkpoint, demo_data, capsys):
    features.make_job(checkpoint('vit')[0], f'{demo_data}/images.txt', features.FeatureSpec())
    assert (
        'holds images, and the model takes clips: each becomes a clip in which nothing moves' in capsys.readouterr().out
    )


def test_images_are_clips_of_one_frame_to_a_model_of_images(checkpoint, demo_data, tmp_path):
    images = (demo_data / 'images.txt').read_text().split()[:2]
    (tmp_path / 'list.txt').write_text('\n'.join(f'{demo_data}/{image}' for image in images if '.' in image))
    found, about, _ = extract(checkpoint('mae')[0], tmp_path / 'list.txt', tmp_path / 'x', kind='dense')
    assert found.shape[1:] == (1, 1, 4, 4, 32)
    assert about['views']['length'] == 1
    assert np.isfinite(found).all()


@pytest.mark.parametrize('command', [['features', '--videos=x.mp4', '--output=x'], ['predict', 'x.mp4']])
def test_weights_without_a_config_get_a_remedy(checkpoint, tmp_path, capsys, command):
    shutil.copytree(checkpoint('vit')[0], tmp_path / 'bare')
    meta = tmp_path / 'bare' / 'checkpoints' / '1' / 'meta' / 'metadata'
    content = json.loads(meta.read_text())
    content['config'] = {name: content['config'][name] for name in ('task_name', 'task')}  # as `convert` leaves it
    meta.write_text(json.dumps(content))
    assert cli.main([*command, f'--checkpoint={tmp_path}/bare']) == 1
    assert 'holds weights without a config: convert them again, with --config=FILE' in capsys.readouterr().err


def test_numbers_that_float16_lacks_are_not_written(tmp_path):
    about = {'array': {'shape': [2, 1], 'dtype': 'float16'}, 'videos': {}}
    rows = feature_store.FeatureStore(str(tmp_path), about)
    rows.go_on(1)
    rows.append(np.array([[60000.0]]), [Record('a', 0, 1)], [None])
    with pytest.raises(UserError, match='b and its neighbours have features too large for float16'):
        rows.append(np.array([[70000.0]]), [Record('b', 0, 2)], [None])
    assert rows.rows == 1
