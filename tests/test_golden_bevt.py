"""BEVT's training against the published code: scores, labels, losses, gradients, groups, whole steps (golden/bevt)."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bevt_configs import groups_of
from golden_weights import (
    FORWARD,
    GRADIENT,
    LOSS,
    assert_array,
    assert_close,
    golden,
    model_arrays,
    quick_jit,
    to_ours,
    to_torch,
    weight,
)
from test_golden_steps import recording

from mvdjax import metrics, optimizers, train_state, trees
from mvdjax.tasks import bevt, classify
from mvdjax.tasks.backbones import swin_layer_index
from mvdjax.train_step import make_train_step

VAE = 'cls_head.vae_encoder.blocks.'
QKV_BIAS = 'attn.qkv.bias'


def pixels(seed, batch, frames, height, width):
    return np.random.RandomState(seed).randint(0, 256, (batch, frames, height, width, 3)).astype(np.uint8)


def flat_blocks(seed, count, side):
    """The README's images of 8 x 8 pixel blocks, black or of full colours."""
    small = (pixels(seed, count, 1, -(-side // 8), -(-side // 8))[:, 0] > 127) * np.uint8(255)
    return small.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side]


def model_section(config):
    names = {'depths': 'depths', 'num_heads': 'heads', 'window_size': 'window', 'patch_size': 'patch'}
    return {'width': config['embed_dim'], **{ours: tuple(config[name]) for name, ours in names.items()}}


def encoder_params(weights, expected):
    """The DALL-E encoder's parameters from its PyTorch names."""
    leaves = {}
    for name, array in weights.items():
        module, _, kind = name.removeprefix(VAE).rpartition('.')
        module = re.sub(r'group_(\d)\.block_(\d)\.(res_path\.)?', r'group\1_block\2/', module)
        module = module.replace('conv_', 'conv').replace('id_path', 'shortcut').replace('output.conv', 'head')
        leaves[f'{module}/{"kernel" if kind == "w" else "bias"}'] = (
            array if kind == 'b' else array.transpose(2, 3, 1, 0)
        )
    assert {k: v.shape for k, v in leaves.items()} == {k: v.shape for k, v in trees.flatten(expected).items()}
    return trees.unflatten(leaves)


def joined(micro):
    """Micro-batches as the batch that the step splits into them: it takes every n-th row."""
    return jax.tree.map(lambda *rows: np.stack(rows, 1).reshape(-1, *rows[0].shape[1:]), *micro)


def adamw(case, params, task, groups):
    """The case's AdamW with its constant rate, made the way the config section makes it."""
    options = case['optimizer']
    return optimizers.make_optimizer(
        params,
        task.layer_index,
        global_batch=8,
        views=1,
        total_steps=10,
        steps_per_epoch=5,
        warmup_epochs=0,
        peak_rate=options['lr'],
        end_rate=options['lr'],
        weight_decay=options['weight_decay'],
        betas=tuple(options['betas']),
        epsilon=options['eps'],
        clip_norm=options['clip'],
        groups=groups,
    )


class Steps:
    """The optimizer steps of a case: what each reported, the first gradients, the parameters after the last."""

    def __init__(self, case, task, params, frozen, micro_batch, views, groups):
        optimizer, each = recording(adamw(case, params, task, groups)), case['optimizer']['update_interval']
        step = make_train_step(task, optimizer, seed=0, accumulate=each, ema_decay=0.0, views=views)
        step, zero = quick_jit(step), jnp.zeros((), jnp.int32)
        state = train_state.TrainState(zero, zero, params, quick_jit(optimizer.transform.init)(params), None)
        self.values, self.wanted = [], []
        for number in range(case['optimizer']['steps']):
            batch = joined([micro_batch(number * each + k) for k in range(each)])
            state, found = step(state, frozen, batch)
            self.values.append(metrics.means(jax.device_get(found)))
            rows = case['micro_steps'][number * each :][:each]
            self.wanted.append({name: np.mean([row[name] for row in rows]) for name in rows[0]})
            if not number:
                self.grads = state.opt_state[0]
        assert int(state.skipped) == 0
        self.after = state.params


def check_gradients(found, case, name, chosen=lambda n: True):
    """Norms and first values of every gradient that is not rounding noise."""
    real = {n: found[n] for n, want in case['grads'].items() if chosen(n) and want['norm'] > 1e-5}
    norms = [np.linalg.norm(array.astype(np.float64)) for array in real.values()]
    assert_close(norms, [case['grads'][n]['norm'] for n in real], name, 'gradients, norms', rtol=GRADIENT)
    heads = [array.reshape(-1)[:4] for array in real.values()]
    wanted = [case['grads'][n]['head'] for n in real]
    assert_close(np.concatenate(heads), np.concatenate(wanted), name, 'gradients, first values', rtol=2e-3, atol=2e-6)


def check_after(found, case, name, chosen=lambda n: True):
    """Norms of every parameter; of a qkv bias without its third for the keys, whose gradient is rounding noise."""
    norms, wanted = [], []
    for n, want in case['params_after'].items():
        if chosen(n):
            array = found[n].astype(np.float64)
            if n.endswith(QKV_BIAS):
                query, _, value = np.split(array, 3)
                array = np.concatenate([query, value])
            norms.append(np.linalg.norm(array))
            wanted.append(want.get('norm_without_k', want['norm']))
    assert_close(norms, wanted, name, 'parameters after, norms', rtol=2e-5)


def check_groups(case, params, kind, groups, chosen=lambda n: True):
    """Rate and decay of every parameter."""
    shapes = {n: s for n, s in case['shapes'].items() if chosen(n)}
    factors = optimizers.group_factors(params, groups)
    full = [jax.tree.map(lambda leaf, f: np.broadcast_to(f, leaf.shape), params, tree) for tree in factors]
    rates, decays = ({n: np.unique(x) for n, x in to_torch(kind, tree, shapes).items()} for tree in full)
    for n, group in case['param_groups'].items():
        if chosen(n):
            rate = np.float32(case['optimizer']['lr']) * rates[n]
            np.testing.assert_allclose(rate, [group['lr']], rtol=1e-6, err_msg=n)
            decay = np.float32(case['optimizer']['weight_decay']) * decays[n]
            np.testing.assert_allclose(decay, [group['weight_decay']], rtol=1e-6, err_msg=n)


class Pretraining:
    """A case of both streams: its task, weights and micro-batches."""

    def __init__(self, name):
        self.name, self.case = name, golden(name)
        case = self.case
        self.arrays = model_arrays(name)
        self.task = bevt.Task(
            model=model_section(case['config']),
            tokenizer={
                'kind': 'dalle',
                'checkpoint': 'random',
                'model': {'width': case['n_hid'], 'vocabulary': case['vocab']},
            },
            weights={'video': case['loss_weight_3d'], 'image': case['loss_weight_2d']},
        )
        weights = {n: weight(n, s) for n, s in case['shapes'].items()}
        tokenizer = {n: w for n, w in weights.items() if n.startswith(VAE)}
        assert len(tokenizer) == case['vae_in_optimizer']
        expected = self.task.abstract_frozen(self.batch(0))['tokenizer']
        self.frozen = {'tokenizer': encoder_params(tokenizer, expected)}
        self.shapes = {n: s for n, s in case['shapes'].items() if own(n)}
        self.task.check(self.batch(0))
        abstract = train_state.abstract_params(self.task, self.batch(0))
        self.params = to_ours('bevt', {n: weights[n] for n in self.shapes}, abstract)
        self.groups = groups_of('bevt/k400_swin_b', abstract)

    def batch(self, number):
        case = self.case
        seed, (clips, images) = case['seed'] + 10 * number, case['batch']
        frames, size, side = case['frames'], case['size'], 8 * case['token_grid']
        second = flat_blocks(seed + 1, clips * frames, side).reshape(clips, frames, side, side, 3)
        return {
            'video': {
                'video': pixels(seed, clips, frames, size, size),
                'token_video': second,
                'mask': self.arrays[f'video_input_mask_{number}'].reshape(clips, -1),
            },
            'image': {
                'video': pixels(seed + 2, images, 1, size, size),
                'token_video': flat_blocks(seed + 3, images, side)[:, None],
                'mask': self.arrays[f'image_mask_{number}'].reshape(images, -1),
            },
        }


def own(name):
    """Whether a parameter is trained: the published optimizer holds the tokenizer too, which never changes."""
    return not name.startswith(VAE)


class Streams:
    """The streams of a case each by itself, and the optimizer steps made of the sums of their gradients."""

    def __init__(self, case):
        self.case = case
        self.runs = {stream: quick_jit(functools.partial(self.gradient, stream)) for stream in ('video', 'image')}
        self.first = {stream: self.run(stream, case.params, case.batch(0)) for stream in self.runs}
        optimizer = adamw(case.case, case.params, case.task, case.groups)
        update = quick_jit(
            lambda grads, state, params, step: optimizer.transform.update(grads, state, params, step=step)
        )
        self.losses, self.norms = [], []
        params, state = case.params, optimizer.transform.init(case.params)
        for step in range(case.case['optimizer']['steps']):
            found = (
                [self.run(stream, params, case.batch(step)) for stream in self.runs] if step else self.first.values()
            )
            grads = jax.tree.map(lambda a, b: a + b, *(gradients for gradients, _ in found))
            self.losses.append(
                {name: float(total / count) for _, (values, _) in found for name, (total, count) in values.items()}
            )
            self.norms.append(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(grads))))
            directions, state = update(grads, state, params, step)
            rate = optimizer.schedule(step)
            params = jax.tree.map(lambda p, d, rate=rate: np.asarray(p - rate * d), params, directions)
            if not step:
                self.grads = grads
        self.after = params

    def gradient(self, stream, params, frozen, part):
        """(gradients, (metrics, (scores, hidden places, tokens))) of one stream of a batch."""
        task = self.case.task
        alone = bevt.Task(task.model, task.tokenizer, {stream: task.weights[stream]})

        def loss(params):
            total, values = alone.loss(params, frozen, part, {}, True)
            tokens = task.make_tokenizer().tokens(frozen['tokenizer'], part['token_video'])
            return total, (values, (*alone.scores(params, stream, part, {}, True), tokens))

        return jax.grad(loss, has_aux=True)(params)

    def run(self, stream, params, batch):
        return self.runs[stream](params, self.case.frozen, batch[stream])


@pytest.fixture(scope='module')
def streams():
    return Streams(Pretraining('bevt/pretrain_tiny'))


def test_pretraining_scores_labels_and_masks(streams):
    name, arrays, first = streams.case.name, streams.case.arrays, streams.case.case['first']
    for stream in ('video', 'image'):
        _, (_, (scores, hidden, tokens)) = streams.first[stream]
        assert_array(scores, name, f'scores_{stream}', **FORWARD)
        np.testing.assert_array_equal(tokens.reshape(-1), arrays[f'tokens_{stream}'].reshape(-1))
        assert hidden.sum() == first[f'masked_{stream}']
        if stream == 'video':
            np.testing.assert_array_equal(hidden.reshape(-1), arrays['video_output_mask_0'].reshape(-1))


def test_pretraining_losses_and_accuracies_of_every_step(streams):
    case, name = streams.case.case, streams.case.name
    for stream, theirs in (('video', '3d'), ('image', '2d')):
        losses = [case[f'loss_weight_{theirs}'] * step[f'loss_{stream}'] for step in streams.losses]
        wanted = [want[f'loss_cls_{theirs}'] for want in case['micro_steps']]
        assert_close(losses, wanted, name, f'{stream} losses of every step', **LOSS)
        accuracies = [step[f'accuracy_{stream}'] for step in streams.losses]
        np.testing.assert_allclose(accuracies, [want[f'mask_acc_{theirs}'] for want in case['micro_steps']], rtol=1e-6)


def test_pretraining_gradients_together_and_of_each_stream(streams):
    case, name, shapes = streams.case.case, streams.case.name, streams.case.shapes
    assert_close(streams.norms, case['grad_norms'], name, 'gradient norms', rtol=GRADIENT)
    assert min(streams.norms) > case['optimizer']['clip']  # it clips
    check_gradients(to_torch('bevt', jax.device_get(streams.grads), shapes), case, name, own)
    for stream in ('video', 'image'):
        found = to_torch('bevt', jax.device_get(streams.first[stream][0]), shapes)
        norms = case[f'grads_{stream}_loss_only']['norms']
        for n, array in found.items():
            if n not in norms:  # the other stream's embedding and joining layers
                assert not array.any(), n
            elif norms[n] > 1e-5:
                np.testing.assert_allclose(np.linalg.norm(array), norms[n], rtol=GRADIENT, err_msg=n)


def test_pretraining_groups_and_parameters_after_the_steps(streams):
    case = streams.case
    check_groups(case.case, case.params, 'bevt', case.groups, own)
    check_after(to_torch('bevt', streams.after, case.shapes), case.case, case.name, own)


def test_pretraining_steps_of_two_micro_batches():
    """The step function of the loop, with both streams in a batch and weights that differ."""
    pretraining = Pretraining('bevt/pretrain_tiny_accumulate')
    case, name = pretraining.case, pretraining.name
    views = {'video': 1, 'image': 1}
    steps = Steps(
        case, pretraining.task, pretraining.params, pretraining.frozen, pretraining.batch, views, pretraining.groups
    )
    losses = [step['loss'] for step in steps.values]
    assert_close(losses, [want['loss'] for want in steps.wanted], name, 'losses of every step', **LOSS)
    norms = [step['grad_norm'] for step in steps.values]
    assert_close(norms, case['grad_norms'], name, 'gradient norms', rtol=GRADIENT)
    check_groups(case, pretraining.params, 'bevt', pretraining.groups, own)
    check_after(to_torch('bevt', steps.after, pretraining.shapes), case, name, own)


class Finetuning:
    """One case of the classifier."""

    def __init__(self, dataset):
        self.name = f'bevt/finetune_tiny_{dataset}'
        self.case = case = golden(self.name)
        self.task = classify.Task(
            model={'kind': 'swin', **model_section(case['config'])},
            num_classes=case['classes'],
            label_smoothing=case['smoothing'] or 0.0,
        )
        abstract = train_state.abstract_params(self.task, {'video': self.video(0, 1)})
        weights = {n: weight(n, s) for n, s in case['shapes'].items()}
        self.params = to_ours('video_swin', weights, abstract)
        self.groups = groups_of(f'finetune/{dataset}_swin_b', abstract)
        self.steps = Steps(case, self.task, self.params, {}, self.batch, 1, self.groups)

    def video(self, seed, batch):
        return pixels(seed, batch, *self.case['size'])

    def batch(self, number):
        seed, count = self.case['seed'] + 10 * number, self.case['batch']
        labels = np.random.RandomState(seed + 5).randint(0, self.case['classes'], (count, 1))[:, 0]
        assert labels.tolist() == self.case['labels'][number]
        return {'video': self.video(seed, count), 'label': labels}


@pytest.fixture(scope='module', params=['ssv2', 'k400'])
def finetuning(request):
    return Finetuning(request.param)


def test_finetuning_probabilities_of_the_test_views(finetuning):
    video = finetuning.video(finetuning.case['seed'] + 1, finetuning.case['views'])
    run = quick_jit(finetuning.task.predict)
    found = run(finetuning.params, {}, {'video': video[None]})['probability']
    assert_array(found, finetuning.name, 'test_probabilities', **FORWARD)


def test_finetuning_losses_and_gradients(finetuning):
    case, steps, name = finetuning.case, finetuning.steps, finetuning.name
    losses = [step['loss'] for step in steps.values]
    assert_close(losses, [want['loss'] for want in steps.wanted], name, 'losses of every step', **LOSS)
    norms = [step['grad_norm'] for step in steps.values]
    if case['grad_norms']:
        assert_close(norms, case['grad_norms'], name, 'gradient norms', rtol=GRADIENT)
        accuracies = [step['accuracy'] for step in steps.values]
        np.testing.assert_allclose(accuracies, [want['top1_acc'] for want in steps.wanted])
    if case['optimizer']['update_interval'] == 1:
        check_gradients(to_torch('video_swin', steps.grads, case['shapes']), case, name)


def test_finetuning_groups_and_parameters_after_the_steps(finetuning):
    case = finetuning.case
    check_groups(case, finetuning.params, 'video_swin', finetuning.groups)
    check_after(to_torch('video_swin', finetuning.steps.after, case['shapes']), case, finetuning.name)


def test_layers_of_a_swin_are_those_of_the_published_kinetics_rates():
    """`optim.layer_decay` on a Swin falls as the Kinetics recipe's keys do, the tables apart."""
    depths, case = (2, 2, 18, 2), golden('bevt/param_groups_k400')
    ours = {
        'patch_embed.proj.weight': ('backbone/patch_embed/proj/kernel', None),
        'norm.weight': ('backbone/norm/scale', None),
        **{f'layers.{i}.downsample.norm.weight': (f'backbone/merge{i + 1}/norm/scale', None) for i in range(3)},
        **{
            f'layers.{i}.blocks.{j}.mlp.fc1.weight': (f'backbone/stage{i + 1}/blocks/mlp/fc1/kernel', j)
            for i, depth in enumerate(depths)
            for j in range(depth)
        },
    }
    last = swin_layer_index('head/kernel', depths)
    for name, (path, block) in ours.items():
        index = np.asarray(swin_layer_index(path, depths)).reshape(-1)[block or 0]
        assert 0.9 ** (last - index) == pytest.approx(case['groups'][f'backbone.{name}'][0], rel=1e-6), name
