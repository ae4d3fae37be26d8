import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvdjax.data.rand_augment import RandAugment, Step, replay
from mvdjax.data.rand_augment_ops import FILL, OPS
from mvdjax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'data'
RESAMPLE = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}
PUBLISHED = 'rand-m7-n4-mstd0.5-inc1'


def golden_json(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f'{name}.json').read_text())


SPEC_OPS = golden_json('randaug_spec')['cases'][0]['ops']
OP_CASES = golden_json('randaug_ops')['cases']
TRACES = golden_json('randaug_trace')['cases']


@pytest.fixture(scope='module')
def op_arrays() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / 'randaug_ops.npz'))


@pytest.fixture(scope='module')
def trace_arrays() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / 'randaug_trace.npz'))


def clip(seed: int = 0, shape: tuple[int, ...] = (3, 24, 36, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@dataclasses.dataclass
class ScriptedGenerator:
    """Stands in for a numpy Generator: each method hands out its scripted arrays in turn and notes its arguments."""

    ops: list[int]
    applied: list[float]
    magnitudes: list[float]
    signs: list[float]
    picks: list[list[int]]
    normal_args: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._integers = iter([self.ops, self.picks])
        self._randoms = iter([self.applied, self.signs])

    def integers(self, high: int, size: Any) -> np.ndarray:
        values = np.asarray(next(self._integers))
        assert values.shape == np.empty(size).shape
        assert values.max() < high
        return values

    def random(self, size: int) -> np.ndarray:
        return np.asarray(next(self._randoms))

    def normal(self, mean: float, std: float, size: int) -> np.ndarray:
        self.normal_args = (mean, std)
        return np.asarray(self.magnitudes)


def magnitude_and_sign(op: str, arg: float) -> tuple[float, int]:
    """A magnitude (0..10) and sign for which `op` gets exactly `arg`: the linear guess or a close neighbour of it."""
    level = OPS[op].level
    for sign in (1, -1):
        guess = 10 * (arg - level(0.0, sign)) / (level(1.0, sign) - level(0.0, sign))
        for magnitude in guess + np.arange(-8, 9) * np.spacing(abs(guess)):
            if 0 <= magnitude <= 10 and level(magnitude / 10, sign) == arg:
                return float(magnitude), sign
    raise AssertionError(f'no magnitude gives {op} the argument {arg}')


def test_the_op_table_is_the_published_one_in_order() -> None:
    assert list(OPS) == [op['name'] for op in SPEC_OPS]
    assert all(tuple(op['fillcolor']) == FILL for op in SPEC_OPS)


@pytest.mark.parametrize('golden', SPEC_OPS, ids=lambda op: op['name'])
def test_levels(golden: dict[str, Any]) -> None:
    level = OPS[golden['name']].level
    if 'magnitudes' not in golden:
        assert level(0.3, 1) == level(0.9, -1) == 0
        return
    plus = [level(m / 10, 1) for m in golden['magnitudes']]
    minus = [level(m / 10, -1) for m in golden['magnitudes']]
    assert plus == golden['arg_plus']
    assert minus == (golden['arg_minus'] if golden['random_sign'] else golden['arg_plus'])


@pytest.mark.parametrize('case', OP_CASES, ids=lambda case: case['key'])
def test_op_pixels(case: dict[str, Any], op_arrays: dict[str, np.ndarray]) -> None:
    arg = OPS[case['op']].level(case['magnitude'] / 10, case['sign'])
    assert [arg] == (case['args'] or [0])
    step = Step(case['op'], arg, (RESAMPLE[case['resample']],))
    out = replay([step], op_arrays['image'][None])
    np.testing.assert_array_equal(out[0], op_arrays[case['key']])


@pytest.mark.parametrize('case', TRACES, ids=lambda case: str(case['index']))
def test_trace_by_steps(case: dict[str, Any], trace_arrays: dict[str, np.ndarray]) -> None:
    frames = trace_arrays[f'in{case["index"]}']
    steps = [
        Step(op['op'], (op['args'] or [0])[0], (RESAMPLE[op['resample']],) * len(frames))
        for op in case['ops']
        if op['applied']
    ]
    np.testing.assert_array_equal(replay(steps, frames), trace_arrays[f'out{case["index"]}'])


@pytest.mark.parametrize('case', TRACES, ids=lambda case: str(case['index']))
def test_trace_by_scripted_draws(case: dict[str, Any], trace_arrays: dict[str, np.ndarray]) -> None:
    frames = trace_arrays[f'in{case["index"]}']
    levels = [magnitude_and_sign(op['op'], op['args'][0]) if op.get('args') else (5.0, 1) for op in case['ops']]
    rng = ScriptedGenerator(
        ops=[list(OPS).index(op['op']) for op in case['ops']],
        applied=[0.49 if op['applied'] else 0.51 for op in case['ops']],
        magnitudes=[magnitude for magnitude, _ in levels],
        signs=[0.49 if sign == 1 else 0.51 for _, sign in levels],
        picks=[[0] * len(frames)] * 4,
    )
    out = RandAugment(PUBLISHED)(rng, frames)  # type: ignore[arg-type]
    assert rng.normal_args == (7, 0.5)
    np.testing.assert_array_equal(out, trace_arrays[f'out{case["index"]}'])


def test_the_magnitude_is_clipped_to_0_and_10() -> None:
    rng = ScriptedGenerator(
        ops=[list(OPS).index('Rotate')] * 2,
        applied=[0, 0],
        magnitudes=[-3, 12.5],
        signs=[0, 0],
        picks=[[0], [0]],
    )
    steps = RandAugment('rand-m9-n2-mstd2-inc1').plan(rng, 1)  # type: ignore[arg-type]
    assert [step.arg for step in steps] == [0, 30]


def test_posterize_at_magnitude_10_is_black() -> None:
    step = Step('PosterizeIncreasing', OPS['PosterizeIncreasing'].level(1.0, 1), (RESAMPLE['bicubic'],) * 3)
    assert step.arg == 0
    assert not replay([step], clip()).any()


def test_the_distribution_of_the_draws() -> None:
    rng = np.random.default_rng(0)
    plans = [RandAugment().plan(rng, 1) for _ in range(4000)]
    steps = [step for plan in plans for step in plan]
    assert abs(len(steps) / (4 * 4000) - 0.5) < 0.02
    counts = [sum(step.op == name for step in steps) for name in OPS]
    np.testing.assert_allclose(counts, len(steps) / len(OPS), rtol=0.15)
    angles = np.array([step.arg for step in steps if step.op == 'Rotate'])
    assert abs((angles > 0).mean() - 0.5) < 0.1
    assert abs(np.abs(angles / 3).mean() - 7) < 0.1
    assert abs(np.abs(angles / 3).std() - 0.5) < 0.1
    assert {len(plan) for plan in plans} == {0, 1, 2, 3, 4}
    assert any(len({step.op for step in plan}) < len(plan) for plan in plans)


def test_without_mstd_the_magnitude_is_exact() -> None:
    rng = np.random.default_rng(1)
    augment = RandAugment('rand-n6-m4-inc1')
    steps = [step for _ in range(100) for step in augment.plan(rng, 1)]
    assert {abs(step.arg) for step in steps if step.op == 'Rotate'} == {12.0}


def test_inc0_selects_the_increasing_ops_too() -> None:
    plans = [RandAugment(f'rand-m7-n4-mstd0.5-{inc}').plan(np.random.default_rng(2), 1) for inc in ('inc0', 'inc1')]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(('name', 'used'), [('bicubic', {3}), ('bilinear', {2}), ('random', {2, 3})])
def test_interpolation(name: str, used: set[int]) -> None:
    rng = np.random.default_rng(3)
    plans = [RandAugment(interpolation=name).plan(rng, 16) for _ in range(20)]
    assert {filter_ for plan in plans for step in plan for filter_ in step.resample} == used
    assert all(len(step.resample) == 16 for plan in plans for step in plan)


def test_random_interpolation_is_drawn_per_frame() -> None:
    frames = np.repeat(clip(shape=(1, 24, 36, 3)), 2, axis=0)
    mixed = replay([Step('Rotate', 20.0, (RESAMPLE['bilinear'], RESAMPLE['bicubic']))], frames)
    for index, name in enumerate(('bilinear', 'bicubic')):
        alone = replay([Step('Rotate', 20.0, (RESAMPLE[name],) * 2)], frames)
        np.testing.assert_array_equal(mixed[index], alone[index])
    assert (mixed[0] != mixed[1]).any()


@pytest.mark.parametrize('op', OPS)
def test_every_op_keeps_shape_and_dtype_and_the_input(op: str) -> None:
    frames = 40 + clip() // 2  # leaves AutoContrast something to stretch
    before = frames.copy()
    frames.flags.writeable = False
    out = replay([Step(op, OPS[op].level(0.7, -1), (RESAMPLE['bicubic'],) * 3)], frames)
    assert (out.shape, out.dtype) == (frames.shape, np.uint8)
    assert (out != frames).any()
    np.testing.assert_array_equal(frames, before)


def test_without_steps_the_result_is_a_copy() -> None:
    frames = clip()
    out = replay([], frames)
    np.testing.assert_array_equal(out, frames)
    assert not np.shares_memory(out, frames)


def test_frames_need_not_be_contiguous() -> None:
    view = clip(shape=(4, 24, 72, 3))[::2, :, ::-2]
    out, packed_out = (RandAugment()(np.random.default_rng(5), x) for x in (view, np.ascontiguousarray(view)))
    np.testing.assert_array_equal(out, packed_out)


def test_the_result_depends_on_the_generator_and_frames_only() -> None:
    augment, frames = RandAugment(interpolation='random'), clip()
    outs = [augment(np.random.default_rng(seed), frames) for seed in (6, 6, *range(7, 12))]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert any((out != outs[0]).any() for out in outs[2:])


@pytest.mark.parametrize('op', OPS)
def test_a_frame_comes_out_the_same_in_any_clip(op: str) -> None:
    frames = clip(shape=(4, 20, 30, 3))
    arg = OPS[op].level(0.7, 1)
    together = replay([Step(op, arg, (RESAMPLE['bicubic'],) * 4)], frames)
    alone = [replay([Step(op, arg, (RESAMPLE['bicubic'],))], frame[None])[0] for frame in frames]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ('spec', 'named'),
    [
        ('', "''"),
        ('augmix-m7-n4-inc1', "'augmix'"),
        ('rand-m7-n4-mstd0.5-inc1-x3', "'x3'"),
        ('rand-m7-n4-mstd-inc1', "'mstd'"),
        ('rand-m7.5-n4-inc1', "'m7.5'"),
        ('rand-m7-n4-mstd0.5-inc2', "'inc2'"),
        ('rand-m7--n4-inc1', "''"),
        ('rand-m7-n4-m8-inc1', "'m8'"),
        ('rand-n4-mstd0.5-inc1', "'m' is missing"),
        ('rand-m7-mstd0.5-inc1', "'n' is missing"),
        ('rand-m11-n4-inc1', "'m11' is outside 0..10"),
        ('rand-m-1-n4-inc1', "'m'"),
        ('rand-m7-n0-inc1', "'n0'"),
    ],
)
def test_a_misspelt_spec_is_refused_at_construction(spec: str, named: str) -> None:
    with pytest.raises(UserError) as error:
        RandAugment(spec)
    assert named in str(error.value)
    assert 'write rand-m<0..10>-n<' in str(error.value)


def test_an_unknown_interpolation_is_refused_at_construction() -> None:
    with pytest.raises(UserError, match=r"'nearest' is unknown; choose one of bicubic, bilinear, random"):
        RandAugment(interpolation='nearest')
    with pytest.raises(UserError, match=r"mode 'slow' is unknown; choose one of exact, fast"):
        RandAugment(mode='slow')


@pytest.mark.parametrize(
    'frames',
    [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 4), np.uint8)],
    ids=['float', 'image', 'rgba'],
)
def test_other_frames_are_refused(frames: np.ndarray) -> None:
    for mode in ('exact', 'fast'):
        with pytest.raises(ValueError, match='uint8'):
            RandAugment(mode=mode)(np.random.default_rng(0), frames)
