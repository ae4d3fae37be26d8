"""The folder of `mvdjax features`: rows that survive kills, stops and full disks, and whose folder it is."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from feature_runs import extract, read, store

from mvdjax import feature_store, features
from mvdjax import main as cli
from mvdjax.data.schema import Record
from mvdjax.errors import UserError
from mvdjax.feature_batches import FeatureBatches


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
    tests = Path(__file__).parent.parent
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


@pytest.fixture
def mendable(videos, tmp_path):
    """(the list of `videos` with a broken file of its own, that file, what belongs there)."""
    lines = Path(videos).read_text().splitlines()
    broken, good = tmp_path / 'broken.mp4', lines[0].split()[0]
    broken.write_bytes(b'no video' * 99)
    lines[3] = f'{broken} 5'
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    return str(tmp_path / 'list.txt'), broken, good


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_run_told_to_stop_writes_what_is_under_way_and_goes_on(
    checkpoint, mendable, whole, tmp_path, monkeypatch, capsys, number, code
):
    listed, broken, good = mendable
    output, real = tmp_path / 'x', FeatureBatches._compute
    arguments = ['features', f'--checkpoint={checkpoint("vit")[0]}', f'--videos={listed}', f'--output={output}']
    before = signal.getsignal(number)

    def told(batches, host):
        os.kill(os.getpid(), number)
        return real(batches, host)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureBatches, '_compute', told)
        assert cli.main(arguments) == code
    assert signal.getsignal(number) is before
    said = capsys.readouterr().err
    assert 'stopped after 8 of 11 videos, which are written; start the same command again to go on' in said
    assert len((output / 'videos.jsonl').read_text().splitlines()) == 8
    assert not (output / 'features.npy').exists()
    shutil.copy(good, broken)
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert 'has 8 of 11 videos; going on' in said
    assert '1 of 1 videos that could not be read before can be read now' in said
    assert 'features of 11 of 11 videos' in said
    array, about, lines = read(output)
    expected = np.array(whole[1])
    expected[3] = expected[0]  # the file that was mended is the first one's copy
    np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
    assert about['videos']['unreadable'] == 0
    assert not any('error' in line for line in lines)
    assert not (output / 'bad_videos.jsonl').exists()


def test_videos_that_could_not_be_read_are_tried_again_when_the_rest_is_finished(
    checkpoint, mendable, tmp_path, capsys
):
    listed, broken, good = mendable
    output, path = tmp_path / 'x', checkpoint('vit')[0]
    first, _, _ = extract(path, listed, output)
    assert (
        '1 without (rows of NaN; videos.jsonl says why; the same command tries them again)' in capsys.readouterr().out
    )
    kept, files = np.array(first), {name: (output / name).read_bytes() for name in os.listdir(output)}
    extract(path, listed, output)
    said = capsys.readouterr()
    assert '0 of 1 videos that could not be read before can be read now' in said.out
    assert 'is finished: features of 10 of 11 videos' in said.out
    assert 'broken.mp4 is a text file' in said.err
    assert {name: (output / name).read_bytes() for name in os.listdir(output)} == files
    broken.write_bytes(b'')  # broken otherwise
    extract(path, listed, output)
    _, _, lines = read(output)
    assert 'empty' in lines[3]['error']
    (bad,) = (output / 'bad_videos.jsonl').read_text().splitlines()
    assert json.loads(bad)['reason'] == lines[3]['error']
    shutil.copy(good, broken)
    array, about, _ = extract(path, listed, output)
    np.testing.assert_array_equal(np.delete(array, 3, axis=0), np.delete(kept, 3, axis=0))
    np.testing.assert_allclose(array[3], array[0], rtol=1e-5, atol=1e-6)
    assert about['videos']['unreadable'] == 0
    assert sorted(os.listdir(output)) == ['features.json', 'features.npy', 'videos.jsonl']


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


def test_numbers_that_float16_lacks_are_not_written(tmp_path):
    about = {'array': {'shape': [2, 1], 'dtype': 'float16'}, 'videos': {}}
    rows = feature_store.FeatureStore(str(tmp_path), about)
    rows.go_on(1)
    rows.append(np.array([[60000.0]]), [Record('a', 0, 1)], [None])
    with pytest.raises(UserError, match='b and its neighbours have features too large for float16'):
        rows.append(np.array([[70000.0]]), [Record('b', 0, 2)], [None])
    assert rows.rows == 1
