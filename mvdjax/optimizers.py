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


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`transform` makes unit-rate descent directions; the step multiplies them by -`schedule(step)`.

    The rate follows the step counter of the state, not a counter of its own, so that a skipped (non-finite) step
    does not shift the schedule.
    """

    transform: optax.GradientTransformation
    schedule: schedules.Schedule


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


def make_optimizer(
    params: Any,
    layer_index: LayerIndex,
    global_batch: int,
    total_steps: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: float,
    base_rate: float | None = None,
    base_end_rate: float | None = None,
    peak_rate: float | None = None,
    end_rate: float | None = None,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    clip_norm: float | None = None,
    layer_decay: float = 1.0,
    decay: Sequence[str] = ('kernel$', '_token$'),
    no_decay: Sequence[str] = ('(bias|scale)$',),
) -> Optimizer:
    """AdamW with the published schedule. The keyword-only arguments are the config's `optim` section.

    Args:
      params: parameters or their abstract shapes.
      layer_index: the task's map from a parameter path to its layer.
      global_batch: samples per optimizer step over all devices.
      total_steps: optimizer steps of the run.
      steps_per_epoch: converts the warm-up.
      warmup_epochs: length of the linear warm-up; may be a fraction.
      base_rate: the published base rate, scaled by global_batch / 256; or give `peak_rate`.
      base_end_rate: final rate before the same scaling.
      peak_rate: the absolute highest rate.
      end_rate: the absolute final rate.
      weight_decay: decoupled decay, multiplied by the rate.
      betas: Adam's moments.
      epsilon: Adam's epsilon.
      clip_norm: clip the global gradient norm to this; None for no clipping.
      layer_decay: layer-wise rate decay; 1 for none.
      decay: regexes of the parameters that decay.
      no_decay: regexes of those that do not.

    Raises:
      UserError: both or neither of the two spellings of the rate, or a parameter without a decay rule.
    """
    if (base_rate is None) == (peak_rate is None):
        raise UserError('optim: give either base_rate (with base_end_rate) or peak_rate (with end_rate), not both')
    values = (base_rate, base_end_rate, peak_rate, end_rate, weight_decay, warmup_epochs)
    if any(value is not None and value < 0 for value in values) or not 0 < layer_decay <= 1:
        raise UserError('optim: rates, weight_decay and warmup_epochs must not be negative, layer_decay in (0, 1]')
    if base_rate is not None:
        peak = schedules.scaled_rate(base_rate, global_batch)
        end = schedules.scaled_rate(base_end_rate or 0.0, global_batch)
    else:
        assert peak_rate is not None
        peak, end = peak_rate, end_rate or 0.0
    schedule = schedules.warmup_cosine(peak, end, round(warmup_epochs * steps_per_epoch), total_steps)
    parts = [
        optax.scale_by_adam(*betas, eps=epsilon),
        optax.add_decayed_weights(weight_decay, mask=decay_mask(params, decay, no_decay)),
    ]
    if clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if layer_decay != 1.0:
        parts.append(_scale_by(layer_scales(params, layer_decay, layer_index)))
    return Optimizer(optax.chain(*parts), schedule)


def apply_rate(updates: Any, rate: jax.Array) -> Any:
    """Unit-rate directions -> updates to add to the parameters."""
    return jax.tree.map(lambda u: -jnp.asarray(rate, u.dtype) * u, updates)
