"""Frame sampling against the published loaders, index by index."""

import json
from pathlib import Path

import numpy as np
import pytest

from mvdjax.data import sampling

GOLDEN = Path(__file__).parents[1] / 'golden'


def golden(name, folder='data'):
    return json.loads((GOLDEN / folder / f'{name}.json').read_text())


class Scripted:
    """Stands in for a Generator: answers from `choose` and records the ranges asked for."""

    def __init__(self, choose):
        self.choose = choose
        self.calls = []

    def integers(self, low, high, size=None):
        self.calls.append([int(low), int(high), size])
        values = self.choose(int(low), int(high), size)
        return values if size is None else np.broadcast_to(values, (size,)).copy()


def chooser(choice):
    return {
        'lowest': lambda low, high, size: low,
        'highest': lambda low, high, size: high - 1,
        'middle': lambda low, high, size: (low + high - 1) // 2,
    }[choice]


def test_pretrain_matches_every_golden_case():
    cases = golden('frames_pretrain')['cases']
    checked = 0
    for case in cases:
        for clip in case['clips']:
            starts = np.array(clip['starts_1based']) - 1
            per_segment = case['average_duration'] if case['branch'] == 'per_segment' else 0
            drawn = starts - per_segment * np.arange(len(starts))
            rng = Scripted(lambda low, high, size, drawn=drawn: drawn)
            ids = sampling.pretrain_clip(
                case['num_frames'], rng, case['new_length'], case['new_step'], case['num_segments']
            )
            assert ids.dtype == np.int64
            assert ids.tolist() == clip['frame_ids'], (case['num_frames'], clip['choice'])
            assert rng.calls == case['randint_calls_low_high_size']
            checked += 1
    assert checked > 60


def test_pretrain_choices_are_within_the_range_asked_for():
    for case in golden('frames_pretrain')['cases']:
        for clip in case['clips']:
            if clip['choice'] in ('lowest', 'highest') and case['num_segments'] <= 2:
                rng = Scripted(chooser(clip['choice']))
                ids = sampling.pretrain_clip(
                    case['num_frames'], rng, case['new_length'], case['new_step'], case['num_segments']
                )
                assert ids.tolist() == clip['frame_ids']


def test_pretrain_sorts_starts_drawn_anywhere():
    rng = Scripted(lambda low, high, size: np.array([2, 0, 1, 2]))
    ids = sampling.pretrain_clip(66, rng, segments=4)
    assert ids[:, 0].tolist() == [0, 1, 2, 2]


def test_pretrain_steps_from_every_fixed_start():
    for case in golden('frames_pretrain')['fixed']:
        frames, offsets = case['num_frames'], np.array(case['offsets_0based'])
        segments = len(offsets)
        per_segment = max(0, (frames - case['new_length'] * case['new_step'] + 1) // segments)
        drawn = offsets - per_segment * np.arange(segments)
        rng = Scripted(lambda low, high, size, drawn=drawn: drawn)
        ids = sampling.pretrain_clip(frames, rng, case['new_length'], case['new_step'], segments)
        assert ids.tolist() == case['frame_ids'], case


def test_kinetics_train_matches_every_golden_case():
    seen = set()
    for case in golden('frames_k400_train')['cases']:
        for clip in case['clips']:
            ends = iter(clip['end_idx'])
            rng = Scripted(lambda low, high, size, ends=ends: next(ends))
            ids = sampling.kinetics_train(case['num_frames'], rng, case['clip_len'], case['rate'], case['num_segment'])
            assert ids.tolist() == clip['frame_ids'], (case['num_frames'], clip['choice'])
            assert [call[:2] for call in rng.calls] == case['randint_calls_low_high']
            assert ids.dtype == np.int64
            seen.add(case['num_segment'])
    assert seen == {1, 2}


def test_kinetics_train_at_every_fixed_end():
    for case in golden('frames_k400_train')['fixed']:
        for row in case['by_end_idx']:
            rng = Scripted(lambda low, high, size, end=row['end_idx']: end)
            ids = sampling.kinetics_train(case['num_frames'], rng, case['clip_len'], case['rate'])
            assert ids.tolist() == row['frame_ids']


def test_kinetics_test_matches_every_golden_case():
    for case in golden('frames_k400_test')['cases']:
        for clips, expected in case['temporal'].items():
            ids = sampling.kinetics_test(case['num_frames'], case['clip_len'], case['rate'], int(clips))
            assert ids.dtype == np.int64
            assert ids.tolist() == expected['frame_ids'], (case['num_frames'], clips)


def test_kinetics_test_with_one_clip_starts_at_the_start():
    assert sampling.kinetics_test(300, clips=1).tolist() == [list(range(0, 64, 4))]


@pytest.mark.parametrize('choice', ['lowest', 'highest', 'middle'])
def test_segments_train_matches_every_golden_case(choice):
    for case in golden('frames_ssv2')['mvd']['train']:
        rng = Scripted(chooser(choice))
        ids = sampling.segments_train(case['num_frames'], rng, case['num_segment'])
        assert ids.dtype == np.int64
        assert ids.tolist() == case['frame_ids'][choice], case['num_frames']
        assert rng.calls == case['randint_calls']


def test_segments_test_matches_every_golden_case():
    for case in golden('frames_ssv2')['mvd']['test']:
        ids = sampling.segments_test(case['num_frames'], case['num_segment'], case['test_num_segment'])
        assert ids.tolist() == case['frame_ids_by_chunk'], case['num_frames']
        assert ids.T.reshape(-1).tolist() == case['all_index']


def test_segments_test_with_one_clip_takes_the_middles():
    ids = sampling.segments_test(161, clips=1)
    assert ids.tolist() == [list(range(5, 161, 10))]


@pytest.mark.parametrize('choice', ['lowest', 'highest', 'middle'])
def test_floor_segments_train_matches_every_golden_case(choice):
    for case in golden('frames_ssv2')['videomae']['train']:
        rng = Scripted(chooser(choice))
        ids = sampling.floor_segments_train(case['num_frames'], rng, case['num_segment'])
        assert ids.dtype == np.int64
        assert ids.tolist() == case['frame_ids'][choice], case['num_frames']
        assert rng.calls == case['randint_calls']


def test_floor_segments_test_matches_every_golden_case():
    for case in golden('frames_ssv2')['videomae']['test']:
        ids = sampling.floor_segments_test(case['num_frames'], case['num_segment'], case['test_num_segment'])
        assert ids.dtype == np.int64
        assert ids.tolist() == case['frame_ids_by_chunk'], case['num_frames']


BEVT = golden('frame_sampling', 'bevt')
WINDOWS = [entry for entry in BEVT['configs'] if not entry['config'].get('frame_uniform')]
(UNIFORM,) = [entry for entry in BEVT['configs'] if entry['config'].get('frame_uniform')]


@pytest.mark.parametrize('entry', WINDOWS, ids=lambda entry: entry['what'])
def test_windows_match_every_golden_case(entry):
    length, stride, clips = (entry['config'][key] for key in ('clip_len', 'frame_interval', 'num_clips'))
    for frames in BEVT['lengths']:
        ids = sampling.windows_test(frames, length, stride, clips)
        assert ids.shape == (clips, length)
        assert ids.dtype == np.int64
        assert ids.reshape(-1).tolist() == entry['test'][str(frames)], frames
        for choice in ('lowest', 'highest'):
            rng = Scripted(chooser(choice))
            ids = sampling.windows_train(frames, rng, length, stride, clips)
            assert ids.dtype == np.int64
            assert ids.reshape(-1).tolist() == entry['train'][str(frames)][choice], (frames, choice)
        generator = np.random.default_rng(0)
        first = {int(sampling.windows_train(frames, generator, length, stride, clips)[0, 0]) for _ in range(2000)}
        assert len(first) == entry['train'][str(frames)]['first_frame_distinct']


def test_windows_that_leave_less_room_than_clips_follow_the_rule():
    """65 and 66 frames for 64-frame windows: 2 and 3 possible starts for 4 clips."""
    rng = Scripted(lambda low, high, size: np.array([1, 0, 1, 1]))
    assert sampling.windows_train(65, rng, 32, 2, 4)[:, 0].tolist() == [0, 1, 1, 1]
    assert rng.calls == [[0, 2, 4]]
    untouched = Scripted(chooser('highest'))
    assert sampling.windows_train(64, untouched, 32, 2, 4)[:, 0].tolist() == [0, 0, 0, 1]  # round(3 / 4)
    assert untouched.calls == []


def test_segments_are_the_something_something_rule_of_bevt():
    for frames in BEVT['lengths']:
        assert sampling.segments_test(frames, 32, 1).reshape(-1).tolist() == UNIFORM['test'][str(frames)]
        for choice in ('lowest', 'highest'):
            rng = Scripted(chooser(choice))
            assert sampling.segments_train(frames, rng, 32).tolist() == UNIFORM['train'][str(frames)][choice]
            bounds = UNIFORM['uniform_bounds'][str(frames)]
            assert rng.calls == [[low, high + 1, None] for low, high in bounds]


def test_centre_window_matches_every_golden_case():
    for frames, expected in golden('ava_transforms')['temporal_crop'].items():
        ids = sampling.centre_window(int(frames))
        assert ids.dtype == np.int64
        assert ids.tolist() == expected, frames


def test_key_second_window_matches_every_golden_case():
    for case in golden('ava_dataset')['frame_window']:
        counts = case['frames_per_second_file']
        asked = []

        def frames_of(second, counts=counts, asked=asked):
            asked.append(second)
            return counts[second % len(counts)] if isinstance(counts, list) else counts

        window = sampling.key_second_window(910, frames_of, length=16, stride=case['frame_span'] // 16)
        assert (window[:, 0] * 1000 + window[:, 1]).tolist() == case['selected']
        first, last = (value // 1000 for value in case['raw_first_last'])
        assert sorted(asked) == list(range(first, last + 1))  # and no file that is not needed


def test_key_second_window_cuts_the_longer_side_far_from_the_key_frame():
    counts = {8: 20, 9: 30, 10: 16, 11: 16}
    window = sampling.key_second_window(10, counts.__getitem__)
    # 32 frames on each side of the key frame: the last 32 of 50 before it; then the 64 from their second on.
    wide = [(8, i) for i in range(18, 20)] + [(9, i) for i in range(30)] + [(10, i) for i in range(16)]
    wide += [(11, i) for i in range(16)]
    assert window.tolist() == [list(wide[i]) for i in range(1, 64, 4)]
    with pytest.raises(ValueError, match='at least 1, not 0'):
        sampling.key_second_window(10, lambda second: 0)


@pytest.mark.parametrize('frames', [1, 2, 3, 15, 16, 17, 61, 64, 65, 300])
def test_every_rule_stays_inside_the_video_and_repeats_with_the_seed(frames):
    def all_ids():
        rng = np.random.default_rng(5)
        return [
            sampling.pretrain_clip(frames, rng),
            sampling.pretrain_clip(frames, rng, segments=3),
            sampling.kinetics_train(frames, rng),
            sampling.kinetics_train(frames, rng, segments=3),
            sampling.kinetics_test(frames),
            sampling.segments_train(frames, rng),
            sampling.segments_test(frames),
            sampling.segments_test(frames, clips=1),
            sampling.floor_segments_train(frames, rng),
            sampling.floor_segments_test(frames),
            sampling.centre_window(frames),
            sampling.windows_train(frames, rng, clips=3),
            sampling.windows_test(frames, clips=3),
        ]

    shapes = [(1, 16), (3, 16), (16,), (48,), (5, 16), (16,), (2, 16), (1, 16), (16,), (2, 16), (16,), (3, 16), (3, 32)]
    wrapping = len(shapes) - 2
    for i, (ids, again, shape) in enumerate(zip(all_ids(), all_ids(), shapes, strict=True)):
        assert ids.shape == shape
        assert ids.dtype == np.int64
        assert ids.min() >= 0
        assert ids.max() < frames
        assert i >= wrapping or (np.diff(ids, axis=-1) >= 0).all()
        np.testing.assert_array_equal(ids, again)


def test_counts_below_one_are_refused():
    rng = np.random.default_rng(0)
    for call in (
        lambda: sampling.pretrain_clip(0, rng),
        lambda: sampling.kinetics_train(10, rng, stride=0),
        lambda: sampling.kinetics_test(10, clips=0),
        lambda: sampling.segments_test(10, clips=0),
        lambda: sampling.segments_train(10, rng, length=0),
        lambda: sampling.kinetics_train(10, rng, segments=0),
        lambda: sampling.floor_segments_train(0, rng),
        lambda: sampling.floor_segments_test(10, clips=0),
        lambda: sampling.windows_train(10, rng, stride=0),
        lambda: sampling.windows_test(10, clips=0),
        lambda: sampling.centre_window(0),
    ):
        with pytest.raises(ValueError, match='at least 1, not 0'):
            call()
