"""Changes to a config that make it fit a machine and leave the mathematics alone: accumulation, remat, mesh axes.

The global batch, and with it rates, schedules and the order of the data, stays what it is. Accumulated gradients are
the same sums in another order, remat computes the same numbers twice, mesh axes only say where they are.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import ml_collections

from mvdjax import config as configs
from mvdjax.analysis import plan_estimate
from mvdjax.analysis.plan_estimate import Estimate
from mvdjax.analysis.plan_step import Step, list_length, make_step
from mvdjax.analysis.plan_topology import Topology
from mvdjax.data.pipeline import Data
from mvdjax.errors import UserError
from mvdjax.settings import Run

REMAT = ('none', 'dots', 'full')


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A config that fits by formula.

    Attributes:
      overrides: to be added to the command line.
      step: what they make.
      estimate: of it.
    """

    overrides: tuple[str, ...]
    step: Step
    estimate: Estimate

    @property
    def seconds(self) -> float:
        """Of a step by formula; infinity where no peak rate is known."""
        parts = self.estimate.seconds_work, self.estimate.seconds_links
        return math.inf if parts[0] is None or parts[1] is None else parts[0] + parts[1]


def batches(config: ml_collections.ConfigDict) -> list[int]:
    """Records per step of every stream."""
    return [config.run.global_batch, *(stream.batch for stream in configs.side_streams(config).values())]


def mesh_for(config: ml_collections.ConfigDict, devices: int) -> dict[str, int]:
    """Axes over which the batches divide: what `data` cannot take goes to `tensor`."""
    shards = math.gcd(devices, *batches(config))
    return {'data': -1, 'fsdp': 1, 'tensor': devices // shards}


def accumulations(config: ml_collections.ConfigDict, shards: int, views: int) -> list[int]:
    """Numbers of micro-batches that divide every batch, keep mixing groups whole, and leave a clip for every device."""
    found = math.gcd(*batches(config)) // shards
    mix = config.task.get('mix', None)
    group = mix.group if mix else 1
    rows = config.run.global_batch * views
    return [n for n in range(1, found + 1) if found % n == 0 and rows % (n * group) == 0]


def remat_overrides(config: ml_collections.ConfigDict, policy: str) -> list[str]:
    """Overrides that set the policy wherever the config states one."""

    def states(node: ml_collections.ConfigDict, path: str) -> Iterator[str]:
        for name, child in node.items():
            if name == 'remat' and child != policy:
                yield f'--config.{path}.remat={policy}'
            elif isinstance(child, ml_collections.ConfigDict):
                yield from states(child, f'{path}.{name}')

    return list(states(config.task, 'task'))


def policies(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Remat policies to choose from: the config's own where it states none to change."""
    return REMAT if any(remat_overrides(config, policy) for policy in REMAT) else ('',)


def proposals(
    spec: str, overrides: Sequence[str], topology: Topology, limit: float, records: int | None = None
) -> list[Proposal]:
    """What fits into `limit` bytes per device by formula, the fastest first.

    For every remat policy the fewest micro-batches that fit; parameters are split over `fsdp` only if nothing fits
    otherwise.

    Raises:
      UserError: nothing fits; the message says what the smallest form takes.
    """
    config = configs.load(spec, overrides)
    records = list_length(config, records)
    mesh = mesh_for(config, topology.count)
    shards = topology.count // mesh['tensor']
    least = math.inf
    for fsdp in (n for n in itertools.takewhile(lambda n: n <= shards, (2**i for i in range(16))) if shards % n == 0):
        found = []
        for policy in policies(config):
            proposal, needed = _fewest(
                spec, overrides, config, topology, {**mesh, 'fsdp': fsdp}, policy, limit, records
            )
            least = min(least, needed)
            found += [proposal] if proposal else []
        if found:
            return sorted(found, key=lambda p: (p.seconds, p.step.run.accumulate))
    raise UserError(
        f'{spec} does not fit {topology.count} devices of {limit / 2**30:.1f} GiB usable memory each, whatever is '
        f'accumulated, rematerialised or sharded: one clip per device takes {least / 2**30:.1f} GiB; use more devices'
    )


def _fewest(
    spec: str,
    overrides: Sequence[str],
    config: ml_collections.ConfigDict,
    topology: Topology,
    mesh: dict[str, int],
    policy: str,
    limit: float,
    records: int | None,
) -> tuple[Proposal | None, float]:
    """(the fewest micro-batches that fit with a policy and a mesh, bytes of the smallest form)."""
    changes = remat_overrides(config, policy) if policy else []
    changes += [f'--config.mesh.{axis}={size}' for axis, size in mesh.items() if size != config.mesh[axis]]
    shards = topology.count // mesh['tensor']
    needed = math.inf
    run: Run = configs.build(Run, configs.section(config, 'run'), 'run')
    step = estimate = None
    for number in accumulations(config, shards, _views(config)):
        if estimate is not None and step is not None:  # activations are linear in the clips: no need to build each
            guess = estimate.needed_with(step.clips / number / step.shards)
            if guess > 1.02 * limit:
                needed = min(needed, guess)
                continue
        more = [f'--config.run.accumulate={number}'] if number != run.accumulate else []
        step = make_step(configs.load(spec, [*overrides, *changes, *more]), topology, records)
        estimate = plan_estimate.estimate(step, topology.device)
        needed = min(needed, estimate.needed)
        if estimate.needed <= limit:
            return Proposal((*changes, *more), step, estimate), needed
    return None, needed


def _views(config: ml_collections.ConfigDict) -> int:
    data: Data = configs.build(Data, configs.section(config, 'data'), 'data')
    return data.make().views
