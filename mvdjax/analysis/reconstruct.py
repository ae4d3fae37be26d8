"""What a masked-pretraining run sees and what its model makes of it, as arrays; `pictures` draws them.

The models predict pixels normalised per patch, so a picture needs a mean and a deviation for each masked patch.
Published visualisers take those of the true patch: even a model that knows nothing then shows coarse, right
colours. Here both are made: with the truth's statistics, and with what can be known from the visible patches alone.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mvdjax import config as configs
from mvdjax import handover
from mvdjax.analysis.runs import TrainedRun
from mvdjax.data.pipeline import BadFiles, Data
from mvdjax.data.schema import SUBSTITUTED
from mvdjax.errors import UserError
from mvdjax.models.embed import Grid, patchify, token_grid, unpatchify
from mvdjax.tasks import mae
from mvdjax.tasks.base import build_vit

# Task -> the section of its model, which has the patch size that the masks are for; None: the data's own have one.
MASKED_TASKS = {'mae': 'encoder', 'mvd': 'student', 'bevt': None}
IMAGES = 8  # images shown side by side
SAMPLE_SEED = 0  # the same samples and masks in every report of a run


@dataclasses.dataclass(frozen=True)
class MaskedSamples:
    """Training samples with their masks: one clip, or several images.

    Attributes:
      video: uint8 (b, t, h, w, 3).
      mask: bool (b, t', h', w') over the token grid, True = masked.
      patch: (frames, rows, columns) of a token.
    """

    video: np.ndarray
    mask: np.ndarray
    patch: Grid

    @property
    def pixel_mask(self) -> np.ndarray:
        """The mask of every pixel, bool (b, t, h, w, 1)."""
        pixels = self.mask
        for axis, side in enumerate(self.patch, start=1):
            pixels = pixels.repeat(side, axis)
        return pixels[..., None]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The samples with the masked patches predicted; visible patches are the input's.

    Attributes:
      loss: mean squared error of the task over these masked patches.
      normalized: whether the targets were normalised per patch.
      true_statistics: uint8 (b, t, h, w, 3), masked patches scaled by the truth's statistics; for targets that are not
        normalised the prediction itself.
      visible_statistics: the same scaled by the visible patches' average statistics; None if not normalised.
    """

    loss: float
    normalized: bool
    true_statistics: np.ndarray
    visible_statistics: np.ndarray | None


def read_batch(run: TrainedRun) -> tuple[dict[str, np.ndarray], Data]:
    """Samples of the run's training data, made by its own recipe: one clip, or several images.

    Args:
      run: a run with a checkpoint.

    Returns:
      (batch by the names of `data.schema`, the data section).

    Raises:
      UserError: the data are not there, or cannot be read.
    """
    assert run.meta is not None
    config = ml_collections.ConfigDict(run.meta['config'])
    data: Data = configs.build(Data, configs.section(config, 'data'), 'data')
    for path in [data.files] if data.files else [source['files'] for source in (data.mixture or {}).values()]:
        if not os.path.isabs(path) and not os.path.exists(path):
            raise UserError(
                f'its data list {path} is not there, seen from {os.getcwd()}: start the report in the folder that '
                'the run was started in'
            )
    if 'views' in data.options:  # one clip of a video is enough for a picture
        data = dataclasses.replace(data, options={**data.options, 'views': 1})
    samples = data.samples(data.read(), SAMPLE_SEED, BadFiles(None))
    drawn = [samples(0)]
    if drawn[0]['video'].shape[0] == 1:
        drawn += [samples(number) for number in range(1, IMAGES)]
    return {name: np.stack([sample[name] for sample in drawn]) for name in drawn[0] if name != SUBSTITUTED}, data


def read_samples(run: TrainedRun) -> MaskedSamples:
    """What `read_batch` reads, of a run of one of `MASKED_TASKS` with a checkpoint. Raises as it does."""
    assert run.meta is not None
    config = ml_collections.ConfigDict(run.meta['config'])
    batch, data = read_batch(run)
    section = MASKED_TASKS[run.task]
    stated = build_vit(configs.section(config, 'task')[section]).patch if section else tuple(data.options['patch'])
    patch: Grid = (stated[0], stated[1], stated[2])
    grid = token_grid(batch['video'].shape, patch)
    if batch['mask'].shape[1:] != (int(np.prod(grid)),):
        raise UserError(f'the data of {run.workdir} make masks for other patches than {patch}')
    return MaskedSamples(batch['video'], batch['mask'].reshape(-1, *grid), patch)


def reconstruct(run: TrainedRun, samples: MaskedSamples) -> Reconstruction:
    """Runs a run's model on samples.

    Args:
      run: a run of the task 'mae' with a checkpoint.
      samples: its samples.

    Raises:
      UserError: the checkpoint does not fit its config, or is damaged.
    """
    assert run.meta is not None
    task: mae.Task = configs.make_task(ml_collections.ConfigDict(run.meta['config']))
    batch = {'video': samples.video, 'mask': samples.mask.reshape(len(samples.mask), -1)}
    expected = jax.eval_shape(task.init, jax.random.key(0), batch)
    params = handover.load_params(run.workdir, expected, 'model').params
    found = jax.jit(lambda p, b: task.reconstruct(p, b, {}, train=False))(params, batch)
    prediction, target, masked = jax.device_get(found)
    loss = float(np.mean(np.square(prediction - target), dtype=np.float64))
    normalized = not task.target.endswith('_raw')
    return Reconstruction(
        loss,
        normalized,
        fill_masked(task, samples, prediction, masked, true_statistics=True),
        fill_masked(task, samples, prediction, masked, true_statistics=False) if normalized else None,
    )


def fill_masked(
    task: mae.Task, samples: MaskedSamples, prediction: np.ndarray, masked: np.ndarray, *, true_statistics: bool
) -> np.ndarray:
    """Puts predictions in place of the masked patches.

    Args:
      task: the task, whose target says how the prediction is normalised.
      samples: the input.
      prediction: (b, masked, values) in the space of the task's targets.
      masked: (b, masked) token indices.
      true_statistics: scale each patch by the true patch's mean and deviation; otherwise by the averages over the
        sample's visible patches. Without effect on targets that are not normalised.

    Returns:
      uint8 (b, t, h, w, 3).
    """
    channels = samples.video.shape[-1]
    values = prediction.reshape(*prediction.shape[:2], -1, channels)
    if not task.target.endswith('_raw'):
        raw_task = dataclasses.replace(task, target=f'{task.target}_raw')
        pixels = np.asarray(raw_task.targets(jnp.asarray(samples.video)))
        mean, deviation = _statistics(task.target, pixels.reshape(*pixels.shape[:2], -1, channels))
        if true_statistics:
            index = masked[..., None, None]
            mean, deviation = (np.take_along_axis(x, index, axis=1) for x in (mean, deviation))
        else:
            visible = ~samples.mask.reshape(len(samples.mask), -1, 1, 1)
            mean, deviation = (np.mean(x, axis=1, keepdims=True, where=visible) for x in (mean, deviation))
        values = values * deviation + mean
    if task.target.startswith('mae'):
        vit = task.backbone()
        values = values * np.array(vit.std) + np.array(vit.mean)
    shown = np.round(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
    patches = np.array(patchify(jnp.asarray(samples.video), samples.patch))
    np.put_along_axis(patches, masked[..., None], shown.reshape(prediction.shape), axis=1)
    return unpatchify(patches, token_grid(samples.video.shape, samples.patch), samples.patch)


def _statistics(target: str, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (mean, deviation) that `losses.normalize_patches_*` took out of (b, n, values, c) patches.

    Returns:
      Each (b, n, 1, 1) for 'mae', (b, n, 1, c) for 'videomae'.
    """
    axes, inside, outside = ((2, 3), 1e-6, 0.0) if target == 'mae' else ((2,), 0.0, 1e-6)
    mean = patches.mean(axis=axes, keepdims=True)
    return mean, np.sqrt(patches.var(axis=axes, ddof=1, keepdims=True) + inside) + outside


def rate_of(config: Mapping[str, Any]) -> str:
    """The masks of a run for people: 'tube mask, 75 % hidden', or of blocks 'at most 98 places of a slot hidden'."""
    if 'mask' in config['task']:
        mask = config['task']['mask']
        return f'{mask["kind"].replace("_", " ")} mask, {100 * mask["ratio"]:g} % hidden'
    return f'block mask, at most {config["data"]["options"]["masked"]} places of a slot hidden'
