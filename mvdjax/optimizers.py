"""AdamW as an optax chain: clip, Adam, decoupled weight decay, scales of the rate; the rate itself comes last."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvdjax import keywords, schedules, trees
from mvdjax.errors import UserError

LayerIndex = Callable[[str, int], Any]  # (path, depth) -> int or (depth,) ints for a stacked leaf
RATE_COUNTS = ('videos', 'views')
SCHEDULES = ('warmup_cosine', 'scaled_cosine', 'epoch_cosine')


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
    indices = jax.tree_util.tree_map_with_path(lambda p, _: np.asarray(layer_index(trees.path_name(p), depth)), params)
    last = max(depth + 1, *(int(index.max()) for index in jax.tree.leaves(indices)))

    def scale(leaf: Any, index: np.ndarray) -> np.ndarray:
        return _over_depth(np.float32(layer_decay) ** (last - index).astype(np.float32), leaf)

    return jax.tree.map(scale, params, indices)


def _over_depth(factor: np.ndarray, leaf: Any) -> np.ndarray:
    """A number as it is; one per block with axes that broadcast over the stacked leaf."""
    return factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim)) if factor.ndim else factor


def _shapes(params: Any) -> dict[str, Any]:
    return {path: np.empty(leaf.shape[:1], bool) for path, leaf in trees.flatten(params).items()}


def longest_key(name: str, keys: Iterable[str]) -> str | None:
    """The longest of the keys that a name contains, the alphabetically first of equally long ones; None without any.

    Source: mmcv's optimizer constructor (golden: bevt/param_groups_*). The winner decides everything about a parameter,
    and no shorter key is asked: where 'backbone' is a key, 'norm' says nothing about the backbone's norms.
    """
    return min((key for key in keys if key in name), key=lambda key: (-len(key), key), default=None)


def group_factors(params: Any, groups: Mapping[str, Sequence[float]]) -> tuple[Any, Any]:
    """Factors of the rate and of the weight decay for every parameter.

    Args:
      params: parameters or their abstract shapes. A parameter's name is its path, 'a/b/c'; in a stack of blocks
        'blocks' reads 'block_0', 'block_1', ..., so that a key can mean one block.
      groups: key -> (factor of the rate, factor of the decay), see `longest_key`; both are 1 where no key is found.

    Returns:
      Two trees of float32 scalars, or vectors over the depth axis of stacked leaves.

    Raises:
      UserError: a factor is negative, or a key that no name contains.
    """
    wrong = [key for key, pair in groups.items() if len(pair) != 2 or min(pair) < 0]
    if wrong:
        raise UserError(f'optim.groups.{wrong[0]} must be (factor of the rate, factor of the decay), both at least 0')
    names = {path: block_names(path, len(leaf)) for path, leaf in _shapes(params).items()}
    every = [name for found in names.values() for name in found]
    for key in groups:
        if not any(key in name for name in every):
            raise UserError(
                f'optim.groups: no parameter has {key!r} in its name; {keywords.nearest(key, every)}'
                'take the key out, or write it as the names are written'
            )

    def factors(which: int) -> Any:
        def of(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
            found = [longest_key(name, groups) for name in names[trees.path_name(path)]]
            values = np.array([1.0 if key is None else groups[key][which] for key in found], np.float32)
            return _over_depth(values if len(values) > 1 else values[0], leaf)

        return jax.tree_util.tree_map_with_path(of, params)

    return factors(0), factors(1)


def block_names(path: str, depth: int) -> list[str]:
    """The names of a parameter: its path, or one for each block of a stack of `depth`."""
    parts = path.split('/')
    if 'blocks' not in parts:
        return [path]
    return ['/'.join(f'block_{i}' if part == 'blocks' else part for part in parts) for i in range(depth)]


def _scale_by(scales: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales))


def _decayed_weights(decay: schedules.Schedule, factors: Any) -> optax.GradientTransformationExtraArgs:
    """Adds `decay(step)` times the parameters' factors (False or 0: no decay) times the parameters."""

    def update(updates: Any, state: Any, params: Any, *, step: jax.Array, **others: Any) -> tuple[Any, Any]:
        del others
        value = decay(step)
        return jax.tree.map(lambda u, p, f: u + value * f * p if np.any(f) else u, updates, params, factors), state

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
    schedule: str = 'warmup_cosine',
    micro_batches: int = 1,
    weight_decay: float = 0.05,
    weight_decay_end: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    clip_norm: float | None = None,
    layer_decay: float = 1.0,
    groups: Mapping[str, Sequence[float]] | None = None,
    decay: Sequence[str] = ('kernel$', '_token$'),
    no_decay: Sequence[str] = ('(bias|scale|_table)$',),
) -> Optimizer:
    """AdamW with the published schedules. The keyword-only arguments are the config's `optim` section.

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
      schedule: 'warmup_cosine' (MAE, MVD), or mmcv's, which BEVT uses: 'scaled_cosine', and 'epoch_cosine' that changes
        from epoch to epoch, see `schedules.scaled_cosine`.
      micro_batches: of a step in the published run, where mmcv's schedules count them. Belongs to the recipe: another
        run.accumulate does not change it.
      weight_decay: decoupled decay, multiplied by the rate.
      weight_decay_end: the decay goes there on half a cosine over the whole run, without warm-up; None keeps it
        constant.
      betas: Adam's moments.
      epsilon: Adam's epsilon.
      clip_norm: clip the global gradient norm to this; None for no clipping.
      layer_decay: layer-wise rate decay; 1 for none.
      groups: the rate and the decay by parts of parameter names, see `group_factors`; in place of `layer_decay`,
        `decay` and `no_decay`.
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
    rate = make_schedule(schedule, peak, end, warmup_epochs, total_steps, steps_per_epoch, micro_batches)
    changing = None
    if weight_decay_end is not None:
        changing = schedules.warmup_cosine(weight_decay, weight_decay_end, 0, total_steps)
    scales: Any = None
    if groups is None:
        decayed = decay_mask(params, decay, no_decay)
        if layer_decay != 1.0:
            scales = layer_scales(params, layer_decay, layer_index)
    elif layer_decay != 1.0:
        raise UserError('optim: give either groups or layer_decay: both say what rate a parameter has')
    else:
        scales, decayed = group_factors(params, groups)
    parts = [
        optax.scale_by_adam(*betas, eps=epsilon),
        _decayed_weights(changing or (lambda _: jnp.float32(weight_decay)), decayed),
    ]
    if clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if scales is not None:
        parts.append(_scale_by(scales))
    return Optimizer(optax.chain(*parts), rate, changing)


def make_schedule(
    name: str, peak: float, end: float, warmup_epochs: float, steps: int, steps_per_epoch: int, micro_batches: int
) -> schedules.Schedule:
    """A schedule over optimizer steps by its name; see `make_optimizer` for the arguments.

    Raises:
      UserError: an unknown name, `micro_batches` where nothing counts them, or a warm-up longer than the run.
    """
    if name not in SCHEDULES:
        raise UserError(
            f'optim.schedule must be one of {", ".join(SCHEDULES)}, not {name!r}; {keywords.nearest(name, SCHEDULES)}'
        )
    if name == 'warmup_cosine':
        if micro_batches != 1:
            raise UserError("optim.micro_batches counts only in the schedules 'scaled_cosine' and 'epoch_cosine'")
        return schedules.warmup_cosine(peak, end, round(warmup_epochs * steps_per_epoch), steps)
    if micro_batches < 1:
        raise UserError(f'optim.micro_batches must be at least 1, not {micro_batches}')
    epoch = steps_per_epoch * micro_batches
    by_epoch = epoch if name == 'epoch_cosine' else 0
    made = schedules.scaled_cosine(peak, end, warmup_epochs * epoch, steps * micro_batches, by_epoch)
    return schedules.of_micro_batches(made, micro_batches)


def apply_rate(updates: Any, rate: jax.Array) -> Any:
    """Unit-rate directions -> updates to add to the parameters."""
    return jax.tree.map(lambda u: -jnp.asarray(rate, u.dtype) * u, updates)
