"""AdamW as an optax chain: clip, Adam, decoupled weight decay, layer-wise rate scales; the rate itself comes last."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvdjax import schedules, trees
from mvdjax.errors import UserError

LayerIndex = Callable[[str, int], Any]  # (path, depth) -> int or (depth,) ints for a stacked leaf
RATE_COUNTS = ('videos', 'views')


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`transform` makes unit-rate descent directions; the step multiplies them by -`schedule(step)`.

    Rate and weight decay follow the step counter of the state (`transform.update` takes it as `step`), not counters
    of their own, so that a skipped (non-finite) step does not shift their schedules.

    Attributes:
      transform: optax chain.
      schedule: the rate.
      weight_decay: the decay where it changes over the run, None where it is constant.
    """

    transform: optax.GradientTransformationExtraArgs
    schedule: schedules.Schedule
    weight_decay: schedules.Schedule | None = None


def decay_mask(params: Any, decay: Sequence[str], no_decay: Sequence[str]) -> Any:
    """Which parameters weight decay acts on; every path must match exactly one of the two lists of regexes.

    Raises:
      UserError: a path matches neither or both; the message lists such paths.
    """

    for pattern in (*decay, *no_decay):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f'weight decay: {pattern!r} is not a regular expression ({error})') from error

    def matches(path: str, patterns: Sequence[str]) -> bool:
        return any(re.search(p, path) for p in patterns)

    flat = {path: (matches(path, decay), matches(path, no_decay)) for path in trees.flatten(params)}
    for wrong, verdict in (((False, False), 'neither'), ((True, True), 'both')):
        paths = [path for path, found in flat.items() if found == wrong]
        if paths:
            raise UserError(
                f'weight decay: {", ".join(paths)} matched by {verdict} of optim.decay and optim.no_decay; '
                'make exactly one of the two match'
            )
    return jax.tree_util.tree_map_with_path(lambda p, _: flat[trees.path_name(p)][0], params)


def layer_scales(params: Any, layer_decay: float, layer_index: LayerIndex) -> Any:
    """The rate scale of every parameter: layer_decay^(last layer - its layer), 1 for the head.

    Layer 0 is the patch embedding, layer i + 1 block i, the last one all that follows (MVD's optim_factory). A leaf
    of a stacked block gets a vector over its depth axis.
    """
    depth = max((len(leaf) if 'blocks' in path else 0 for path, leaf in _shapes(params).items()), default=0)

    def scale(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        index = np.asarray(layer_index(trees.path_name(path), depth))
        factor = np.float32(layer_decay) ** (depth + 1 - index).astype(np.float32)
        return factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim)) if factor.ndim else factor

    return jax.tree_util.tree_map_with_path(scale, params)


def _shapes(params: Any) -> dict[str, Any]:
    return {path: np.empty(leaf.shape[:1], bool) for path, leaf in trees.flatten(params).items()}


def _scale_by(scales: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales))


def _decayed_weights(decay: schedules.Schedule, mask: Any) -> optax.GradientTransformationExtraArgs:
    """Adds `decay(step)` times the parameters that `mask` selects."""

    def update(updates: Any, state: Any, params: Any, *, step: jax.Array, **others: Any) -> tuple[Any, Any]:
        del others
        factor = decay(step)
        return jax.tree.map(lambda u, p, on: u + factor * p if on else u, updates, params, mask), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def rate_batch(global_batch: int, views: int, counts: str | None) -> int:
    """The batch that a base rate is scaled by.

    Args:
      global_batch: records per optimizer step.
      views: samples that a record gives.
      counts: 'videos' or 'views'; None where they are the same.

    Raises:
      UserError: another word, or None where the two differ: neither would be a safe guess.
    """
    if counts not in (None, *RATE_COUNTS):
        raise UserError(f'optim.rate_counts must be one of {", ".join(RATE_COUNTS)}, not {counts!r}')
    if counts is None and views > 1:
        raise UserError(
            f'each video gives {views} views, so say what optim.base_rate is scaled by: optim.rate_counts is '
            "'views' in the published pretraining and 'videos' in the published fine-tuning"
        )
    return global_batch * views if counts == 'views' else global_batch


def make_optimizer(
    params: Any,
    layer_index: LayerIndex,
    global_batch: int,
    views: int,
    total_steps: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: float,
    base_rate: float | None = None,
    base_end_rate: float | None = None,
    peak_rate: float | None = None,
    end_rate: float | None = None,
    rate_counts: str | None = None,
    weight_decay: float = 0.05,
    weight_decay_end: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    clip_norm: float | None = None,
    layer_decay: float = 1.0,
    decay: Sequence[str] = ('kernel$', '_token$'),
    no_decay: Sequence[str] = ('(bias|scale|_table)$',),
) -> Optimizer:
    """AdamW with the published schedule. The keyword-only arguments are the config's `optim` section.

    Args:
      params: parameters or their abstract shapes.
      layer_index: the task's map from a parameter path to its layer.
      global_batch: records per optimizer step over all devices.
      views: samples that the data recipe makes of a record.
      total_steps: optimizer steps that the schedules span.
      steps_per_epoch: converts the warm-up.
      warmup_epochs: length of the linear warm-up; may be a fraction.
      base_rate: the published base rate, scaled by a batch / 256; or give `peak_rate`.
      base_end_rate: final rate before the same scaling.
      peak_rate: the absolute highest rate.
      end_rate: the absolute final rate.
      rate_counts: what that batch counts, see `rate_batch`; to be stated where a video gives several views.
      weight_decay: decoupled decay, multiplied by the rate.
      weight_decay_end: the decay goes there on half a cosine over the whole run, without warm-up; None keeps it
        constant.
      betas: Adam's moments.
      epsilon: Adam's epsilon.
      clip_norm: clip the global gradient norm to this; None for no clipping.
      layer_decay: layer-wise rate decay; 1 for none.
      decay: regexes of the parameters that decay.
      no_decay: regexes of those that do not.

    Raises:
      UserError: both or neither of the two spellings of the rate, an unclear `rate_counts`, or a parameter without a
        decay rule.
    """
    if (base_rate is None) == (peak_rate is None):
        raise UserError('optim: give either base_rate (with base_end_rate) or peak_rate (with end_rate), not both')
    values = (base_rate, base_end_rate, peak_rate, end_rate, weight_decay, weight_decay_end, warmup_epochs)
    if any(value is not None and value < 0 for value in values) or not 0 < layer_decay <= 1:
        raise UserError('optim: rates, weight decays and warmup_epochs must not be negative, layer_decay in (0, 1]')
    if base_rate is not None:
        batch = rate_batch(global_batch, views, rate_counts)
        peak, end = (schedules.scaled_rate(rate, batch) for rate in (base_rate, base_end_rate or 0.0))
    else:
        assert peak_rate is not None
        peak, end = peak_rate, end_rate or 0.0
    schedule = schedules.warmup_cosine(peak, end, round(warmup_epochs * steps_per_epoch), total_steps)
    changing = None
    if weight_decay_end is not None:
        changing = schedules.warmup_cosine(weight_decay, weight_decay_end, 0, total_steps)
    parts = [
        optax.scale_by_adam(*betas, eps=epsilon),
        _decayed_weights(changing or (lambda _: jnp.float32(weight_decay)), decay_mask(params, decay, no_decay)),
    ]
    if clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if layer_decay != 1.0:
        parts.append(_scale_by(layer_scales(params, layer_decay, layer_index)))
    return Optimizer(optax.chain(*parts), schedule, changing)


def apply_rate(updates: Any, rate: jax.Array) -> Any:
    """Unit-rate directions -> updates to add to the parameters."""
    return jax.tree.map(lambda u: -jnp.asarray(rate, u.dtype) * u, updates)
