"""Memory and time of a step by formula, for devices that there is no compiler for, and to guess before compiling."""

import dataclasses
import json
import math
from typing import Any

import jax

from mvdjax import config as configs
from mvdjax import hardware, trees
from mvdjax.analysis import plan_trace
from mvdjax.analysis.plan_compile import compute_dtype
from mvdjax.analysis.plan_step import Step
from mvdjax.analysis.plan_topology import TPU_DIMENSIONS

USABLE = 0.92  # of a GPU's memory: the rest goes to the driver, its libraries and fragmentation


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step takes per device, by formula.

    Attributes:
      kinds: bytes by kind: what lives between steps, then what lives within one.
      clip: bytes of activations per clip in flight.
      clips: clips of a micro-batch on a device.
      flops: of matrix products, with what remat computes again.
      seconds_compute: flops at the peak; None where no peak is known.
      seconds_work: every product at the slower of arithmetic and memory, and the update of the parameters.
      seconds_links: gradients and, with fsdp, parameters over the links, by the ring algorithm.
      links: bytes that a device sends.
    """

    kinds: dict[str, float]
    clip: float
    clips: float
    flops: float
    seconds_compute: float | None
    seconds_work: float | None
    seconds_links: float | None
    links: float

    @property
    def needed(self) -> float:
        """All bytes."""
        return sum(self.kinds.values())

    def needed_with(self, clips: float) -> float:
        """All bytes with another number of clips in flight."""
        return self.needed + (clips - self.clips) * self.clip


def placed_bytes(tree: Any) -> float:
    """Bytes per device of abstract arrays with shardings."""
    return float(
        sum(
            x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
            for x in jax.tree.leaves(tree)
            if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        )
    )


def standing_bytes(step: Step) -> dict[str, float]:
    """Bytes per device of what lives between steps, by kind: exact, from shapes and shardings."""
    return {
        'parameters': placed_bytes(step.state.params),
        'optimizer': placed_bytes(step.state.opt_state),
        'average': placed_bytes(step.state.ema) if step.state.ema is not None else 0.0,
        'teachers': placed_bytes(step.frozen),
        'batch': placed_bytes(step.batch),
    }


def smallest_batch(step: Step) -> int:
    """The least clips that a micro-batch may grow or shrink by: views, side streams and mixing groups stay whole."""
    main = step.run.global_batch
    unit = step.views
    for stream in configs.side_streams(step.config).values():
        unit = math.lcm(unit, step.views * main // math.gcd(main, stream.batch))
    mix = step.config.task.get('mix', None)
    return math.lcm(unit, mix.group) if mix else unit


_TRACED: dict[str, plan_trace.Gradient] = {}  # by task and shapes of a clip: the same for all machines and batches


def fused_attention(device: hardware.Device | None, dtype: str) -> bool:
    """Whether attention is one kernel there: cuDNN's, on GPUs since Ampere in bfloat16 (`models.attention`)."""
    return (
        device is not None and device.name not in TPU_DIMENSIONS and device.bfloat16 is not None and dtype != 'float32'
    )


def traced(step: Step, fused: bool) -> plan_trace.Gradient:
    """The step's gradient, traced once for all batches."""
    unit = smallest_batch(step)
    shapes = jax.tree.map(lambda x: (x.shape[0] / step.clips, *x.shape[1:]), step.batch)
    key = json.dumps(
        [step.config.task_name, step.config.task.to_dict(), shapes, unit, fused], sort_keys=True, default=str
    )
    if key not in _TRACED:
        _TRACED[key] = plan_trace.trace(step.task, step.batch, step.clips, unit, fused)
    return _TRACED[key]


def estimate(step: Step, device: hardware.Device | None) -> Estimate:
    """The formula.

    Activations are those that the traced gradient keeps alive (see `plan_trace`), per clip; gradients are as large as
    the parameters, and twice that with accumulation; 16-bit copies of the weights are made once for every gradient.
    """
    shards = step.shards
    clips = step.clips / step.run.accumulate
    dtype = compute_dtype(step)
    program = traced(step, fused_attention(device, dtype))
    clip = program.clip_bytes / step.mesh.shape['tensor']
    parameters = placed_bytes(step.state.params)
    kinds = standing_bytes(step)
    kinds['gradients'] = parameters * (2 if step.run.accumulate > 1 else 1)
    kinds['copies'] = 0.5 * parameters if dtype == 'bfloat16' else 0.0
    kinds['activations'] = clip * clips / shards
    found = list(program.products(clips / shards))  # those of a shard, whose weights are read for its clips alone
    parts = step.run.accumulate / step.mesh.shape['tensor']
    flops = parts * sum(p.flops * p.times for p in found)
    peak = hardware.peak_flops(device.name, dtype) if device else None
    if device is None or peak is None:
        return Estimate(kinds, clip, clips / shards, flops, None, None, None, 0.0)
    # Parameters, gradients and both moments are read, all but the gradients written.
    update = 7 * parameters / device.bandwidth
    work = sum(max(p.flops / peak, p.bytes / device.bandwidth) * p.times for p in found)
    links = _links(step, 2 if dtype == 'bfloat16' else 4)
    return Estimate(
        kinds,
        clip,
        clips / shards,
        flops,
        flops / peak,
        parts * work + update,
        links / device.link,
        links,
    )


def _links(step: Step, width: int) -> float:
    """Bytes that a device sends per step, by rings: the gradients' sums over data, the weights gathered over fsdp."""
    data, fsdp = step.mesh.shape['data'], step.mesh.shape['fsdp']
    values = trees.count(step.state.params) / step.mesh.shape['tensor']
    gathered = (fsdp - 1) / fsdp * width * (3 * values + trees.count(step.frozen))  # forward, backward, and gradients
    summed = 2 * (data - 1) / data * width * values / fsdp
    return step.run.accumulate * (gathered + summed)
