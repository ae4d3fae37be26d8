"""Compiles a step ahead of time and notes what the compiler says: memory, matrix products, traffic, collectives."""

import dataclasses
import hashlib
import re
import time
from typing import Any

import jax

from mvdjax import hardware
from mvdjax.analysis.plan_hlo import Program
from mvdjax.analysis.plan_step import Step
from mvdjax.analysis.plan_topology import Topology

GIB = 2**30
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler made of a step, per device. All sizes in bytes; this is what the table's cache holds.

    Attributes:
      program: hash of the program that went in: another one needs compiling anew.
      compiler: versions.
      seconds: that compiling took.
      fits: whether it compiled; else only `needed` and `refusal` mean anything.
      refusal: the compiler's sentence.
      effort: of a TPU's compiler, see `Topology`.
      needed: memory that the step takes, or would take.
      limit: memory that the compiler has to give; None if it knows no limit.
      arguments: state, teachers and batch.
      temporaries: activations, gradients and whatever else lives within the step.
      code: the program itself.
      flops: of matrix products, loops counted as often as they run, with what remat computes again.
      counted_once: the compiler's own count, which takes the body of a loop once.
      traffic: bytes read from and written to memory.
      seconds_compute: flops at the device's peak.
      seconds_memory: traffic at its bandwidth.
      seconds_work: every instruction at the slower of the two, one after the other.
      seconds_links: what collectives send, at the speed of the links.
      collectives: rows of `plan_hlo.Collective`.
      loops_of_unknown_length: loops counted once, since they end when the data says so.
    """

    program: str
    compiler: str
    seconds: float
    fits: bool
    refusal: str = ''
    effort: float | None = None
    needed: float = 0.0
    limit: float | None = None
    arguments: float = 0.0
    temporaries: float = 0.0
    code: float = 0.0
    flops: float = 0.0
    counted_once: float = 0.0
    traffic: float = 0.0
    seconds_compute: float | None = None
    seconds_memory: float | None = None
    seconds_work: float | None = None
    seconds_links: float | None = None
    collectives: tuple[dict[str, Any], ...] = ()
    loops_of_unknown_length: int = 0


def lower(step: Step) -> tuple[Any, str]:
    """(the lowered step, the hash of its program)."""
    lowered = step.function.lower(*step.arguments)
    return lowered, hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]


def compiler_options(topology: Topology) -> dict[str, float]:
    """What to tell the compiler of a topology."""
    return {} if topology.effort is None else {'exec_time_optimization_effort': topology.effort}


def compute_dtype(step: Step) -> str:
    """The type that the task's matrix products are computed in."""
    return str(jax.numpy.dtype(step.task.backbone().dtype))


def compile_step(step: Step, topology: Topology, lowered: Any = None, program: str = '') -> Compiled:
    """Compiles; a step too large for the device comes back as one that does not fit."""
    if lowered is None:
        lowered, program = lower(step)
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options(topology))
    except RuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        needed, limit = refused_sizes(str(error))
        text = str(error).strip().splitlines()[0]
        seconds = time.perf_counter() - start
        return Compiled(program, topology.version, seconds, False, text, topology.effort, needed=needed, limit=limit)
    seconds = time.perf_counter() - start
    return read(compiled, topology, compute_dtype(step), program, seconds)


def refused_sizes(text: str) -> tuple[float, float | None]:
    """(bytes needed, bytes there are) from a compiler's refusal; of several sentences of libtpu's, whichever it is."""
    patterns = (
        r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm',
        r'temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)',
    )
    for pattern in patterns:
        found = re.search(pattern, text)
        if found:
            used, unit, limit, limit_unit = found.groups()
            return float(used) * _UNITS[unit], float(limit) * _UNITS[limit_unit]
    return 0.0, None


def read(compiled: Any, topology: Topology, dtype: str, program: str, seconds: float) -> Compiled:
    """The figures of a compiled program."""
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = Program(compiled.as_text())
    work, collectives, device = text.work(), text.collectives(), topology.device
    flops, traffic = (sum(getattr(w, name) * w.times for w in work) for name in ('flops', 'bytes'))
    peak = device and hardware.peak_flops(device.name, dtype)
    times: dict[str, Any] = {}
    if device and peak:
        times = {
            'seconds_compute': flops / peak,
            'seconds_memory': traffic / device.bandwidth,
            'seconds_work': sum(max(w.flops / peak, w.bytes / device.bandwidth) * w.times for w in work),
            'seconds_links': sum(c.wire for c in collectives) / device.link,
        }
    arguments, temporaries = float(memory.argument_size_in_bytes), float(memory.temp_size_in_bytes)
    fresh = float(memory.output_size_in_bytes - memory.alias_size_in_bytes)  # all but what is donated and returned
    code = float(memory.generated_code_size_in_bytes)
    return Compiled(
        program,
        topology.version,
        seconds,
        True,
        effort=topology.effort,
        needed=arguments + temporaries + fresh + code,
        limit=device.memory if device else None,
        arguments=arguments,
        temporaries=temporaries,
        code=code,
        flops=flops,
        counted_once=float(costs.get('flops', 0.0)),
        traffic=traffic,
        collectives=tuple(dataclasses.asdict(c) for c in collectives),
        loops_of_unknown_length=text.loops_of_unknown_length,
        **times,
    )
