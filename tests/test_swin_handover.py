"""Swin parameters from stage to stage: images to two streams to fine-tuning, with other windows."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bevt_configs import ROOT
from golden_weights import assert_close, full_arrays, golden

from mvdjax import checkpoints, handover, trees
from mvdjax import config as configs
from mvdjax.errors import UserError
from mvdjax.models.bevt import MaskedSwin, SwinClassifier
from mvdjax.models.resize import resize_biases
from mvdjax.saving import Checkpoints
from mvdjax.tasks.base import build_swin, check_backbone, describe
from mvdjax.train_state import TrainState

SIZE = {'width': 16, 'depths': (2, 2), 'heads': (1, 2)}
TABLE = 'relative_position_bias_table'


def two_streams(window, **options):
    """Abstract parameters of both streams."""
    model = MaskedSwin(build_swin({**SIZE, 'window': window, **options}), 32)
    video, images = jnp.zeros((1, 4, 16, 16, 3)), jnp.zeros((1, 1, 16, 16, 3))
    masks = jnp.zeros((1, 2, 2, 2), bool), jnp.zeros((1, 1, 2, 2), bool)
    return jax.eval_shape(
        lambda key: model.init(key, video, masks[0], images, masks[1], method='two_streams')['params'],
        jax.random.key(0),
    )


def image_stream(window):
    model = MaskedSwin(build_swin({**SIZE, 'window': window}), 32)
    images, mask = jnp.zeros((1, 1, 16, 16, 3)), jnp.zeros((1, 1, 2, 2), bool)
    return jax.eval_shape(lambda key: model.init(key, images, mask, image=True)['params'], jax.random.key(0))


def classifier(window):
    model = SwinClassifier(build_swin({**SIZE, 'window': window}), 5)
    return jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 4, 16, 16, 3)))['params'], jax.random.key(0))


def saved(abstract, path):
    """A checkpoint of random values; its workdir and {path: value}."""
    rng = np.random.RandomState(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), abstract)
    meta = {'schema_version': checkpoints.SCHEMA_VERSION, 'backbone': describe(build_swin(SIZE))}
    with Checkpoints(str(path), 1) as writer:
        writer.save(TrainState(np.int32(1), np.int32(0), params, {}, None), json.loads(json.dumps(meta)))
    return str(path), trees.flatten(params)


def test_an_image_model_becomes_one_of_both_streams(tmp_path):
    path, source = saved(image_stream((1, 4, 4)), tmp_path / 'images')
    loaded = handover.load_params(path, two_streams((2, 5, 5)), 'model', allow_fresh=('lm_down_st', 'fpn_[st]'))
    found = trees.flatten(loaded.params)
    for name, value in source.items():
        if 'relative_position_table' not in name:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    # A still of two frames embeds to what the image embeds to.
    kernel = found['backbone/patch_embed/proj/kernel'].reshape(2, 48, 16)
    np.testing.assert_array_equal(kernel[0], source['backbone/patch_embed_2d/proj/kernel'] / 2)
    np.testing.assert_array_equal(kernel[0], kernel[1])
    for leaf in ('proj/bias', 'norm/scale', 'norm/bias'):
        np.testing.assert_array_equal(
            found[f'backbone/patch_embed/{leaf}'], source[f'backbone/patch_embed_2d/{leaf}'], err_msg=leaf
        )
    table = found['backbone/stage2/blocks/attn/relative_position_table']
    assert table.shape == (2, 3, 9, 9, 2)
    np.testing.assert_array_equal(table[:, 0], table[:, 2])
    assert {name for name, leaf in found.items() if isinstance(leaf, jax.ShapeDtypeStruct)} == {
        f'{layer}/{leaf}' for layer in ('fpn_s', 'fpn_t', 'lm_down_st') for leaf in ('kernel', 'bias')
    }
    assert 'made    backbone/patch_embed/proj/kernel of patch_embed_2d, over 2 frames' in loaded.table
    assert '1 x 7 x 7 to 3 x 9 x 9 offsets' in loaded.table


def test_the_published_recipe_starts_the_head_afresh(tmp_path):
    path, source = saved(image_stream((1, 4, 4)), tmp_path / 'images')
    init = configs.load(f'{ROOT}/configs/bevt/k400_swin_b.py').init
    options = {'allow_fresh': init.allow_fresh, 'begin_fresh': init.fresh}
    target = two_streams((2, 4, 4))
    loaded = handover.load_params(path, target, 'model', **options)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in loaded.params['lm_head'].values())
    for status in ('fresh ', 'unused'):
        assert f'{status}  lm_head/kernel ' in loaded.table
    kept = trees.flatten(handover.load_params(path, target, 'model', **{**options, 'begin_fresh': ()}).params)
    np.testing.assert_array_equal(kept['lm_head/kernel'], source['lm_head/kernel'])
    headless = image_stream((1, 4, 4))
    del headless['lm_head']  # the authors' file
    path, _ = saved(headless, tmp_path / 'headless')
    loaded = handover.load_params(path, target, 'model', **options)
    assert isinstance(loaded.params['lm_head']['bias'], jax.ShapeDtypeStruct)
    assert 'unused' not in loaded.table
    # What starts afresh is not inflated either; and a name that is none is a mistake.
    fresh = {'begin_fresh': ('^backbone/patch_embed/',)}
    loaded = handover.load_params(path, target, 'model', allow_fresh=init.allow_fresh, **fresh)
    assert isinstance(loaded.params['backbone']['patch_embed']['proj']['kernel'], jax.ShapeDtypeStruct)
    with pytest.raises(UserError, match=r"init.fresh names '\^head/', but no parameter of the model"):
        handover.load_params(path, target, 'model', begin_fresh=('^head/',))


def test_both_streams_become_a_classifier_with_another_window(tmp_path):
    path, source = saved(two_streams((2, 4, 4)), tmp_path / 'streams')
    unused = ('^backbone/(mask_token|patch_embed_2d)', '^(fpn|lm_)')
    loaded = handover.load_params(path, classifier((4, 4, 4)), 'model', allow_fresh=('^head/',), allow_unused=unused)
    found = trees.flatten(loaded.params)
    changed = [name for name in found if 'relative_position_table' in name]
    assert len(changed) == 2
    for name in found:
        if name in changed:
            np.testing.assert_array_equal(found[name][1], resize_biases(source[name][1], (7, 7, 7)), err_msg=name)
        elif not name.startswith('head/'):
            np.testing.assert_array_equal(found[name], source[name], err_msg=name)
    with pytest.raises(UserError, match='has the extra backbone/mask_token'):
        handover.load_params(path, classifier((4, 4, 4)), 'model', allow_fresh=('^head/',))


@pytest.mark.parametrize(
    ('name', 'old', 'new'),
    [
        ('inflate_bevt_window4to7', (1, 7, 7), (7, 13, 13)),
        ('inflate_swin3d_same_window', (1, 7, 7), (3, 7, 7)),
        ('transfer_window444_to_844', (7, 7, 7), (15, 7, 7)),
    ],
)
def test_tables_are_resized_as_published(name, old, new):
    info, stored = golden(f'bevt/{name}')['arrays'], full_arrays(f'bevt/{name}')
    layers = [key.removeprefix('before:') for key in info if key.startswith('before:') and key.endswith(TABLE)]
    assert len(layers) == 2
    for layer in layers:
        before = stored[f'before:{layer}'].reshape(1, *old, -1)
        after = stored[f'after:{layer}'].reshape(1, *new, -1)
        assert_close(resize_biases(before, new), after, f'bevt/{name}', 'position biases', rtol=1e-5, atol=1e-6)


def test_other_kinds_and_pixels_are_refused():
    swin = build_swin(SIZE)
    meta = {'backbone': json.loads(json.dumps(describe(build_swin({**SIZE, 'patch': (4, 4, 4)}))))}
    assert not check_backbone(meta, swin, 'model', 'runs/x')  # a kernel's shape says its frames
    with pytest.raises(UserError, match=r'runs/x was trained with std \[0.5, 0.5, 0.5\]'):
        check_backbone({'backbone': {**meta['backbone'], 'std': [0.5, 0.5, 0.5]}}, swin, 'model', 'runs/x')
    with pytest.raises(UserError, match='runs/x is a ViT, the model here is a Video Swin'):
        check_backbone({'backbone': {'patch': [2, 16, 16], 'pos_embed': 'sincos3d'}}, swin, 'model', 'runs/x')


def test_another_geometry_is_refused_but_where_a_training_starts():
    published, corrected = build_swin(SIZE), build_swin({**SIZE, 'corrected': True})
    meta = {'backbone': json.loads(json.dumps(describe(corrected)))}
    assert not check_backbone(meta, corrected, 'model', 'runs/x')
    with pytest.raises(UserError, match=r'runs/x was trained with corrected True \(here False\)'):
        check_backbone(meta, published, 'model', 'runs/x')
    note = check_backbone(meta, published, 'model', 'runs/x', starts=True)
    assert note == 'runs/x was trained with corrected=True, the model here has False'
    other = {'backbone': {**meta['backbone'], 'std': [0.5, 0.5, 0.5]}}
    with pytest.raises(UserError, match=r'was trained with std \[0.5, 0.5, 0.5\] \(here'):
        check_backbone(other, published, 'model', 'runs/x', starts=True)
