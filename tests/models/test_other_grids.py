"""Frame counts, resolutions, patches and channels other than the published ones, for every kind of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import quick_jit

from mvdjax import trees
from mvdjax.models.masked_vit import Decoder, MaskedViT
from mvdjax.models.vit import Classifier, ViT

KINDS = ('sincos1d', 'sincos2d', 'sincos3d', 'learned')
SIZE = {'width': 32, 'depth': 2, 'heads': 2}
# (frames, height, width, channels) of the video, patch, token grid
INPUTS = [
    ((1, 48, 32, 3), (1, 16, 16), (1, 3, 2)),
    ((16, 24, 40, 3), (2, 8, 8), (8, 3, 5)),
    ((6, 20, 60, 1), (3, 10, 4), (2, 2, 15)),
    ((5, 28, 14, 7), (1, 14, 7), (5, 2, 2)),
]


def shape_of(model, *args):
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), *args))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('sides', 'patch', 'grid'), INPUTS)
def test_every_model_takes_any_input(kind, sides, patch, grid):
    tokens, masked = int(np.prod(grid)), int(np.prod(grid)) // 2
    video = jnp.zeros((2, *sides))
    mask = jnp.arange(tokens)[None].repeat(2, 0) < masked
    vit = ViT(**SIZE, patch=patch, pos_embed=kind, cls_token=True)
    (encoded, info), variables = shape_of(vit, video)
    assert encoded.shape == (2, 1 + tokens, 32)
    assert info['last_block'].shape == (2, tokens, 32)
    assert variables['params']['patch_embed']['kernel'].shape == (np.prod(patch) * sides[-1], 32)

    decoders = {name: Decoder(16, 1, 2, out_dim=out, pos_embed=kind) for name, out in (('image', 5), ('video', 9))}
    (predictions, _), variables = shape_of(MaskedViT(vit, decoders), video, mask, masked)
    assert {name: x.shape for name, x in predictions.items()} == {'image': (2, masked, 5), 'video': (2, masked, 9)}
    tables = {k: v.shape for k, v in trees.flatten(variables).items() if k.endswith('position_table')}
    learned = {'backbone': 32, 'decoders_image': 16, 'decoders_video': 16} if kind == 'learned' else {}
    assert tables == {f'params/{k}/position_table': (*grid, width) for k, width in learned.items()}

    (logits, _), _ = shape_of(Classifier(ViT(**SIZE, patch=patch, pos_embed=kind, final_norm=False), 4), video)
    assert logits.shape == (2, 4)


def random_params(model, *args):
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), *args))['params']
    rng = np.random.RandomState(0)
    return jax.tree.map(lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), abstract)


def test_height_and_width_are_not_mixed_up():
    """A transposed video, with transposed patches and positions, gives the same tokens in transposed order."""
    video = jax.random.normal(jax.random.key(1), (2, 4, 12, 40, 1))
    upright, lying = (
        ViT(**SIZE, patch=(2, 6, 8), pos_embed='learned'),
        ViT(**SIZE, patch=(2, 8, 6), pos_embed='learned'),
    )
    params = random_params(upright, video)
    kernel = params['patch_embed']['kernel'].reshape(2, 6, 8, 1, 32).transpose(0, 2, 1, 3, 4).reshape(-1, 32)
    turned = {
        **params,
        'patch_embed': {**params['patch_embed'], 'kernel': kernel},
        'position_table': params['position_table'].transpose(0, 2, 1, 3),
    }
    tokens, _ = quick_jit(upright.apply)({'params': params}, video)
    again, _ = quick_jit(lying.apply)({'params': turned}, video.transpose(0, 1, 3, 2, 4))
    again = again.reshape(2, 2, 5, 2, 32).transpose(0, 1, 3, 2, 4).reshape(tokens.shape)
    np.testing.assert_allclose(again, tokens, atol=1e-5)


def test_learned_positions_are_those_of_the_visible_tokens():
    """Two tokens that change places together with their positions change nothing but the order."""
    vit = ViT(**SIZE, patch=(1, 4, 4), pos_embed='learned')
    video = jax.random.normal(jax.random.key(1), (1, 2, 4, 12, 3))
    params = random_params(vit, video)
    swapped = video.at[:, 0, :, 8:].set(video[:, 1, :, :4]).at[:, 1, :, :4].set(video[:, 0, :, 8:])
    table = params['position_table'].copy()
    table[0, 0, 2], table[1, 0, 0] = params['position_table'][1, 0, 0], params['position_table'][0, 0, 2]
    apply = quick_jit(vit.apply)
    visible = jnp.asarray([[1, 2, 3]])
    tokens, _ = apply({'params': params}, video, visible)
    again, _ = apply({'params': {**params, 'position_table': table}}, swapped, visible)
    np.testing.assert_allclose(again[:, [0, 2, 1]], tokens, atol=1e-5)
    unmoved, _ = apply({'params': params}, swapped, visible)
    assert np.abs(unmoved[:, [0, 2, 1]] - tokens).max() > 0.01


def test_learned_positions_start_small_and_get_gradients_from_their_own_tokens():
    model = MaskedViT(ViT(**SIZE, pos_embed='learned'), {'pixels': Decoder(16, 1, 2, out_dim=4, pos_embed='learned')})
    video, mask = jnp.ones((1, 4, 32, 48, 3)), jnp.arange(12)[None] < 8
    params = quick_jit(lambda: model.init(jax.random.key(0), video, mask, 8)['params'])()
    table = params['backbone']['position_table']
    assert table.shape == (2, 2, 3, 32)
    assert 0.015 < float(table.std()) < 0.025
    grads = quick_jit(
        jax.grad(lambda p: jnp.square(model.apply({'params': p}, video, mask, 8)[0]['pixels'] - 1).sum())
    )(params)
    reached = np.abs(grads['backbone']['position_table']).max(axis=-1).ravel() > 0
    np.testing.assert_array_equal(reached, ~np.asarray(mask[0]))  # the encoder sees the visible tokens only
    assert (np.abs(grads['decoders_pixels']['position_table']).max(axis=-1) > 0).all()
