"""From what a compiler or the formulas say of a step to a plan: what fits, how fast it is, how long the run takes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import ml_collections

from mvdjax import config as configs
from mvdjax import hardware, trees
from mvdjax.analysis import plan_compile, plan_estimate
from mvdjax.analysis.plan_compile import GIB, Compiled
from mvdjax.analysis.plan_estimate import Estimate
from mvdjax.analysis.plan_step import Step, list_length, make_step
from mvdjax.analysis.plan_topology import Topology

FORMULA = (
    'step time = sum over instructions of max(FLOPs / peak, bytes / bandwidth) + bytes sent by collectives / link '
    'bandwidth; MFU = model FLOPs / (peak x step time)'
)
CAVEAT = (
    'No instruction is assumed faster or slower than these rates and nothing to overlap: real matrix units reach 60 to '
    '90 % of their peak, real schedulers hide part of the collectives. Data loading, evaluation '
    'and checkpoints are left out'
)


def model_flops(step: Step) -> dict[str, float]:
    """Model FLOPs per clip, by part."""
    return {part: value / step.clips for part, value in step.task.flops(step.batch).items()}


def result(step: Step, topology: Topology, guess: Estimate, compiled: Compiled | None) -> dict[str, Any]:
    """The plan of a step as JSON.

    Args:
      step: the step.
      topology: its machine.
      guess: by formula.
      compiled: by the compiler, or None where there is none.
    """
    device = topology.device
    kinds = plan_estimate.standing_bytes(step)
    seen = compiled if compiled is not None and compiled.fits else None
    if seen is not None:
        kinds['layout'] = max(0.0, seen.arguments - sum(kinds.values()))
        kinds['temporaries'], kinds['code'] = seen.temporaries, seen.code
    else:
        kinds |= {name: guess.kinds[name] for name in ('gradients', 'copies', 'activations')}
    limit = _limit(topology, compiled)
    needed = compiled.needed if compiled is not None else guess.needed
    fits = compiled.fits if compiled is not None else (None if limit is None else needed <= limit)
    dtype = plan_compile.compute_dtype(step)
    made = {
        'devices': topology.count,
        'topology': topology.name,
        'device': None if device is None else dataclasses.asdict(device),
        'mesh': dict(step.mesh.shape),
        'batch': {
            'global': step.run.global_batch,
            'views': step.views,
            'clips': step.clips,
            'accumulate': step.run.accumulate,
            'shards': step.shards,
            'clips_per_device': guess.clips,
        },
        'parameters': trees.count(step.state.params),
        'teacher_parameters': trees.count(step.frozen),
        'dtype': dtype,
        'memory': {
            'from': 'formula' if compiled is None else 'compiler',
            'kinds': kinds,
            'needed': needed,
            'limit': limit,
            'fits': fits,
            'per_clip': guess.clip,
            'refusal': '' if compiled is None else compiled.refusal,
        },
        'flops': {
            'model_per_clip': model_flops(step),
            'executed_per_clip': (seen.flops if seen else guess.flops) * step.mesh.size / step.clips,
            'counted_once_per_clip': seen.counted_once * step.mesh.size / step.clips if seen else None,
        },
        'collectives': list(seen.collectives) if seen else None,
        'loops_of_unknown_length': seen.loops_of_unknown_length if seen else 0,
        'compiler': None if compiled is None else {'version': compiled.compiler, 'seconds': compiled.seconds},
    }
    return {**made, 'time': _time(step, device, guess, seen, dtype)}


def _limit(topology: Topology, compiled: Compiled | None) -> float | None:
    if compiled is not None and compiled.limit is not None:
        return compiled.limit
    if topology.device is None:
        return None
    return topology.device.memory * (1.0 if compiled is not None else plan_estimate.USABLE)


def _time(
    step: Step, device: hardware.Device | None, guess: Estimate, seen: Compiled | None, dtype: str
) -> dict[str, Any] | None:
    peak = hardware.peak_flops(device.name, dtype) if device else None
    parts = seen or guess
    if device is None or peak is None or parts.seconds_work is None or parts.seconds_links is None:
        return None
    seconds = parts.seconds_work + parts.seconds_links
    model = sum(step.task.flops(step.batch).values()) / step.mesh.size
    steps = step.steps
    hours = None if steps is None else steps * seconds / 3600
    return {
        'from': 'formula' if seen is None else 'compiler',
        'seconds_compute': parts.seconds_compute,
        'seconds_memory': seen.seconds_memory if seen else None,
        'seconds_work': parts.seconds_work,
        'seconds_links': parts.seconds_links,
        'seconds_step': seconds,
        'clips_per_second': step.clips / seconds,
        'mfu': model / (peak * seconds),
        'steps': steps,
        'hours': hours,
        'device_hours': None if hours is None else hours * step.mesh.size,
    }


def with_batch(config: ml_collections.ConfigDict, step: Step, clips_per_device: int) -> ml_collections.ConfigDict:
    """The config with another number of clips in flight per device; side streams keep their ratio."""
    records = clips_per_device * step.shards * step.run.accumulate // step.views
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.run.global_batch = records
    for stream in changed.streams.values():
        stream.batch = stream.batch * records // step.run.global_batch
    return changed.lock()


def largest_batch(
    config: ml_collections.ConfigDict, topology: Topology, step: Step, guess: Estimate, compiled: Compiled | None
) -> dict[str, Any] | None:
    """The most clips per device that fit: extrapolated from two sizes, and verified where there is a compiler.

    Without a compiler, by the formula. None if no limit is known, or not even the smallest fits.
    """
    limit = _limit(topology, compiled)
    unit = math.lcm(
        step.views, plan_estimate.smallest_batch(step) // math.gcd(plan_estimate.smallest_batch(step), step.shards)
    )
    if limit is None:
        return None
    if compiled is None:
        found = _whole(guess.clips + (limit - guess.needed) / guess.clip, unit)
        return {'clips_per_device': found, 'how': 'by formula'} if found else None
    tried: dict[int, Compiled] = {round(guess.clips): compiled}

    def attempt(clips: int) -> Compiled:
        if clips not in tried:
            again = make_step(with_batch(config, step, clips), topology, step.records)
            tried[clips] = plan_compile.compile_step(again, topology)
        return tried[clips]

    other = max(unit, _whole(guess.clips * (0.5 if not compiled.fits else 2), unit))
    attempt(other)
    sizes = {clips: c for clips, c in tried.items() if c.fits}
    slope = guess.clip
    if len(sizes) == 2:
        (a, small), (b, large) = sorted(sizes.items())
        slope = max((large.needed - small.needed) / (b - a), 0.05 * guess.clip)
    if not sizes:
        return None
    most = max(sizes)
    target = max(most, _whole(most + (limit - sizes[most].needed) / slope, unit))
    for _ in range(3):  # the extrapolation, then halfway back to what is known to fit
        if target <= most or attempt(target).fits:
            break
        target = max(most, _whole((most + target) / 2, unit))
    best = max(clips for clips, c in tried.items() if c.fits)
    return {
        'clips_per_device': best,
        'how': f'verified; extrapolated linearly from two compiles, {len(tried)} compiles in all',
        'needed': tried[best].needed,
    }


def _whole(clips: float, unit: int) -> int:
    return int(clips // unit) * unit


def make_plan(
    spec: str,
    overrides: Sequence[str],
    topology: Topology,
    *,
    records: int | None = None,
    largest: bool = False,
    unrolled: bool = False,
) -> dict[str, Any]:
    """Plans a config on a machine: compiles where there is a compiler, else by formula.

    Args:
      spec: config file, with its argument.
      overrides: of the config.
      topology: the machine.
      records: length of the training list, if it is known better than by name.
      largest: also look for the largest batch per device that fits; takes two or more compiles.
      unrolled: compile the layers one by one, so that the compiler's own count has them all; several times slower.

    Raises:
      UserError: as loading a config and making its step.
    """
    config = configs.load(spec, overrides)
    if unrolled:
        config = unscanned(config)
    step = make_step(config, topology, list_length(config, records))
    guess = plan_estimate.estimate(step, topology.device)
    compiled = plan_compile.compile_step(step, topology) if topology.devices is not None else None
    made = {'config': spec, 'overrides': list(overrides), **result(step, topology, guess, compiled)}
    if largest:
        made['largest'] = largest_batch(config, topology, step, guess, compiled)
    return made


def unscanned(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with every stack of layers unrolled."""
    changed = ml_collections.ConfigDict(config.to_dict())
    for section in model_sections(changed.task):
        section.scan = False
    return changed.lock()


def model_sections(node: Any) -> list[ml_collections.ConfigDict]:
    """The sections below one that describe a model: they state a size."""
    if not isinstance(node, ml_collections.ConfigDict):
        return []
    found = [node] if 'variant' in node or 'depth' in node else []
    return found + [section for child in node.values() for section in model_sections(child)]


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f'{size / GIB:.2f}'
