"""Optimizer steps of every task at the smallest size, without files: what the tests of sharding run and compile."""

import functools

import jax
import numpy as np
from golden_weights import known_options

from mvdjax import optimizers, sharding, train_state
from mvdjax.settings import Run
from mvdjax.tasks import bevt, classify, mae, mvd, tokenizer_vq
from mvdjax.train_step import compile_step

ROWS = 8
TUBE = {'kind': 'tube', 'ratio': 0.5}


def vit(width, depth, **options):
    return {'width': width, 'depth': depth, 'heads': 4, 'patch': (2, 8, 8), **options}


def image_vit(width, depth, **options):
    whole = {'pos_embed': 'sincos2d', 'cls_token': True, 'qkv_bias': 'full'}
    return vit(width, depth, **whole, **options) | {'patch': (1, 8, 8)}


def decoder(width, depth, **options):
    return {'width': width, 'depth': depth, 'heads': 4, **options}


def make_mae(width=32, depth=2, **options):
    return mae.Task(image_vit(width, depth, **options), decoder(width, depth, **options), TUBE, 'mae')


def make_videomae(width=32, depth=2, **options):
    return mae.Task(vit(width, depth, **options), decoder(width, depth, **options), TUBE, 'videomae')


def make_mvd(width=32, depth=2, **options):
    teachers = {
        name: {'model': make(width, depth, **options), 'checkpoint': 'random', 'decoder': decoder(width, 1, **options)}
        for name, make in (('image', image_vit), ('video', vit))
    }
    return mvd.Task(vit(width, depth, **options, drop_path=0.1), teachers, TUBE)


def make_classify(width=32, depth=2, **options):
    mix = {'group': 2}
    return classify.Task(vit(width, depth, **options, drop_path=0.1), num_classes=4, dropout=0.1, mix=mix)


def make_bevt(width=32, depth=2, **options):
    """Two streams; the deep stage is the second, of `width` channels."""
    swin = {'width': width // 2, 'depths': (1, depth), 'heads': (2, 4), 'window': (2, 2, 2), **options}
    codes = {'channels': (8, 8), 'blocks': 1, 'vocabulary': 32, 'code_dim': 4}
    tokenizer = {'kind': 'vq', 'checkpoint': 'random', 'model': codes}
    return bevt.Task({**swin, 'drop_path': 0.1}, tokenizer, {'video': 1.0, 'image': 1.0})


def two_streams(rows=ROWS):
    """A batch of BEVT, drawn: as many images as clips, with 8 x 8 places a frame."""
    random = np.random.RandomState(0)

    def stream(frames):
        video, token_video = random.randint(0, 256, (2, rows, frames, 32, 32, 3)).astype(np.uint8)
        mask = random.rand(rows, max(1, frames // 2) * 64) < 0.4
        return {'video': video, 'token_video': token_video, 'mask': mask}

    return {'video': stream(4), 'image': stream(1)}


def make_tokenizer(width=32, depth=2):
    """A codebook, and a perceptual encoder."""
    model = {'channels': (width // 2, width), 'blocks': depth, 'vocabulary': 32, 'code_dim': 8}
    perceptual = {'model': image_vit(width, depth), 'checkpoint': 'random'}
    return tokenizer_vq.Task(model, perceptual=perceptual)


# Tasks on a ViT, and their batches; a new one joins with a line.
TASKS = {
    'mae': (make_mae, {'video': (1, 16, 16, 3), 'mask': (4,)}),
    'videomae': (make_videomae, {'video': (4, 16, 16, 3), 'mask': (8,)}),
    'mvd': (make_mvd, {'video': (4, 16, 16, 3), 'mask': (8,)}),
    'classify': (make_classify, {'video': (4, 16, 16, 3), 'label': (), 'erase': (4,)}),
}

# All tasks; a batch may be drawn by a function of its own.
EVERY = {
    **TASKS,
    'bevt': (make_bevt, two_streams),
    'tokenizer': (make_tokenizer, {'video': (1, 16, 16, 3)}),
}
ACCUMULATE = {'bevt': 2}  # micro-batches, where not 1
WORN = ('tokenizer',)  # its blocks start as the identity, most of their gradients as zero: start from noise beside it


def host_batch(name, rows=ROWS):
    """A batch of a task, drawn."""
    shapes = EVERY[name][1]
    if callable(shapes):
        return shapes(rows)
    random, batch = np.random.RandomState(0), {}
    for key, shape in shapes.items():
        if key == 'mask':  # the second half of each frame's tokens
            batch[key] = np.tile(np.arange(4) >= 2, (rows, shape[0] // 4))
        elif key == 'video':
            batch[key] = random.randint(0, 256, (rows, *shape)).astype(np.uint8)
        else:
            batch[key] = random.randint(0, 4, (rows, *shape)).astype(np.int32)
    return batch


def adamw(task, batch, clip_norm=None):
    """An optimizer that moves every parameter from the first step on."""
    return optimizers.make_optimizer(
        train_state.abstract_params(task, batch),
        task.layer_index,
        global_batch=len(jax.tree.leaves(batch)[0]),
        views=1,
        total_steps=10,
        steps_per_epoch=5,
        warmup_epochs=0,
        peak_rate=1e-3,
        clip_norm=clip_norm,
    )


@functools.cache
def fresh_state(name):
    """A task's state on the host, made on one device."""
    task, batch = EVERY[name][0](), host_batch(name)
    mesh = sharding.make_mesh(devices=1)
    state = jax.device_get(train_state.create(task, adamw(task, batch), batch, seed=0, ema=True, mesh=mesh))
    if name in WORN:
        random = np.random.RandomState(1)
        params = jax.tree.map(lambda x: (x + 0.05 * random.standard_normal(x.shape)).astype(x.dtype), state.params)
        state = state._replace(params=params, ema=params)
    return state


@functools.cache
def frozen_on_host(name):
    """A task's teachers."""
    return jax.device_get(EVERY[name][0]().frozen())


def one_step(name, **mesh_options):
    """(metrics, state) after a step from `fresh_state` on a mesh, and the mesh; both back on the host."""
    task, batch = EVERY[name][0](), host_batch(name)
    mesh = sharding.make_mesh(**mesh_options)
    run = Run(global_batch=ROWS, steps=10, ema_decay=0.9, accumulate=ACCUMULATE.get(name, 1))
    state = sharding.place_tree(fresh_state(name), mesh)
    frozen = sharding.place_tree(frozen_on_host(name), mesh)
    arguments = (state, frozen, sharding.place_batch(batch, mesh))
    step = compile_step(task, adamw(task, batch), run, state, mesh, views_of(batch)).lower(*arguments)
    state, values = step.compile(compiler_options=known_options())(*arguments)
    return jax.device_get(values), jax.device_get(state)


def views_of(batch):
    """Rows of a video in a batch, as `compile_step` wants it: one, of every stream."""
    return dict.fromkeys(batch, 1) if isinstance(batch['video'], dict) else 1


def place(tree, mesh):
    """Abstract arrays where the rules put them."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding.tree_sharding(tree, mesh)
    )


def compiled_step(task, batch, mesh):
    """(the compiled step, abstract state and teachers) of a task for a mesh; nothing is run."""
    optimizer = adamw(task, batch, clip_norm=1.0)
    make = train_state.make_state_function(task, optimizer, ema=True)
    state = place(jax.eval_shape(make, jax.random.key(0), batch), mesh)
    frozen = place(task.abstract_frozen(batch), mesh)
    rows = sharding.batch_sharding(mesh)
    batch = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=rows), batch)
    run = Run(global_batch=ROWS, steps=10, ema_decay=0.9)
    step = compile_step(task, optimizer, run, state, mesh, views_of(batch)).lower(state, frozen, batch)
    return step.compile(compiler_options=known_options()), state, frozen
