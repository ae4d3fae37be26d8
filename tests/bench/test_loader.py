"""`mvdjax bench loader`: what is compared does the same job, and the report says what was measured."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from data.video_files import encode

from mvdjax import main as cli
from mvdjax.bench import loader_report, measure, peer_decord, plan, videos, ways
from mvdjax.bench.measure import Candidate, Cost, Result
from mvdjax.bench.plan import Job
from mvdjax.data import worker_settings
from mvdjax.data.decode import probe, read_frames
from mvdjax.data.recipes import finetune
from mvdjax.data.recipes.pretrain import Recipe
from mvdjax.data.sources import read_list
from mvdjax.errors import UserError

OPTIONS = {'size': 32, 'patch': (2, 16, 16), 'mask': {'kind': 'tube', 'ratio': 0.5}, 'length': 4, 'stride': 4}


def in_this_process(candidates, repeats, progress, settle):
    """Stands in for `measure.interleaved`, whose processes would each import everything (see test_measure)."""
    results = {}
    for candidate in candidates:
        function = getattr(ways, candidate.factory.removeprefix('mvdjax.bench.ways:'))
        make = function(**candidate.arguments)
        rounds = []
        for i in range(repeats + 1):
            progress(candidate.name, i)
            started = time.process_time()
            made = make(i)
            seconds = time.process_time() - started
            rounds.append(made if isinstance(made, Cost) else Cost(made, seconds, seconds))
        results[candidate.name] = measure.result(candidate.name, rounds)
    return results


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    for name in ('a.mp4', 'b.mp4'):
        encode(folder / name, 'libx264', frames=40, g='12', bf='2')
    (folder / 'list.txt').write_text('a.mp4 0\nb.mp4 1\n')
    return read_list(str(folder / 'list.txt'))


class Reader:
    """Looks like decord's VideoReader."""

    opened: list

    def __init__(self, path, num_threads):
        assert num_threads == 1
        self._frames = read_frames(path, np.arange)

    def __len__(self):
        return len(self._frames)

    def get_batch(self, ids):
        frames = self._frames[ids]
        return type('Batch', (), {'asnumpy': lambda _: frames})()


def test_the_peer_makes_the_clip_that_our_exact_recipe_makes(files):
    record = files.records[0]
    ours = Recipe(**OPTIONS, resize='exact', teacher_size=28)(record, np.random.default_rng(5))
    clip = peer_decord.load_clip(Reader, record.path, np.random.default_rng(5), 4, 4, (32, 28))
    mean, std = (np.reshape(x, (3, 1, 1, 1)) for x in (peer_decord.MEAN, peer_decord.STD))
    for found, expected in zip(clip, (ours['video'], ours['teacher_video']), strict=True):
        assert found.dtype == np.float32
        levels = (found * std + mean) * 255
        np.testing.assert_allclose(levels.transpose(1, 2, 3, 0), expected, atol=1e-3)


def test_the_peer_collates_both_sizes(files):
    draw = [np.random.default_rng(i) for i in range(3)]
    clips = [peer_decord.load_clip(Reader, files.records[0].path, rng, 4, 4, (32, 28)) for rng in draw]
    first, second = peer_decord.collate(clips)
    assert first.shape == (3, 3, 4, 32, 32)
    assert second.shape == (3, 3, 4, 28, 28)
    np.testing.assert_array_equal(second[1], clips[1][1])


def test_the_fine_tuning_peer_makes_the_views_that_our_exact_recipe_makes(files):
    record, spec = files.records[0], 'rand-m7-n4-mstd0.5-inc1'
    options = {'size': 32, 'length': 4, 'stride': 4, 'rand_augment': spec, 'erasing': peer_decord.ERASING, 'views': 2}
    ours = finetune.Recipe(**options, rand_augment_mode='exact')(record, np.random.default_rng(5))['video']
    found = peer_decord.load_views(Reader, record.path, np.random.default_rng(5), 4, 4, 32, spec, 2)
    mean, std = (np.reshape(x, (3, 1, 1, 1)) for x in (peer_decord.MEAN, peer_decord.STD))
    assert len(found) == 2
    assert np.abs(found[0] - found[1]).mean() > 0.1
    for view, expected in zip(found, ours, strict=True):
        levels = (view * std + mean) * 255
        np.testing.assert_allclose(levels.transpose(1, 2, 3, 0), expected, atol=1)  # ours rounds to whole levels


def test_without_decord_the_peer_is_one_sentence_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'decord', None)
    assert cli.main(['bench', 'loader', '--peer=decord']) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert 'pip install decord' in lines[0]
    assert '--peer' in lines[0]


@pytest.mark.parametrize(
    ('argument', 'said'),
    [('--batch=0', '--batch must be at least 1'), ('--size=40', 'multiple of 16'), ('--workers=0', 'each at least 1')],
)
def test_settings_that_measure_nothing_are_refused(argument, said, capsys):
    assert cli.main(['bench', 'loader', argument]) == 1
    assert said in capsys.readouterr().err


def test_the_command_prints_a_table_and_writes_every_measurement(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, 'interleaved', in_this_process)
    monkeypatch.setattr(worker_settings, 'tune', lambda: None)  # not in this process
    output = tmp_path / 'loader.json'
    argv = [
        f'--videos={files.path}',
        '--parts',
        'distil',
        'finetune',
        '--size=32',
        '--batch=2',
        '--repeats=2',
        '--need=100',
    ]
    assert cli.main(['bench', 'loader', *argv, f'--output={output}']) == 0
    text = capsys.readouterr().out
    assert 'finetune: round 2 of 2' in text  # no terminal: lines instead of a bar
    content = json.loads(output.read_text())
    assert content['schema'] == loader_report.SCHEMA
    assert content['settings']['batch'] == 2
    assert content['machine']['cores'] >= 1
    assert content['machine']['packages']['av']
    ways_seen = [row['way'] for row in content['rows']]
    assert ways_seen == [
        *('ours 32 exact', 'ours 32 fast', 'ours 32 and 28 exact', 'ours 32 and 28 fast'),
        'FFmpeg, decoding only',
        *('ours, RandAugment exact', 'ours, RandAugment fast'),
    ]
    ffmpeg = content['rows'][4]
    for row in content['rows']:
        assert row['clips_per_batch'] == (4 if row['part'] == 'finetune' else 2)  # two views each
        assert len(row['cpu_ms_per_clip_each']) == 2
        assert row['cpu_ms_per_clip'] == pytest.approx(np.median(row['cpu_ms_per_clip_each']))
        assert row['clips_per_second_per_core'] == pytest.approx(1000 / row['cpu_ms_per_clip'])
        if row['part'] == 'distil':
            assert row['share_of_ffmpeg_cpu'] == pytest.approx(row['cpu_ms_per_clip'] / ffmpeg['cpu_ms_per_clip'])
        assert row['times_faster_than_peer'] is None  # no peer was asked for
        assert f'| list.txt | {row["way"]} | {row["cpu_ms_per_clip"]:.1f} |' in text
    assert 'Cores that make 100 clips a second:' in text


def test_ratios_are_against_the_peer_on_the_same_videos():
    def result(name, cpu, wall=1.0):
        return Result(
            name, 2, (cpu,) * 3, (wall,) * 3, {'worker_peak_rss_mib': 1, 'worker_pss_mib': 1, 'worker_own_mib': 1}
        )

    def job(part, way, name, **more):
        return Job(
            part, 'v', way, Candidate(name, '', {k: v for k, v in more.items() if k == 'count'}), more.get('peer', '')
        )

    jobs = [job('distil', 'ours', 'o', peer='p'), job('distil', 'decord', 'p', peer='p')]
    jobs += [job('workers', '1 worker', 'w1', count=1), job('workers', '2 workers', 'w2', count=2)]
    alone = [Job('workers', 'v', 'no pipeline', Candidate(f'a{n}', 'ways:apart', {'count': n})) for n in (1, 2)]
    walls = {'o': 1.0, 'p': 1.0, 'w1': 40.0, 'w2': 21.0, 'a1': 36.0, 'a2': 18.5}
    cpu = {'o': 20.0, 'p': 90.0}
    results = {name: result(name, cpu.get(name, 1.0), wall) for name, wall in walls.items()}
    jobs += alone
    text = loader_report.text(jobs, results, None)
    assert '| v | ours | 20.0 | 50.0 | 4.50 |' in text
    assert 'grow 1.90 times' in text
    assert 'give 1.95 times' in text


def test_ffmpeg_decodes_the_packets_from_the_keyframe_to_the_last_frame_asked_for(files, monkeypatch):
    seen = []
    monkeypatch.setattr(ways, '_decode', lambda path, positions: seen.append((path, positions)))
    run = ways.ffmpeg(files, length=4, stride=4, batch=2)
    assert run(0).clips == 2
    assert [path for path, _ in seen] == [record.path for record in files.records]
    for _, positions in seen:
        first, last = min(positions), max(positions)
        assert first % 12 == 0  # a keyframe every 12 packets
        assert last - first >= 10  # 4 frames at a stride of 4, in decoding order
        groups = {position // 12 for position in positions}
        assert all(12 * group in positions for group in groups)
        assert len(positions) >= last - first - 1  # B-frames behind the last one asked for are left out


def test_the_pipeline_with_a_worker_reports_speed_and_memory(files):
    run = ways.workers(files, 'pretrain', OPTIONS, batch=2, batches=2, count=1)
    cost = run(0)
    assert isinstance(cost, Cost)
    assert cost.clips == 4
    assert cost.wall > 0
    assert (
        20 < cost.memory['worker_own_mib'] <= cost.memory['worker_pss_mib'] <= cost.memory['worker_peak_rss_mib'] < 2000
    )


def test_processes_apart_make_all_their_batches(files):
    cost = ways.apart(files, 'pretrain', OPTIONS, batch=2, batches=3, count=1)(1)
    assert cost.clips == 6
    assert cost.cpu > 0
    assert cost.wall > 0


def test_videos_are_made_once_and_are_what_their_kind_says(tmp_path, monkeypatch):
    kind = videos.VideoKind(32, 48, 30, 20, '.mp4', 'libx264', {'preset': 'veryfast', 'g': '250'})
    monkeypatch.setitem(videos.KINDS, 'kinetics', kind)
    first = read_list(str(videos.write_videos(tmp_path, 'kinetics', 2)))
    info = probe(first.records[1].path)
    assert (info.frames, info.width, info.height, info.codec, round(info.fps)) == (20, 48, 32, 'h264', 30)
    monkeypatch.setattr(videos, 'encode', lambda *_: pytest.fail('made again'))
    assert read_list(str(videos.write_videos(tmp_path, 'kinetics', 2))).records == first.records


@pytest.mark.parametrize('kind', videos.KINDS)
def test_videos_move_and_differ_from_seed_to_seed(kind):
    made = videos.KINDS[kind]
    a, b = ([frame for _, frame in zip(range(10), videos.render(made, seed), strict=False)] for seed in (0, 1))
    assert a[0].shape == (made.height, made.width, 3)
    assert a[0].dtype == np.uint8
    assert np.abs(a[0].astype(int) - a[9]).mean() > 1
    assert np.abs(a[0].astype(int) - b[0]).mean() > 10


def test_the_table_of_benchmarks_loads_without_the_data_system():
    code = "import sys, mvdjax.bench.cli, mvdjax.bench.loader; assert not {'av', 'grain', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)


def test_a_peer_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, 'decord', None)
    with pytest.raises(UserError, match='needs decord'):
        peer_decord.video_reader()
