"""Whole optimizer steps against the published training loops: losses, gradients, parameter groups, parameters after."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_weights import (
    FORWARD,
    GRADIENT,
    LOSS,
    assert_array,
    assert_close,
    assert_summaries,
    clip,
    golden,
    model_arrays,
    quick_jit,
    teacher_params,
    to_ours,
    to_torch,
    weight,
)

from mvdjax import losses, metrics, optimizers, train_state, trees
from mvdjax.models.vit import Classifier, ViT
from mvdjax.tasks import classify, mvd
from mvdjax.tasks.base import normalize, vit_layer_index
from mvdjax.train_step import make_train_step

LOSSES = {'SmoothL1': 'smooth_l1', 'L1': 'l1', 'L2': 'l2'}


def recording(optimizer):
    """The same optimizer, whose state shows the gradients of the last step as its first part."""
    record = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, state, params: (grads, grads)
    )
    return dataclasses.replace(optimizer, transform=optax.chain(record, optimizer.transform))


def run_steps(task, optimizer, params, frozen, batch, steps):
    """(metrics of each step, gradients of the first step, parameters after the last)."""
    optimizer = recording(optimizer)
    zero = jnp.zeros((), jnp.int32)
    state = train_state.TrainState(zero, zero, params, quick_jit(optimizer.transform.init)(params), None)
    step = quick_jit(make_train_step(task, optimizer, seed=0, accumulate=1, ema_decay=0.0, views=1))
    values, first = [], None
    for _ in range(steps):
        state, found = step(state, frozen, batch)
        first = state.opt_state[0] if first is None else first
        values.append(metrics.means(jax.device_get(found)))
    assert int(state.skipped) == 0
    return values, first, state.params


def constant_rate(case, params, layer_index, **options):
    """The case's AdamW with its constant rate, made the way the config section makes it."""
    section = case['optimizer']
    return optimizers.make_optimizer(
        params,
        layer_index,
        global_batch=case['batch'],
        views=1,
        total_steps=section['steps'],
        steps_per_epoch=1,
        warmup_epochs=0,
        peak_rate=section['lr'],
        end_rate=section['lr'],
        weight_decay=section['weight_decay'],
        betas=tuple(section['betas']),
        epsilon=section['eps'],
        **options,
    )


def decayed(kind, params, shapes):
    """{PyTorch name: whether it decays} under the default lists."""
    mask = optimizers.decay_mask(params, ('kernel$', '_token$'), ('(bias|scale)$',))
    full = jax.tree.map(lambda leaf, on: np.full(leaf.shape, on), params, mask)
    return {name: bool(value.all()) for name, value in to_torch(kind, full, shapes).items()}


class Distillation:
    """One distillation case: the task, its inputs, and what the steps gave."""

    def __init__(self, name):
        self.name, self.case = name, golden(name)
        case, student = self.case, self.case['student']
        decoder = {
            'width': student.get('dec_dim', student['D']),
            'depth': student['dec_depth'],
            'heads': student.get('dec_heads', student['heads']),
        }
        models = {
            'image': {'patch': (1, 16, 16), 'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full'},
            'video': {'patch': (2, 16, 16), 'pos_embed': 'sincos1d'},
        }
        self.task = mvd.Task(
            student=self.size(student),
            teachers={
                teacher: {
                    'model': {**self.size(case[f'{teacher}_teacher']), **options},
                    'checkpoint': 'random',
                    'decoder': decoder,
                    'weight': case[f'weight_{teacher}'],
                    'loss': LOSSES[case[f'loss_{teacher}']],
                }
                for teacher, options in models.items()
            },
            mask={'kind': {'tube': 'tube', 'random': 'random_clip'}[case['mask']], 'ratio': case['ratio']},
            norm_feature=case['norm_feature'],
        )
        video = clip(case['seed'], case['batch'], case['frames'], case['img'])
        self.batch = {'video': video, 'mask': model_arrays(name)['mask']}
        self.task.check(self.batch)
        self.frozen = {
            teacher: teacher_params(f'{teacher}_teacher', case['shapes'][f'{teacher}_teacher'], abstract)
            for teacher, abstract in jax.eval_shape(self.task.frozen).items()
        }
        abstract = train_state.abstract_params(self.task, self.batch)
        self.shapes = case['shapes']['student']
        self.params = to_ours('mvd', {n: weight(n, s) for n, s in self.shapes.items()}, abstract)
        optimizer = constant_rate(case, self.params, self.task.layer_index, clip_norm=case['optimizer']['clip'])
        self.values, grads, after = run_steps(
            self.task, optimizer, self.params, self.frozen, self.batch, case['optimizer']['steps']
        )
        self.grads, self.after = (to_torch('mvd', tree, self.shapes) for tree in (grads, after))

    @staticmethod
    def size(config):
        return {'width': config['D'], 'depth': config['depth'], 'heads': config['heads']}


@pytest.fixture(scope='module', params=['mvd/distill_tiny_tube', 'mvd/distill_tiny_random_l2', 'mvd/distill_tiny_clip'])
def distillation(request):
    return Distillation(request.param)


def test_distillation_targets_and_predictions(distillation):
    task, name = distillation.task, distillation.name
    masked = task.num_masked(distillation.batch['video'].shape)

    def forward(params, frozen, batch):
        video = normalize(batch['video'])
        return task.targets(frozen, batch), task.model().apply({'params': params}, video, batch['mask'], masked)[0]

    targets, predictions = quick_jit(forward)(distillation.params, distillation.frozen, distillation.batch)
    for teacher in ('image', 'video'):
        assert_array(targets[teacher], name, f'teacher_{teacher}')
        assert_array(predictions[teacher], name, f'student_{teacher}')


def test_distillation_losses_of_every_step(distillation):
    found = [[v['loss_image'], v['loss_video'], v['loss']] for v in distillation.values]
    assert_close(found, distillation.case['losses'], distillation.name, 'losses of every step', **LOSS)


def test_distillation_gradients(distillation):
    norms = [v['grad_norm'] for v in distillation.values]
    assert_close(norms, distillation.case['grad_norms'], distillation.name, 'gradient norms', rtol=GRADIENT)
    if distillation.case['grads'] is None:  # the clipped case stores only the norms, taken before clipping
        assert min(norms) > distillation.case['optimizer']['clip']
    else:
        assert_summaries(distillation.grads, distillation.case['grads'], distillation.name, 'gradients')


def test_distillation_decayed_parameters(distillation):
    assert decayed('mvd', distillation.params, distillation.shapes) == distillation.case['weight_decayed']


def test_distillation_parameters_after_the_steps(distillation):
    assert_summaries(distillation.after, distillation.case['params_after'], distillation.name, 'parameters after')
    before = {n: weight(n, s) for n, s in distillation.shapes.items()}
    assert all(np.abs(distillation.after[n] - before[n]).max() > 1e-4 for n in before)


@dataclasses.dataclass(frozen=True)
class Targets:
    """A task of given target distributions, which `classify.Task` makes from labels by mixing and smoothing."""

    task: classify.Task
    rng_names: tuple = ()

    def loss(self, params, frozen, batch, rngs, train):
        logits, _ = self.task.classifier().apply({'params': params}, normalize(batch['video']), train, rngs=rngs)
        values = losses.soft_cross_entropy(logits, batch['targets'])
        return jnp.mean(values), {'loss': metrics.weighted(values, None)}


@pytest.fixture(scope='module')
def finetuning():
    name = 'mvd/finetune_tiny'
    case, config = golden(name), golden(name)['config']
    size = {'width': config['embed_dim'], 'depth': config['depth'], 'heads': config['num_heads']}
    task = classify.Task(model=size, num_classes=config['num_classes'])
    video = clip(case['seed'], case['batch'], case['frames'], case['img'])
    abstract = train_state.abstract_params(task, {'video': video})
    params = to_ours('classifier', {n: weight(n, s) for n, s in case['shapes'].items()}, abstract)
    assert trees.count(params) == case['n_params']
    optimizer = constant_rate(case, params, task.layer_index, layer_decay=case['layer_decay'])
    batch = {'video': video, 'targets': model_arrays(name)['targets']}
    results = run_steps(Targets(task), optimizer, params, {}, batch, case['optimizer']['steps'])
    return name, case, task, params, video, results


def test_finetuning_logits(finetuning):
    name, _, task, params, video, _ = finetuning
    logits, _ = quick_jit(task.classifier().apply)({'params': params}, normalize(video))
    assert_array(logits, name, 'logits', **FORWARD)


def test_finetuning_steps(finetuning):
    name, case, _, _, _, (values, grads, after) = finetuning
    assert_close([v['loss'] for v in values], case['losses'], name, 'losses of every step', **LOSS)
    assert_summaries(to_torch('classifier', grads, case['shapes']), case['grads'], name, 'gradients')
    assert_summaries(to_torch('classifier', after, case['shapes']), case['params_after'], name, 'parameters after')


@pytest.mark.parametrize('name', ['mvd/finetune_tiny', 'mvd/finetune_small'])
def test_parameter_groups(name):
    case, config = golden(name), golden(name)['config']
    vit = ViT(config['embed_dim'], config['depth'], config['num_heads'], final_norm=False)
    video = np.zeros((1, 16, case['img'], case['img'], 3), np.float32)
    model = Classifier(vit, config['num_classes'])
    params = jax.eval_shape(model.init, jax.random.key(0), video)['params']
    scales = optimizers.layer_scales(params, case['layer_decay'], vit_layer_index)
    full = jax.tree.map(lambda leaf, scale: np.broadcast_to(scale, leaf.shape), params, scales)
    found = {n: np.unique(x) for n, x in to_torch('classifier', full, case['shapes']).items()}
    decays = decayed('classifier', params, case['shapes'])
    assert found.keys() == case['param_groups'].keys()
    for parameter, group in case['param_groups'].items():
        np.testing.assert_allclose(found[parameter], [group['lr_scale']], rtol=1e-6, err_msg=parameter)
        assert decays[parameter] == (group['weight_decay'] > 0), parameter
        assert group['weight_decay'] in (0.0, case['optimizer']['weight_decay'])
