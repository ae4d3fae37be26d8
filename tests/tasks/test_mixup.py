"""Mixup and CutMix: the scripted draws of the golden cases, and the draws themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import full_arrays, golden, quick_jit

from mvdjax.errors import UserError
from mvdjax.tasks.mixup import Mix, cutmix_box, mix, mix_group

CASES = golden('data/mixup')['cases']
MODES = {'videomae': 'spatial', 'mvd_timm': 'published'}


@pytest.mark.parametrize('case', golden('data/cutmix_boxes')['cases'], ids=lambda c: f'{c["lam"]}-{c["cy"]}-{c["cx"]}')
def test_cutmix_box(case):
    box, kept = cutmix_box(case['lam'], jnp.asarray(case['cy']), jnp.asarray(case['cx']), *case['h_w'])
    assert box.tolist() == case['yl_yh_xl_xh']
    np.testing.assert_allclose(kept, case['lam_corrected'], rtol=1e-6, atol=1e-7)


@pytest.fixture(scope='module')
def stored():
    return full_arrays('data/mixup')


@pytest.mark.parametrize('case', CASES, ids=lambda c: c['key'])
def test_mix_group(case, stored):
    smoothing, classes = case['args'].get('smooth', 0.1), golden('data/mixup')['num_classes']
    targets = np.eye(classes, dtype=np.float32)[stored['labels']] * (1 - smoothing) + smoothing / classes
    video = stored['x'].transpose(0, 2, 3, 4, 1)
    draws = [draw for draw in case['draws'] if draw[0] in ('beta', 'randint')]
    lam = draws[0][-1] if draws else 1.0  # no further draw: the batch is left alone
    center = [draw[-1] for draw in draws[1:]] or [0, 0]
    cutmix = len(draws) == 3
    mixed, mixed_targets = mix_group(
        jnp.asarray(video), targets, jnp.float32(lam), jnp.asarray(cutmix), jnp.asarray(center), MODES[case['code']]
    )
    want = stored['x'] if case['x_unchanged'] else stored[case['x_stored_as']]
    np.testing.assert_allclose(mixed, want.transpose(0, 2, 3, 4, 1), rtol=1e-6, atol=1e-6)
    if case['args'].get('correct', True):
        np.testing.assert_allclose(mixed_targets, stored[f'{case["key"]}_target'], rtol=1e-5, atol=1e-7)
    else:  # we always correct lambda to the area of the box, as every published run does
        assert np.abs(mixed_targets - stored[f'{case["key"]}_target']).max() > 0.01


def mixed_groups(config, groups=1000, size=2):
    """`mix` of groups of clips that are all 0 but for their last sample, all 1, with targets alike."""
    video = np.zeros((groups, size, 4, 8, 8, 1), np.float32)
    video[:, -1] = 1.0
    targets = np.zeros((groups, size, 2), np.float32)
    targets[:, :-1, 0] = targets[:, -1, 1] = 1.0
    flat = (jnp.asarray(a.reshape(-1, *a.shape[2:])) for a in (video, targets))
    mixed, mixed_targets = quick_jit(lambda k, v, t: mix(k, v, t, config))(jax.random.key(0), *flat)
    return np.asarray(mixed).reshape(video.shape), np.asarray(mixed_targets).reshape(targets.shape)


def test_mixup_draws_beta_per_group():
    video, targets = mixed_groups(Mix(mixup=0.8, cutmix=0.0, group=4), size=4)
    lam = targets[:, 0, 0]
    np.testing.assert_allclose(
        video[:, 0], np.broadcast_to((1 - lam).reshape(-1, 1, 1, 1, 1), video[:, 0].shape), atol=1e-6
    )
    np.testing.assert_allclose(targets[:, 3, 1], lam, atol=1e-6)  # the mirror image: 0 with 3, 1 with 2
    np.testing.assert_allclose(targets[:, 1:3, 0], 1.0, atol=1e-6)
    assert len(np.unique(lam.round(5))) > 900
    assert abs(lam.mean() - 0.5) < 0.045
    assert abs(lam.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01


def test_cutmix_targets_follow_the_box():
    video, targets = mixed_groups(Mix(mixup=0.0, cutmix=1.0, cutmix_mode='spatial', group=2))
    assert set(np.unique(video)) == {0.0, 1.0}
    np.testing.assert_allclose(video[:, 0].mean(axis=(1, 2, 3, 4)), targets[:, 0, 1], atol=1e-6)
    np.testing.assert_array_equal(video[:, 0, 0], video[:, 0, 3])  # the same box in every frame
    rows = video[:, 0, 0, :, :, 0].any(axis=2)
    assert rows.any(axis=0).all()  # centres reach every row


def test_switch_and_probability():
    video, _ = mixed_groups(Mix(probability=0.5, switch=0.25, group=2))
    first = video[:, 0].reshape(len(video), -1)
    blended = np.any((first > 0) & (first < 1), axis=1)  # every mixup, but no CutMix
    assert abs(blended.mean() - 0.5 * 0.75) < 0.05
    video, targets = mixed_groups(Mix(probability=0.0, group=2))
    assert not video[:, 0].any()
    assert not targets[:, 0, 1].any()


def test_whole_batch_is_one_group():
    _, targets = mixed_groups(Mix(mixup=0.8, cutmix=0.0), groups=8)
    assert len(np.unique(targets[:4, :, 0].round(5))) <= 4


@pytest.mark.parametrize(('batch', 'group'), [(3, 0), (6, 3), (6, 4)])
def test_groups_that_cannot_be_paired(batch, group):
    video, targets = jnp.zeros((batch, 1, 4, 4, 3)), jnp.zeros((batch, 2))
    with pytest.raises(UserError, match=rf'mix\.group {group or batch} must be even and divide the batch of {batch}'):
        mix(jax.random.key(0), video, targets, Mix(group=group))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'cutmix_mode': 'temporal'}, "must be one of spatial, published, not 'temporal'"),
        ({'mixup': 0.0, 'cutmix': 0.0}, 'one of them > 0'),
        ({'mixup': -0.1}, 'alphas >= 0'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        Mix(**options)
