"""The machines that a plan can be made for: TPU slices through libtpu's compile-only client, this one, GPUs."""

import contextlib
import dataclasses
import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from mvdjax import hardware, sharding
from mvdjax.errors import UserError

# A TPU's compiler searches for faster code most of its time. With this much less of it steps that were compiled both
# ways have the same memory, matrix products, traffic and collectives, in a fraction of the time; from -0.5 down the
# code is worse.
TPU_EFFORT = -0.35
TPU_DIMENSIONS = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}
FORMS = (
    "a TPU slice by its shape ('v5e:16x16', 'v6e:4x4', 'v4:4x4x4', 'v5p:8x8x8'), "
    "this machine's devices ('local:8'), or GPUs ('H100:8')"
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
      name: as it was asked for.
      count: devices.
      device: their figures, or None where they are unknown (the CPU).
      devices: what a mesh can be made of, to compile for; None if there is no compiler here, only formulas.
      version: of the compiler.
      effort: of a TPU's compiler to make its code fast; None for others.
    """

    name: str
    count: int
    device: hardware.Device | None
    devices: tuple[Any, ...] | None
    version: str = ''
    effort: float | None = None

    def mesh(
        self, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: int | None = None, slices: int | None = None
    ) -> Any:
        """A mesh of these devices; the arguments are the config's `mesh` section. Abstract without a compiler.

        Raises:
          UserError: the sizes do not fit the devices.
        """
        if devices is not None and not 1 <= devices <= self.count:
            raise UserError(f'mesh.devices {devices} is not between 1 and the {self.count} devices of {self.name}')
        count = devices or self.count
        if self.devices is not None:
            return sharding.mesh_of(self.devices[:count], data, fsdp, tensor, slices)
        sizes = sharding.axis_sizes(count, data, fsdp, tensor)
        return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def find(name: str, effort: float | None = None) -> Topology:
    """The topology of a name, see `FORMS`.

    Args:
      name: as it was asked for.
      effort: of a TPU's compiler to make its code fast, from -1 to 0, the compiler's own; None for `TPU_EFFORT`.

    Raises:
      UserError: an unknown name, a shape that the TPU does not come in, more devices than there are, or no libtpu.
    """
    kind, _, shape = name.partition(':')
    if kind.lower() in TPU_DIMENSIONS:
        return _tpu(name, kind.lower(), shape, TPU_EFFORT if effort is None else effort)
    device = hardware.find(kind)
    if not re.fullmatch(r'[1-9]\d*', shape) or (kind != 'local' and device is None):
        gpus = ', '.join(d.name for d in hardware.DEVICES if d.name not in TPU_DIMENSIONS)
        raise UserError(f'there is no topology {name!r}: give {FORMS}; the GPUs known are {gpus}')
    return _local(name, int(shape)) if kind == 'local' else Topology(name, int(shape), device, None)


def _local(name: str, count: int) -> Topology:
    """The first devices of this machine, simulated ones if it has only a CPU."""
    with contextlib.suppress(RuntimeError):  # before the first use of JAX only; later there are as many as there are
        jax.config.update('jax_num_cpu_devices', count)
    devices = jax.devices()
    if len(devices) < count:
        raise UserError(f'{name}: this machine has {len(devices)} {devices[0].platform} devices')
    found = hardware.find(devices[0].device_kind)
    return Topology(name, count, found, tuple(devices[:count]), f'jax {jax.__version__} {devices[0].platform}')


def _tpu(name: str, kind: str, shape: str, effort: float) -> Topology:
    """A TPU slice, from libtpu, which compiles without one."""
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)+', shape) or shape.count('x') + 1 != TPU_DIMENSIONS[kind]:
        raise UserError(
            f'{name!r} is no shape of a TPU {kind}: it has {TPU_DIMENSIONS[kind]} dimensions, as '
            f'{kind}:{"16x16" if TPU_DIMENSIONS[kind] == 2 else "4x4x4"}'
        )
    try:
        import libtpu
    except ImportError as error:
        raise UserError(
            f"compiling for {name} needs libtpu, which is not installed: pip install 'mvdjax[tpu]' "
            '(any Linux machine will do, no TPU is needed)'
        ) from error
    # No TPU is looked for, neither as a device nor through the metadata server of a cloud machine, and several plans
    # may be made at once.
    os.environ['TPU_SKIP_MDS_QUERY'] = '1'
    quiet = {'TPU_STDERR_LOG_LEVEL': '3', 'TPU_MIN_LOG_LEVEL': '3', 'TPU_WORKER_HOSTNAMES': 'localhost'}
    for variable, value in {**quiet, 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}.items():
        os.environ.setdefault(variable, value)
    jax.config.update('jax_platforms', 'cpu')
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform='tpu', topology_name=f'{kind}:{shape}').devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f'libtpu {libtpu.__version__} does not know the topology {name}: {line}') from error
    count = math.prod(int(n) for n in shape.split('x'))
    if len(devices) != count:
        raise UserError(f'libtpu gives {len(devices)} devices for {name}, not {count}')
    found = hardware.find(devices[0].device_kind)
    version = f'jax {jax.__version__} libtpu {libtpu.__version__}'
    return Topology(name, count, found, tuple(np.ravel(devices)), version, effort)
