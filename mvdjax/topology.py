"""Which device stands where in the mesh, and which rows of a batch each process therefore reads.

Parameters are gathered and reduced over 'fsdp' and 'tensor' in every layer, gradients over 'data' once a step. So the
devices of a TPU slice, or of a rack, are neighbours on the inner axes, and slices are laid along 'data'.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mvdjax import processes
from mvdjax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')


def place_devices(devices: Sequence[Any], sizes: tuple[int, int, int], slices: int | None = None) -> np.ndarray:
    """The devices as an array (data, fsdp, tensor).

    Within a slice JAX arranges them as the wires run.

    Args:
      devices: all of the mesh.
      sizes: of the axes.
      slices: groups of devices that are linked among each other by a slower network; None asks the devices, which
        know it on TPUs.

    Raises:
      UserError: the slices are no equal parts of the data axis.
    """
    groups = slice_groups(devices, slices)
    data, fsdp, tensor = sizes
    if data % len(groups):
        raise UserError(
            f'mesh data={data} does not divide by {len(groups)} slices, and parameters (fsdp={fsdp}, tensor={tensor}) '
            'are not split over slices: make data a multiple of their number'
        )
    inner = (data // len(groups), fsdp, tensor)
    # `jax.make_mesh` refuses to split an axis of a torus of most TPUs: fsdp=8 on 16 x 16 chips of v6e.
    arranged = [mesh_utils.create_device_mesh(inner, group, allow_split_physical_axes=True) for group in groups]
    return np.concatenate(arranged)


def slice_groups(devices: Sequence[Any], slices: int | None = None) -> list[list[Any]]:
    """The devices of each slice, slices in order: by the slice they name, else in equal runs of processes.

    Raises:
      UserError: they are not as many as `slices` says, or not of one size.
    """
    named: dict[int, list[Any]] = {}
    for device in devices:
        named.setdefault(getattr(device, 'slice_index', None) or 0, []).append(device)
    groups = [named[key] for key in sorted(named)]
    if slices is not None and slices != len(groups):
        if len(groups) > 1 or len(devices) % slices:
            raise UserError(
                f'mesh.slices is {slices}, and the {len(devices)} devices are in {len(groups)} slices: leave it at '
                'None, or give what there is'
            )
        ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
        size = len(devices) // slices
        groups = [ordered[i : i + size] for i in range(0, len(devices), size)]
    if len({len(group) for group in groups}) > 1:
        raise UserError(f'the slices have {", ".join(str(len(g)) for g in groups)} devices: they must be alike')
    return groups


def meet(mesh: Mesh) -> None:
    """Lets the devices of several processes connect, while all processes are at the same point of the program.

    Groups of devices connect when they first compute together, and give up on a process that is half a minute late. In
    the first step one would be: it compiles, where another finds the executable in a cache.
    """
    if processes.count() == 1:
        return
    axes = [axis for axis in AXES if mesh.shape[axis] > 1]
    ones = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, P(AXES)), lambda _: np.ones(1, np.float32))
    for group in (g for n in range(1, len(axes) + 1) for g in itertools.combinations(axes, n)):
        rest = tuple(axis for axis in AXES if axis not in group)
        add = functools.partial(jax.lax.psum, axis_name=group)
        summed = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=P(AXES), out_specs=P(rest)))
        processes.barrier(f'meeting of {" ".join(group)}')
        jax.block_until_ready(summed(ones))


def batch_parts(mesh: Mesh, process: int) -> tuple[tuple[int, ...], int]:
    """The parts of every batch whose rows a process's devices hold, and how many parts there are.

    Devices that differ on 'tensor' alone hold the same rows; processes that have such devices read the same.
    """
    rows = mesh.devices.reshape(-1, mesh.shape['tensor'])
    parts = [i for i, row in enumerate(rows) if any(device.process_index == process for device in row)]
    return tuple(parts), len(rows)
