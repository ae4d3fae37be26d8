"""Tests of the demo data set: what its labels promise, and that its files are whole, repeatable and readable."""

import argparse
import collections
import dataclasses
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mvdjax.data import demo, demo_scene
from mvdjax.errors import UserError

SPEC = demo.DemoSpec(seed=3, pretrain=24, labelled=16, val=8, test=16, images=16, workers=1)


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('demo') / 'set'
    demo.write_demo(root, SPEC, progress=False)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def rows(root: Path, name: str) -> list[tuple[str, int]]:
    lines = (root / f'{name}.txt').read_text().splitlines()
    return [(line.split(' ')[0], int(line.split(' ')[1])) for line in lines]


def scene(motion: int, index: int) -> demo_scene.Scene:
    plan = dataclasses.replace(demo_scene.plan_video(0, 'train', index), motion=motion)
    return demo_scene.draw_scene(plan, demo_scene.generator(0, 'train', 2, index))


def test_encoding_is_repeatable() -> None:
    for index in range(12):
        frames, info = demo.render_video(3, 'train', index)
        files = {demo.encode_video(frames, info['fps'], info['container']) for _ in range(6)}
        assert len(files) == 1


def test_frames_are_a_function_of_seed_split_and_index() -> None:
    first, info = demo.render_video(1, 'test', 5)
    again, info_again = demo.render_video(1, 'test', 5)
    assert info == info_again
    assert first.tobytes() == again.tobytes()
    for other in ((2, 'test', 5), (1, 'val', 5), (1, 'test', 6)):
        frames, _ = demo.render_video(*other)
        assert frames.shape != first.shape or not np.array_equal(frames, first)


@pytest.mark.parametrize('motion', range(0, 8, 2))
def test_a_motion_class_is_its_twin_played_backwards(motion: int) -> None:
    forwards, backwards = scene(motion, 7), scene(motion + 1, 7)
    np.testing.assert_array_equal(
        demo_scene.render_scene(backwards), demo_scene.render_scene(forwards)[::-1], strict=True
    )


@pytest.mark.parametrize('index', range(4))
def test_only_the_quantity_of_the_motion_class_changes_and_in_its_direction(index: int) -> None:
    changes = []
    for motion in range(8):
        drawn = scene(motion, index)
        start, end = drawn.tracks[-1][[0, -1]]
        short = min(drawn.width, drawn.height)
        change = np.array([*((end - start)[:2] / short), end[2] - start[2], np.log(end[3] / start[3])])
        changes.append(change / (0.25, 0.25, np.pi / 3, np.log(1.5)))
    for motion, change in enumerate(changes):
        axis, sign = motion // 2, 1 - 2 * (motion % 2)
        assert sign * change[axis] > 0.9, demo.MOTION_CLASSES[motion]
        assert np.abs(np.delete(change, axis)).max() < 0.2, demo.MOTION_CLASSES[motion]


def test_every_motion_has_one_distribution_of_single_frames() -> None:
    """Pose at a random moment, large shape: equal quantiles for all classes, within sampling noise."""
    rng = np.random.default_rng(0)
    poses = []
    plan = demo_scene.Plan(0, 0, 80, 80, 30, Fraction(10), 'mp4')
    times = np.arange(-14.5, 15) / 15
    for axis in range(4):
        tracks = [demo_scene._object_track(rng, dataclasses.replace(plan, motion=2 * axis), times) for _ in range(3000)]
        pose = np.array([track[rng.integers(30)] for track in tracks])
        pose[:, 2] = (pose[:, 2] + np.pi) % (2 * np.pi) - np.pi  # upright is 0, far from where the angle wraps
        poses.append(np.quantile(pose, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0) / (80, 80, 2 * np.pi, 80))
    np.testing.assert_allclose(poses, np.broadcast_to(np.mean(poses, axis=0), (4, 5, 4)), atol=0.03)


def test_the_large_shape_stays_in_the_picture_and_is_the_largest() -> None:
    for index in range(64):
        drawn = scene(index % 8, index)
        short = min(drawn.width, drawn.height)
        *others, main = drawn.tracks
        off_centre = np.abs(main[:, :2] - (drawn.width / 2, drawn.height / 2)) / short
        assert off_centre.max() < 0.36
        assert min(main[:, 3]) > 0.12 * short
        assert all(track[:, 3].max() < 0.09 * short for track in others)


def test_rotation_shows_on_every_shape() -> None:
    """A quarter turn changes the picture of the large shape by more than coding noise."""
    for appearance in range(8):
        rng = np.random.default_rng(appearance)
        for _ in range(10):
            sprite = demo_scene._sprite(rng, appearance, 60, 80).astype(float)
            inside = (sprite[..., 3] == 255) & np.rot90(sprite[..., 3] == 255)
            change = np.abs(sprite - np.rot90(sprite))[..., :3][inside].mean()
            assert change > 4, demo.APPEARANCE_CLASSES[appearance]


def test_labels_are_balanced_and_independent() -> None:
    pairs = [demo_scene.labels(0, 'train', index) for index in range(128)]
    assert set(collections.Counter(pairs).values()) == {2}
    for start in range(0, 128, 8):
        motions, appearances = zip(*pairs[start : start + 8], strict=True)
        assert sorted(motions) == sorted(appearances) == list(range(8))


def test_every_listed_video_opens_with_its_size_rate_and_length(written: Path) -> None:
    seen: collections.Counter[str] = collections.Counter()
    for name, split in (('pretrain', 'train'), ('motion_val', 'val'), ('motion_test', 'test')):
        for index, (path, _) in enumerate(rows(written, name)):
            plan = demo_scene.plan_video(SPEC.seed, split, index)
            with av.open(str(written / path)) as container:
                stream = container.streams.video[0]
                assert {'mp4': 'h264', 'webm': 'vp9'}[plan.container] in stream.codec_context.codec.canonical_name
                decoded = [frame.to_ndarray(format='rgb24') for frame in container.decode(stream)]
                assert float(stream.average_rate or 0) == pytest.approx(float(plan.fps), rel=0.01)
            assert decoded[0].shape == (plan.height, plan.width, 3)
            frames, info = demo.render_video(SPEC.seed, split, index)
            assert len(decoded) == len(frames)
            assert path == f'videos/{split}/{index:05d}.{info["container"]}'
            assert np.abs(np.asarray(decoded, float) - frames).mean() < 8
            seen[plan.container] += 1
            seen['portrait'] += plan.height > plan.width
    assert seen['portrait']
    assert seen['mp4'] > seen['webm'] > 0


def test_every_listed_image_opens(written: Path) -> None:
    listed = rows(written, 'images')
    assert len(listed) == SPEC.images
    for index, (path, label) in enumerate(listed):
        picture, plan = demo.render_image(SPEC.seed, index)
        decoded = cv2.cvtColor(cv2.imread(str(written / path)), cv2.COLOR_BGR2RGB)
        assert decoded.shape == (plan.height, plan.width, 3)
        assert np.abs(decoded.astype(float) - picture).mean() < 8
        assert label == plan.appearance


def test_lists_and_classes(written: Path) -> None:
    sizes = {'train': SPEC.labelled, 'val': SPEC.val, 'test': SPEC.test}
    for kind, classes in (('motion', demo.MOTION_CLASSES), ('appearance', demo.APPEARANCE_CLASSES)):
        assert (written / f'{kind}_classes.txt').read_text().splitlines() == list(classes)
        for split, size in sizes.items():
            listed = rows(written, f'{kind}_{split}')
            assert collections.Counter(label for _, label in listed) == dict.fromkeys(range(8), size // 8)
            for index, (path, label) in enumerate(listed):
                assert path.startswith(f'videos/{split}/{index:05d}.')
                assert label == demo.render_video(SPEC.seed, split, index)[1][kind]
    pretrain = rows(written, 'pretrain')
    assert len(pretrain) == SPEC.pretrain
    assert {label for _, label in pretrain} == {0}
    assert [path for path, _ in rows(written, 'motion_train')] == [path for path, _ in pretrain[: SPEC.labelled]]


def test_splits_share_no_video(written: Path) -> None:
    files = [data for path, data in contents(written).items() if path.startswith(('videos/', 'images/'))]
    assert len(set(files)) == len(files) == 24 + 8 + 16 + 16


def test_files_do_not_depend_on_the_number_of_processes(written: Path, tmp_path: Path) -> None:
    summary = demo.write_demo(tmp_path / 'again', dataclasses.replace(SPEC, workers=2), progress=False)
    assert contents(tmp_path / 'again') == contents(written)
    assert summary['counts'] == {'videos': 48, 'images': 16}


def test_a_second_call_does_nothing_and_says_so(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob('*')}
    demo.write_demo(written, SPEC)
    assert 'nothing to do' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob('*')}


def test_an_interrupted_or_damaged_set_is_completed(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(SPEC, pretrain=8, labelled=8, val=0, test=0, images=8)
    demo.write_demo(tmp_path / 'whole', spec, progress=False)

    def fail(picture: np.ndarray) -> bytes:
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(demo, 'encode_image', fail)
        with pytest.raises(UserError, match='No space left on device'):
            demo.write_demo(tmp_path / 'broken', spec, progress=False)
    assert not (tmp_path / 'broken' / 'demo.json').exists()
    demo.write_demo(tmp_path / 'broken', spec, progress=False)
    assert contents(tmp_path / 'broken') == contents(tmp_path / 'whole')

    (tmp_path / 'broken' / 'images' / '00003.jpg').unlink()
    demo.write_demo(tmp_path / 'broken', spec, progress=False)
    assert contents(tmp_path / 'broken') == contents(tmp_path / 'whole')


def test_a_directory_with_something_else_is_refused(written: Path, tmp_path: Path) -> None:
    before = contents(written)
    with pytest.raises(UserError, match=f'{written} holds a different demo data set'):
        demo.write_demo(written, dataclasses.replace(SPEC, seed=4), progress=False)
    assert contents(written) == before
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(UserError, match='is not empty'):
        demo.write_demo(tmp_path, SPEC, progress=False)
    with pytest.raises(UserError, match='is not a directory'):
        demo.write_demo(tmp_path / 'thesis.txt', SPEC, progress=False)
    with pytest.raises(UserError, match='Cannot write'):
        demo.write_demo(tmp_path / 'thesis.txt' / 'below', SPEC, progress=False)


@pytest.mark.parametrize('changes', [{'seed': -1}, {'images': -1}, {'labelled': 25}])
def test_impossible_numbers_are_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        demo.write_demo(tmp_path / 'none', dataclasses.replace(SPEC, **changes), progress=False)
    assert not os.listdir(tmp_path)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    output = str(tmp_path / 'set')
    arguments = ['--seed=5', '--pretrain=2', '--labelled=1', '--val=0', '--test=1', '--images=1', '--workers=1']
    assert demo.run(parser.parse_args([f'--output={output}', *arguments])) == 0
    start, end = capsys.readouterr().out.splitlines()
    assert output in start
    assert '4 files' in end
    assert json.loads((tmp_path / 'set' / 'demo.json').read_text())['spec']['seed'] == 5
