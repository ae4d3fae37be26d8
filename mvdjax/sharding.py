"""One mesh (data, fsdp, tensor), the rules that place parameters on it, and the way batches get to the devices."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mvdjax import topology, trees
from mvdjax.errors import UserError
from mvdjax.models import placement

AXES = topology.AXES

# Leaves whose heads or hidden units are split over 'tensor', and the dimension that is: column-parallel into the
# attention and the MLP, row-parallel out of them.
TENSOR_RULES = (
    ('attn/qkv/kernel', -2),
    ('attn/qkv/bias', -2),
    ('attn/q_bias', -2),
    ('attn/v_bias', -2),
    ('attn/proj/kernel', -3),
    ('attn/relative_position_table', -1),
    ('mlp/fc1/kernel', -1),
    ('mlp/fc1/bias', -1),
    ('mlp/fc2/kernel', -2),
)
MIN_FSDP_SIZE = 2**14  # smaller leaves stay whole: gathering them would cost more than they occupy


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: int | None = None, slices: int | None = None
) -> Mesh:
    """The device mesh. Arguments are the config's `mesh` section; one of the axes may be -1, "the rest".

    Args:
      data: copies of the model, each on its own rows of the batch.
      fsdp: devices that share the parameters of a copy, and split its rows.
      tensor: devices that split heads and hidden units.
      devices: use only the first so many devices; None uses all there are.
      slices: groups of devices with a slower network between them, which are laid along data; None asks the devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices, data not by that of slices, or a process would
        have none of the devices.
    """
    if devices is not None and not 1 <= devices <= jax.device_count():
        raise UserError(f'mesh.devices {devices} is not between 1 and the {jax.device_count()} devices there are')
    mesh = mesh_of(jax.devices()[:devices], data, fsdp, tensor, slices)
    if idle := sorted(set(range(jax.process_count())) - {d.process_index for d in mesh.devices.flat}):
        raise UserError(f'mesh.devices {devices} leaves process {idle[0]} without a device: start fewer processes')
    topology.meet(mesh)
    return mesh


def mesh_of(devices: Sequence[Any], data: int, fsdp: int, tensor: int, slices: int | None = None) -> Mesh:
    """The mesh of given devices, which may be those of another machine. Raises as `make_mesh`."""
    sizes = axis_sizes(len(devices), data, fsdp, tensor)
    # Auto axes: the compiler propagates shardings. jax.make_mesh's default, Explicit, breaks plain reshapes.
    return Mesh(topology.place_devices(devices, sizes, slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(count: int, data: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    """The sizes of the axes over `count` devices, -1 resolved. Raises as `make_mesh`."""
    sizes = [data, fsdp, tensor]
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count or min(sizes) < 1:
        raise UserError(
            f'mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {count} devices: '
            'the sizes must multiply to that number (one may be -1, the rest)'
        )
    return sizes[0], sizes[1], sizes[2]


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where a leaf lives, by its path and shape: the tensor rules first, then its largest free divisible axis on fsdp.

    Optimizer moments and EMA have their parameter's path and shape, so the same rule places them. The depth axis of a
    scanned stack is never split.
    """
    spec: list[str | None] = [None] * len(shape)
    for suffix, axis in TENSOR_RULES:
        if path.endswith(suffix) and mesh.shape['tensor'] > 1 and shape[axis] % mesh.shape['tensor'] == 0:
            spec[axis] = 'tensor'
    size = mesh.shape['fsdp']
    if size > 1 and math.prod(shape) >= MIN_FSDP_SIZE:
        first = 1 if '/blocks/' in path else 0
        for axis in sorted(range(first, len(shape)), key=lambda i: -shape[i]):
            if spec[axis] is None and shape[axis] % size == 0:
                spec[axis] = 'fsdp'
                break
    return NamedSharding(mesh, P(*spec))


def tree_sharding(tree: Any, mesh: Mesh) -> Any:
    """`parameter_sharding` of every leaf of a tree of arrays or abstract shapes."""
    return jax.tree_util.tree_map_with_path(lambda p, x: parameter_sharding(trees.path_name(p), x.shape, mesh), tree)


def traced_on(mesh: Mesh, function: Callable[..., Any], precision: str | None = None) -> Callable[..., Any]:
    """`function`, to be jitted: while it is traced, the models in it know this mesh (see `models.placement`).

    Args:
      mesh: that it will run on.
      function: of positional arguments.
      precision: of float32 matrix products, see `settings.Run`; None leaves it as it is.
    """

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        products = jax.default_matmul_precision(precision) if precision else contextlib.nullcontext()
        with placement.active(placement.Placement(mesh, parameter_sharding)), products:
            return function(*args)

    return traced


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the data and fsdp axes."""
    return NamedSharding(mesh, P(('data', 'fsdp')))


def check_batch_size(
    global_batch: int, accumulate: int, mesh: Mesh, processes: int, name: str = 'run.global_batch'
) -> int:
    """Rows that this process reads per step; `name` is the batch's in messages.

    Raises:
      UserError: the batch does not divide; the message gives the sum.
    """
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    if global_batch % (shards * accumulate):
        raise UserError(
            f'{name} {global_batch} does not divide by {shards} batch shards (mesh data x fsdp) x '
            f'{accumulate} accumulation steps: change one of them; the nearest batch that fits is '
            f'{max(1, round(global_batch / (shards * accumulate))) * shards * accumulate}'
        )
    return global_batch // processes


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """This process's rows of a batch, flat or with a sub-dict per stream -> global device arrays, split by rows.

    The rows are those of the process's `topology.batch_parts`, in that order; they need not be neighbours in the batch.
    """
    sharding = batch_sharding(mesh)
    parts, of = topology.batch_parts(mesh, jax.process_index())
    places = {part: place for place, part in enumerate(parts)}

    def place(value: np.ndarray) -> jax.Array:
        rows = len(value) // len(parts)

        def part_of(index: tuple[slice, ...]) -> np.ndarray:
            first = places[(index[0].start or 0) // rows] * rows
            return value[first : first + rows]

        return jax.make_array_from_callback((rows * of, *value.shape[1:]), sharding, part_of)

    return jax.tree.map(place, dict(batch))


class Sender:
    """Sends batches to the devices ahead of their step, so that no step waits for a transfer."""

    def __init__(self, mesh: Mesh) -> None:
        """`mesh`: where to."""
        self._mesh = mesh
        self._host: Any = None
        self._sent: Any = None

    def send(self, host: Mapping[str, Any]) -> None:
        """Starts sending this process's rows; returns at once."""
        self._host, self._sent = host, place_batch(host, self._mesh)

    def take(self, host: Mapping[str, Any]) -> dict[str, Any]:
        """The batch on the devices: what was sent ahead, if it was this one."""
        if self._host is not host:
            self.send(host)
        sent, self._host, self._sent = self._sent, None, None
        return sent


def place_tree(tree: Any, mesh: Mesh) -> Any:
    """A host tree (teachers, handed-over parameters) -> device arrays placed by the parameter rules.

    Every device is sent its own part and nothing else. A leaf that lives where it belongs is left alone; one that lives
    elsewhere on devices comes back through the host.
    """
    return jax.tree.map(_place, tree, tree_sharding(tree, mesh))


def _place(value: Any, placement: NamedSharding) -> jax.Array:
    """Every process has the value whole, unless it lies on the devices of several, and gives its devices their part."""
    if isinstance(value, jax.Array):
        if value.sharding == placement:
            return value
        if not value.is_fully_addressable:
            return jax.jit(jnp.copy, out_shardings=placement)(value)
        value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, placement, lambda part: value[part])


def describe(tree: Any, mesh: Mesh) -> str:
    """The placement in a few lines: values and bytes per device by partition spec."""
    groups: dict[str, list[int]] = {}
    for path, leaf in trees.flatten(tree).items():
        sharding = parameter_sharding(path, leaf.shape, mesh)
        entry = groups.setdefault(str(sharding.spec), [0, 0, 0])
        entry[0] += 1
        entry[1] += math.prod(leaf.shape)
        entry[2] += math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    sizes = ' '.join(f'{axis}={mesh.shape[axis]}' for axis in AXES)
    platform = mesh.devices.flat[0].platform
    lines = [f'{trees.count(tree) / 1e6:.2f} M parameters on mesh {sizes}: {mesh.size} {platform} devices']
    for spec, (leaves, values, size) in sorted(groups.items()):
        lines.append(f'  {spec}: {leaves} parameters, {values / 1e6:.2f} M values, {size / 2**20:.1f} MiB per device')
    return '\n'.join(lines)


def gather(value: jax.Array) -> np.ndarray:
    """A batch-sharded array as one NumPy array on every process."""
    return np.asarray(value if value.is_fully_addressable else _whole(value.sharding.mesh)(value))


@functools.cache
def _whole(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))
