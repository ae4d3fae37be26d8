"""Where a run starts: at its own checkpoint, at another stage's, or afresh; what its checkpoints say of it."""

import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from mvdjax import checkpoints, handover, optimizers, sharding, train_state
from mvdjax import config as configs
from mvdjax.console import say
from mvdjax.data.schema import FileList
from mvdjax.errors import UserError
from mvdjax.feed import check_same_lists
from mvdjax.place import Place
from mvdjax.saving import Checkpoints
from mvdjax.settings import Init, Run
from mvdjax.tasks.base import Batch, Task, check_backbone, describe
from mvdjax.train_state import TrainState

# What may differ when a run is resumed: where things lie and how fast they go, not what is computed. Lists may have
# moved, but `check_same_lists` holds what they name against the checkpoint's.
FREE_ON_RESUME = (
    r'^run\.(log_every|save_every|save_minutes|keep|keep_every|eval_every|eval_sets|accumulate|wandb)$',
    r'^run\.(max_skipped|max_rollbacks|hang_minutes|compile_cache|init_timeout|heartbeat_timeout)$',
    r'^(data|streams\.[^.]+\.data)\.(files|root|class_file|workers|threads|prefetch|timeout|max_bad_fraction)$',
    r'^(data|streams\.[^.]+\.data)\.mixture\.[^.]+\.(files|root|class_file)$',
    r'^(mesh|evals|init)\.',
    r'^task\..+\.(remat|scan|attention)$',
    r'^task\.(teachers\.\w+|tokenizer)\.checkpoint$',
    r'^task\.tokenizer\.frames_at_once$',
)


def meta_data(
    config: ml_collections.ConfigDict, task: Task, files: FileList, video: Any, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The JSON that travels in a checkpoint, less what changes from step to step.

    `video` is a batch's. `before` is the meta of the checkpoint that the run is resumed from, which knows the origin of
    the weights: the folders of earlier stages may be gone by then.
    """
    plain = json.loads(json.dumps(config.to_dict()))
    if before is None:
        paths = [p for p in (plain['init']['checkpoint'], *task.sources()) if p]
        metas = [(path, checkpoints.read_meta(path)) for path in paths]
        sources = [{'checkpoint': path, 'licence': m['licence'], 'sources': m['sources']} for path, m in metas]
    else:
        sources = before['sources']
    return {
        'schema_version': checkpoints.SCHEMA_VERSION,
        'config': plain,
        'class_names': list(files.class_names),
        'input_shape': list(video.shape[1:]),
        'backbone': describe(task.backbone()),
        'sources': sources,
        'licence': 'see sources' if sources else 'trained from scratch by this run: yours, and that of your data',
    }


def find_place(
    before: Mapping[str, Any] | None, config: ml_collections.ConfigDict, lists: Mapping[str, Any], workdir: str
) -> Place:
    """Where the run of a workdir stands; `before` is the meta of its newest checkpoint, None if it has none.

    Raises:
      UserError: it was another run: another config, or other lists.
    """
    if before is None:
        return Place()
    check_same_config(before, config, workdir)
    check_same_lists(before['data_position'].get('lists', {}), lists, workdir)
    return Place.of(before)


def check_same_config(before: Mapping[str, Any], config: ml_collections.ConfigDict, workdir: str) -> None:
    """Refuses to resume a run as another one.

    Raises:
      UserError: a value differs that is not in FREE_ON_RESUME; the message names it.
    """
    old, new = configs.flat(before['config']), configs.flat(config)
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    changed = [k for k in changed if not any(re.search(pattern, k) for pattern in FREE_ON_RESUME)]
    if changed:
        shown = '; '.join(f'{k} is {new.get(k)!r}, the run had {old.get(k)!r}' for k in changed[:3])
        more = f' and {len(changed) - 3} more' if len(changed) > 3 else ''
        raise UserError(
            f'the run in {workdir} cannot be resumed with this config: {shown}{more}. Use the config that started it, '
            'or a new workdir (init.checkpoint takes over its parameters)'
        )


def start_state(
    config: ml_collections.ConfigDict,
    run: Run,
    task: Task,
    optimizer: optimizers.Optimizer,
    batch: Batch,
    saved: Checkpoints,
    mesh: Mesh,
) -> TrainState:
    """Where a run starts, in this order of precedence.

    1. The workdir's newest checkpoint: the run continues, whatever `init` says.
    2. `init.checkpoint`: another stage's parameters, a new optimizer, step 0.
    3. Fresh parameters.
    """
    step = saved.latest()
    if step is not None:
        make = train_state.make_state_function(task, optimizer, run.ema_decay > 0)
        say(f'resuming at step {step}')
        return saved.restore(step, jax.eval_shape(make, jax.random.key(0), batch), mesh)
    state = train_state.create(task, optimizer, batch, run.seed, run.ema_decay > 0, mesh)
    init = configs.build(Init, configs.section(config, 'init'), 'init')
    if init.checkpoint:
        source = checkpoints.read_meta(init.checkpoint)
        note = check_backbone(source, task.backbone(), 'model', init.checkpoint, starts=True)
        if note:
            say(f'note: {note}')
        loaded = handover.load_params(
            init.checkpoint,
            train_state.abstract_params(task, batch),
            'initial parameters',
            allow_fresh=init.allow_fresh,
            allow_unused=init.allow_unused,
            begin_fresh=init.fresh,
            use_ema=init.use_ema,
        )
        say(loaded.table)
        params = jax.tree.map(
            lambda new, old: old if isinstance(new, jax.ShapeDtypeStruct) else new, loaded.params, state.params
        )
        params = sharding.place_tree(params, mesh)
        # A copy made on the devices: the two are donated together and may not share memory.
        ema = jax.tree.map(jnp.copy, params) if state.ema is not None else None
        state = state._replace(params=params, ema=ema)
    saved.rehearse(state)
    return state
