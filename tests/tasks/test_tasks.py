"""Tasks beyond their golden numbers: merging of views, erasing, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import full_arrays, golden, quick_jit

from mvdjax import losses
from mvdjax.data.schema import Record
from mvdjax.data.sources import NO_LABEL, FileList
from mvdjax.errors import UserError
from mvdjax.evaluation.multiview import TopK
from mvdjax.models.vit import IMAGENET_MEAN, IMAGENET_STD, ViT
from mvdjax.tasks import classify, mae, mvd

IMAGE = {'variant': 'debug', 'patch': (1, 16, 16), 'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full'}
DECODER = {'width': 32, 'depth': 1, 'heads': 2}
TEACHERS = {
    'image': {'model': IMAGE, 'checkpoint': 'random', 'decoder': DECODER},
    'video': {'model': {'variant': 'debug', 'pos_embed': 'sincos1d'}, 'checkpoint': 'random', 'decoder': DECODER},
}
TUBE = {'kind': 'tube', 'ratio': 0.75}
STUDENT = {'variant': 'debug'}


@dataclasses.dataclass(frozen=True)
class Recall:
    """A classifier that reads the number of a view from its first pixel and returns that view's stored logits."""

    backbone = ViT(32, 1, 1)

    def apply(self, variables, video):
        number = (video[:, 0, 0, 0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255
        return variables['params'][jnp.round(number).astype(int)], {}


class Recorded(classify.Task):
    def classifier(self):
        return Recall()


@pytest.mark.parametrize('name', ['data/merge', 'data/merge_key_collision'])
def test_merging_views(name):
    case, stored = golden(name), full_arrays(name)
    views = sorted({view for _, video, view, _ in case['rows_file_video_view'] if video == 0})
    if 'collision' in name:  # the original loses the third view, whose key equals the second's
        views.pop(2)
    assert len(views) == case['views_per_video'][0]
    logits = stored['logits'][:, views]
    videos, count, classes = logits.shape
    numbers = np.arange(videos * count, dtype=np.uint8).reshape(videos, count, 1, 1, 1, 1)
    video = np.broadcast_to(numbers, (videos, count, 1, 1, 1, 3))
    task = Recorded(model={}, num_classes=classes)
    outputs = jax.device_get(jax.jit(task.predict)(logits.reshape(-1, classes), {}, {'video': video}))
    np.testing.assert_allclose(outputs['probability'], stored['mean_softmax'], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(outputs['probability'].argmax(axis=1), stored['pred'])

    accuracy = task.evaluators()['accuracy']
    padding = 2  # rows that fill up a batch: index of a real video, but not valid
    rows = np.r_[np.arange(videos), np.zeros(padding, int)]
    batch = {'label': stored['labels'][rows], 'valid': np.arange(videos + padding) < videos, 'index': rows}
    accuracy.update({'probability': outputs['probability'][rows]}, batch)
    assert accuracy.result() == pytest.approx({'top1': case['final_top1'], 'top5': case['final_top5']})
    np.testing.assert_array_equal(accuracy.probabilities()[1], outputs['probability'][1])
    for i in range(videos):
        single = TopK((1, 5))
        single.update({'probability': outputs['probability'][[i]]}, {k: v[[i]] for k, v in batch.items()})
        assert single.result() == {'top1': 100 * stored['top1'][i], 'top5': 100 * stored['top5'][i]}


def test_accuracy_of_nothing_and_of_few_classes():
    assert np.isnan(TopK((1,)).result()['top1'])
    assert sorted(classify.Task(model={}, num_classes=3).evaluators()['accuracy'].result()) == ['top1', 'top3']


def test_erasing_fills_the_box_of_every_frame_with_fresh_noise():
    video = jnp.full((2, 3, 40, 30, 3), 7.0)
    boxes = jnp.asarray([[5, 10, 20, 15], [0, 0, 0, 0]])
    erased = np.asarray(quick_jit(classify.erase)(jax.random.key(0), video, boxes))
    np.testing.assert_array_equal(erased[1], video[1])
    box = erased[0, :, 5:25, 10:25]
    assert (erased[0] != 7.0).sum() == box.size
    assert abs(box.mean()) < 0.1
    assert abs(box.std() - 1.0) < 0.1
    assert abs(np.corrcoef(box[0].ravel(), box[1].ravel())[0, 1]) < 0.15


def test_classification_metrics_and_smoothing():
    task = classify.Task(model={'variant': 'debug', 'patch': (2, 8, 8)}, num_classes=4, label_smoothing=0.2)
    batch = {'video': np.zeros((2, 2, 16, 16, 3), np.uint8), 'label': np.array([1, 3])}
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(task.init, jax.random.key(0), batch))
    params['head']['bias'] = jnp.asarray([0.0, 2.0, 0.0, 0.0])
    loss, found = quick_jit(task.loss, static_argnames='train')(params, {}, batch, {}, train=False)
    log_p = np.log(np.exp([0, 2, 0, 0]) / np.exp([0, 2, 0, 0]).sum())
    targets = np.full((2, 4), 0.05) + 0.8 * np.eye(4)[[1, 3]]
    np.testing.assert_allclose(loss, -(targets * log_p).sum(axis=1).mean(), rtol=1e-6)
    assert [float(x) for x in found['accuracy']] == [1.0, 2.0]


def test_normalised_features_have_no_mean_and_unit_variance():
    x = 5 + 3 * np.random.RandomState(0).standard_normal((2, 3, 4096)).astype(np.float32)
    y = np.asarray(losses.normalize_features(x))
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(axis=-1), 1, rtol=1e-5)


def test_epsilon_of_the_pixel_targets():
    # No golden patch is flat enough to tell: MAE adds it to the variance, VideoMAE to the deviation.
    x = np.random.RandomState(0).standard_normal((1, 1, 64, 3))
    x -= x.mean(axis=2, keepdims=True)
    spread = x.std(axis=2, ddof=1, keepdims=True)
    flat = (x * 1e-3).astype(np.float32).reshape(1, 1, -1)
    found = losses.normalize_patches_mae(flat)
    np.testing.assert_allclose(found, flat / np.sqrt(flat.var(ddof=1) + 1e-6), rtol=1e-4, atol=1e-4)
    flatter = (x * 1e-6).astype(np.float32).reshape(1, 1, -1)
    found = losses.normalize_patches_videomae(flatter, 3).reshape(x.shape)
    np.testing.assert_allclose(found, x * 1e-6 / (spread * 1e-6 + 1e-6), rtol=1e-3, atol=1e-3)


def pretraining(task_options=None):
    return mvd.Task(**{'student': STUDENT, 'teachers': TEACHERS, 'mask': TUBE} | (task_options or {}))


def batch(masked=12, frames=4, size=64, **more):
    grid = (frames // 2, (size // 16) ** 2)
    mask = np.tile(np.arange(grid[1]) < masked, (2, grid[0]))
    return {'video': np.zeros((2, frames, size, size, 3), np.uint8), 'mask': mask, **more}


def test_checks_accept_what_fits():
    pretraining().check(batch())
    half = np.zeros((2, 4, 32, 32, 3), np.uint8)
    teachers = {**TEACHERS, 'image': {**TEACHERS['image'], 'model': {**IMAGE, 'patch': (1, 8, 8)}}}
    pretraining({'teachers': teachers}).check(batch(teacher_video=half))


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (batch(masked=11), r'masks \[22\] tokens per sample, the task expects 24'),
        ({**batch(), 'mask': np.zeros((2, 16), bool)}, r'masks of shape \(2, 16\), the task needs \(2, 32\)'),
        (batch(teacher_video=np.zeros((2, 4, 32, 32, 3), np.uint8)), r'image teacher makes a \(1, 2, 2\) token grid'),
    ],
)
def test_distillation_refuses_data_that_do_not_fit(data, message):
    with pytest.raises(UserError, match=message):
        pretraining().check(data)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'teachers': {}}, 'at least one'),
        ({'teachers': {'audio': {}}}, 'audio'),
        ({'teachers': {'image': {**TEACHERS['image'], 'loss': 'l3'}}}, "one of smooth_l1, l1, l2, not 'l3'"),
        ({'teachers': {'image': {**TEACHERS['image'], 'weight': 0.0}}}, 'weight must be positive'),
        ({'teachers': {'image': {**TEACHERS['image'], 'rate': 1.0}}}, r"task\.teachers\.image has no key 'rate'"),
    ],
)
def test_distillation_refuses_wrong_teachers(options, message):
    with pytest.raises(UserError, match=message):
        pretraining(options)


def test_one_teacher_alone():
    task = pretraining({'teachers': {'video': TEACHERS['video']}})
    task.check(batch())
    _, found = jax.eval_shape(lambda *args: task.loss(*args, {}, train=False), *one_step(task))
    assert sorted(found) == ['loss', 'loss_video']
    found = jax.eval_shape(pretraining().predict, *one_step(pretraining()))
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(('loss', 'loss_image', 'loss_video'), (2,))


def one_step(task):
    params = jax.eval_shape(task.init, jax.random.key(0), batch())
    return params, jax.eval_shape(task.frozen), jax.eval_shape(lambda: batch())


def test_pixel_task_refuses_data_that_do_not_fit():
    task = mae.Task(encoder=STUDENT, decoder=DECODER, mask=TUBE, target='videomae')
    task.check(batch())
    with pytest.raises(UserError, match='the task expects 24'):
        task.check(batch(masked=4))


def test_classification_refuses_wrong_labels_and_mixing():
    task = classify.Task(model={}, num_classes=4)
    task.check_files(FileList('list', (Record('a', 0, 1), Record('b', 3, 2)), ()))
    with pytest.raises(UserError, match=r'list:2: label 4, but task\.num_classes is 4'):
        task.check_files(FileList('list', (Record('a', 0, 1), Record('b', 4, 2)), ()))
    with pytest.raises(UserError, match=r'list:1: a has no label, which only pretraining can do without'):
        task.check_files(FileList('list', (Record('a', NO_LABEL, 1),), ()))
    with pytest.raises(UserError, match=r'list has 2 class names, task\.num_classes is 4'):
        task.check_files(FileList('list', (Record('a', 0, 1),), ('x', 'y')))
    with pytest.raises(UserError, match=r"task\.mix has no key 'alpha'"):
        classify.Task(model={}, num_classes=4, mix={'alpha': 1.0})
