"""Encoders, decoders and the classifier against the published implementations."""

import jax
import numpy as np
import pytest
from golden_weights import (
    FORWARD,
    LOSS,
    assert_array,
    assert_close,
    clip,
    golden,
    model_arrays,
    quick_jit,
    teacher_params,
    to_ours,
    to_torch,
    weight,
)

from mvdjax import losses, trees
from mvdjax.models.masked_vit import Decoder, MaskedViT
from mvdjax.models.vit import Classifier, ViT
from mvdjax.tasks.base import normalize


def size(config):
    return {'width': config['D'], 'depth': config['depth'], 'heads': config['heads']}


def student(config, out_dim):
    width, heads = config.get('dec_dim', config['D']), config.get('dec_heads', config['heads'])
    decoders = {n: Decoder(width, config['dec_depth'], heads, out_dim=out_dim) for n in ('image', 'video')}
    return MaskedViT(ViT(**size(config)), decoders)


@pytest.mark.parametrize('variant', ['tiny', 'base'])
@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('image_teacher', {'patch': (1, 16, 16), 'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full'}),
        ('video_teacher', {'patch': (2, 16, 16), 'pos_embed': 'sincos1d'}),
    ],
)
def test_teacher_features(kind, options, variant):
    name = f'mvd/{kind}_{variant}'
    case = golden(name)
    video = normalize(clip(case['seed'], case['batch'], case['frames'], case['img']))
    vit = ViT(**size(case['config']), **options, final_norm=False)
    abstract = jax.eval_shape(vit.init, jax.random.key(0), video)['params']
    params = teacher_params(kind, case['shapes'], abstract)
    unused = 2 * case['config']['D']  # the final norm
    assert trees.count(params) + unused == case['n_params']
    _, info = quick_jit(vit.apply)({'params': params}, video)
    assert_array(info['last_block'], name, 'features')


@pytest.mark.parametrize('variant', ['tiny', 'base'])
def test_student(variant):
    name = f'mvd/student_{variant}'
    case, mask = golden(name), model_arrays(name)['mask']
    config = case['config']
    video = normalize(clip(case['seed'], case['batch'], case['frames'], case['img']))
    model = student(config, config['D'])
    masked = int(mask[0].sum())
    assert masked == case['frames'] // 2 * int(case['ratio'] * mask.shape[1] / (case['frames'] // 2))  # tubes
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), video, mask, masked))['params']
    params = to_ours('mvd', {n: weight(n, s) for n, s in case['shapes'].items()}, abstract)
    assert trees.count(params) == case['n_params']
    predictions, info = quick_jit(model.apply, static_argnums=3)({'params': params}, video, mask, masked)
    assert_array(info['encoded'], name, 'encoder')
    assert_array(predictions['image'], name, 'student_image')
    assert_array(predictions['video'], name, 'student_video')
    np.testing.assert_array_equal(info['masked'], [np.flatnonzero(m) for m in mask])


def test_published_small_classifier():
    name = 'mvd/finetune_small'
    case = golden(name)
    video = normalize(clip(case['seed'], case['batch'], case['frames'], case['img']))
    config = case['config']
    vit = ViT(config['embed_dim'], config['depth'], config['num_heads'], final_norm=False)
    model = Classifier(vit, config['num_classes'])
    abstract = jax.eval_shape(model.init, jax.random.key(0), video)['params']
    params = to_ours('classifier', {n: weight(n, s) for n, s in case['shapes'].items()}, abstract)
    assert trees.count(params) == case['n_params']
    logits, _ = jax.jit(model.apply)({'params': params}, video)
    assert_array(logits, name, 'logits', **FORWARD)
    loss = losses.soft_cross_entropy(logits, model_arrays(name)['targets'])
    assert_close(loss, case['losses'], name, 'loss', **LOSS)


def test_name_table_goes_both_ways():
    case = golden('mvd/distill_tiny_random_l2')  # its decoders have another width and head count than the encoder
    model = student(case['student'], 48)
    video, mask = np.zeros((1, 16, 64, 64, 3), np.float32), np.arange(128)[None] < 115
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), video, mask, 115))['params']
    shapes = case['shapes']['student']
    weights = {n: weight(n, s) for n, s in shapes.items()}
    back = to_torch('mvd', to_ours('mvd', weights, abstract), shapes)
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
