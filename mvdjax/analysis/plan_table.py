"""The table of docs/scaling.md: every published recipe on machines that we do not have, compiled or by formula.

Compiling a row takes minutes, so rows are kept in a JSON beside the table: a row is compiled again only when its
program has changed. The command may be stopped at any time and started again.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from mvdjax import hardware
from mvdjax.analysis import plan_compile, plan_estimate, plan_text, plan_topology
from mvdjax.analysis.plan_compile import GIB, Compiled
from mvdjax.analysis.plan_proposal import Proposal, proposals
from mvdjax.analysis.plan_result import result
from mvdjax.analysis.plan_topology import Topology
from mvdjax.console import say
from mvdjax.errors import UserError

TOPOLOGIES = ('v5e:16x16', 'v6e:16x16', 'v5p:8x8x8', 'H100:8', 'H200:8')
NOT_PUBLISHED = re.compile('demo_|own_videos|tokenizer')  # demonstrations, and what is ours
NO_ROOM = 0.98  # of a TPU's memory by the data sheet is what its compiler has to give

NAMES = {
    'v5e:16x16': 'TPU v5e, 256 chips (16 x 16)',
    'v6e:16x16': 'TPU v6e, 256 chips (16 x 16)',
    'v5p:8x8x8': 'TPU v5p, 512 chips (8 x 8 x 8)',
    'H100:8': '8 x H100 80 GB (SXM, one node)',
    'H200:8': '8 x H200 141 GB (SXM, one node)',
}
INTRODUCTION = """# Scaling

What every published recipe takes on machines that we do not have. This page is written by

    mvdjax plan --table=docs/scaling.md

which compiles the real train step of each recipe for TPU slices through libtpu's compile-only client (extra `tpu`, no
TPU needed) and keeps what it found in `scaling.json` beside it, so that it can be stopped and goes on where it was; a
row is compiled again when its program has changed. The compiler is told to search less for faster code
(`--effort=-0.35`): three steps that were compiled both ways have the same memory, products, traffic and collectives,
to the byte, in a fraction of the time. "compiler (-1)" marks rows of the least effort: Swins, whose many different
blocks take eight times as long, and some more (`--only=... --effort=-0.35` compiles one again). Of three steps with it
memory was within 5 %, the step up to a fifth longer. Rows "by formula" were not compiled: GPUs always, and any TPU
that compiling has not come to. None of these numbers is a measurement; those are in [benchmarks.md](benchmarks.md).

The batch is the published one throughout. "changes" is what to add to the command line, each with `--config.` in
front (`remat=...` stands for every `remat` of the task section): fewer or more micro-batches, recomputed activations,
or a `tensor` axis where the published batch does not divide by the devices; none of them changes the mathematics. The
first form that fits, the fastest by formula, is shown; `mvdjax plan --config=... --devices=N --memory=24G` proposes
the same for any machine. GiB are of the whole step per device; a compiler's are arguments and temporaries added up,
some of which share memory, so that a step may fit although the sum is larger than the device (ViT-H's fine-tuning on
v5e: 16.2 GiB, of which 12.2 are alive at a time). Hours are of the whole run at that speed.

**Step time**, by compiler: every instruction of the compiled program takes the longer of FLOPs / peak and bytes moved
/ memory bandwidth, one after the other, loops as often as they run; then what collectives send (ring algorithm) /
link bandwidth. Nothing overlaps, and every rate is that of the data sheet (`mvdjax/hardware.py`). By formula: the
same over the matrix products of the traced step, which leaves out norms, softmax and other memory-bound work, so
these rows are bounds
("> " and "< "), not forecasts; below is how far off they were where a row was compiled. Real matrix units reach 60 to
90 % of their peak.

**MFU** is model FLOPs (by formula, `mvdjax/flops.py`; what remat computes again is not counted) / (peak x step time).

**Memory** by formula is parameters, moments, teachers and batch as sharded (exact), gradients, 16-bit copies of
weights, and the activations that the traced gradient keeps alive; 92 % of a GPU's memory are planned for.
"""


def published(folder: str = 'configs') -> list[str]:
    """The configs of published runs."""
    found = sorted(
        path for path in Path(folder).glob('*/[!_]*.py') if not NOT_PUBLISHED.match(path.stem.removeprefix('in1k_'))
    )
    if not found:
        raise UserError(f'there are no configs in {folder}/: start the command in the folder of the repository')
    return [path.as_posix() for path in found]


def stand_in(name: str) -> Topology:
    """A topology by formula where its compiler is not to be asked."""
    kind, _, shape = name.partition(':')
    found = hardware.find(kind)
    return Topology(name, math.prod(int(side) for side in shape.split('x')), found, None)


def usable(topology: Topology) -> float:
    """Bytes of a device that a step may take by formula."""
    assert topology.device is not None
    tpu = topology.device.name in plan_topology.TPU_DIMENSIONS
    return topology.device.memory * (NO_ROOM if tpu else plan_estimate.USABLE)


class Cache:
    """Rows by 'config topology', in a JSON file."""

    def __init__(self, path: str) -> None:
        """Reads the file if it is there."""
        self.path = path
        self.rows: dict[str, Any] = json.loads(Path(path).read_text()) if os.path.exists(path) else {}

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Adds a row and writes the file, whole or not at all."""
        self.rows[key] = row
        part = Path(f'{self.path}.part')
        part.write_text(json.dumps(self.rows, indent=1, sort_keys=True) + '\n')
        part.replace(self.path)


def make_row(config: str, name: str, cache: Cache, compile_it: bool, effort: float | None = None) -> dict[str, Any]:
    """A row of the table; compiled and cached, taken from the cache, or by formula.

    With an `effort` a cached row will not do that was compiled with another one; None takes the default, and any row.
    """
    key = f'{config} {name}'
    tpu = name.partition(':')[0] in plan_topology.TPU_DIMENSIONS
    old = cache.rows.get(key)
    if old is not None and tpu and not compile_it:
        return old
    topology = plan_topology.find(name, effort) if tpu and compile_it else stand_in(name)
    try:
        found = proposals(config, (), topology, usable(topology))
    except UserError as error:
        return {'config': config, 'topology': name, 'refused': str(error)}
    if not (tpu and compile_it):
        best = found[0]
        return {'config': config, 'overrides': list(best.overrides), **result(best.step, topology, best.estimate, None)}
    if old is not None and effort not in (None, old['compiled'].get('effort')):
        old = None
    row = _compiled(config, topology, found, old)
    cache.put(key, row)
    return row


def _compiled(config: str, topology: Topology, found: Sequence[Proposal], old: Any) -> dict[str, Any]:
    """The first proposal that the compiler finds room for."""
    row: dict[str, Any] = {}
    for proposal in found:
        lowered, program = plan_compile.lower(proposal.step)
        if old is not None and (old['overrides'], old['program']) == (list(proposal.overrides), program):
            return old
        compiled: Compiled = plan_compile.compile_step(proposal.step, topology, lowered, program)
        row = {
            'config': config,
            'overrides': list(proposal.overrides),
            'program': program,
            'compiled': dataclasses.asdict(compiled),
            'formula': {'needed': proposal.estimate.needed, 'seconds_step': proposal.seconds},
            **result(proposal.step, topology, proposal.estimate, compiled),
        }
        jax.clear_caches()
        if compiled.fits:
            break
    return row


def rows(cache: Cache, only: str, compile_it: bool, effort: float | None = None) -> Iterator[dict[str, Any]]:
    """All rows; those that match `only` are compiled where they have to be."""
    for name in TOPOLOGIES:
        for config in published():
            wanted = compile_it and re.search(only, f'{config} {name}') is not None
            row = make_row(config, name, cache, wanted, effort)
            if wanted:
                say(f'{config} {name}: {_status(row)}')
            yield row


def _status(row: dict[str, Any]) -> str:
    if 'refused' in row:
        return row['refused']
    memory = row['memory']
    fits = 'fits' if memory['fits'] else 'does not fit'
    return f'{fits}, {memory["needed"] / GIB:.1f} GiB by {memory["from"]}'


def page(found: Sequence[dict[str, Any]]) -> str:
    """The whole document."""
    lines = [INTRODUCTION]
    for name in TOPOLOGIES:
        mine = [row for row in found if row['topology'] == name]
        lines += [f'## {NAMES[name]}', '', *plan_text.table(mine), '']
    compared = [row for row in found if 'compiled' in row and row['memory']['fits']]
    return '\n'.join([*lines, *_comparison(compared)])


def _comparison(compiled: Sequence[dict[str, Any]]) -> list[str]:
    """How the formula's memory compares with the compiler's, where both are known."""
    ratios = sorted(row['formula']['needed'] / row['memory']['needed'] for row in compiled)
    times = sorted(row['formula']['seconds_step'] / row['time']['seconds_step'] for row in compiled)
    if not ratios:
        return []
    middle = len(ratios) // 2
    versions = sorted({row['compiled']['compiler'] for row in compiled})
    return [
        '## How good the formulas are',
        '',
        f'Over the {len(ratios)} rows that were compiled and fit, the memory by formula is {ratios[0]:.2f} to '
        f'{ratios[-1]:.2f} times what the compiler takes (median {ratios[middle]:.2f}), the step time by formula '
        f'{times[0]:.2f} to {times[-1]:.2f} times that from the compiled program (median {times[middle]:.2f}). '
        f'Compiled by {", ".join(versions)}.',
        '',
    ]
