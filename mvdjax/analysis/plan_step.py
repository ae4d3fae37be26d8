"""The train step of a config as a compiler sees it: the real function and the shapes and places of its arguments.

Nothing is read: batches have the shapes that the data recipes state, teachers those of their models. The result is
what `mvdjax train` would compile, but for the numbers in its schedules.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from mvdjax import config as configs
from mvdjax import sharding, train_state
from mvdjax.analysis.plan_topology import Topology
from mvdjax.data.pipeline import Data, Stream
from mvdjax.data.schema import Sample
from mvdjax.data.sources import FileList
from mvdjax.feed import main_part, read_streams, rows_per_record
from mvdjax.settings import Run
from mvdjax.tasks.base import Task
from mvdjax.train import compile_step, make_optimizer

# Videos or images in the training lists of published data sets, by the name of their folder: Kinetics-400 as far as it
# could still be had when VideoMAE's list was made, Something-Something v2, ImageNet-1K, Diving48.
RECORDS = {'k400': 240_436, 'ssv2': 168_913, 'in1k': 1_281_167, 'diving48': 15_027}
NO_LIST = FileList('(not read)', (), ())


@dataclasses.dataclass(frozen=True)
class Step:
    """An optimizer step, ready to be lowered.

    Attributes:
      config: the config it is of.
      run: its run section.
      task: the stage.
      mesh: devices, abstract where there is no compiler for them.
      function: the jitted step.
      state, frozen, batch: its arguments as abstract arrays with shardings; the batch is the global one.
      records: files in the training list, None if unknown.
      views: rows of the batch per record of the list.
    """

    config: ml_collections.ConfigDict
    run: Run
    task: Task
    mesh: Any
    function: Any
    state: Any
    frozen: Any
    batch: Any
    records: int | None
    views: int

    @property
    def arguments(self) -> tuple[Any, Any, Any]:
        """What the function takes."""
        return self.state, self.frozen, self.batch

    @property
    def clips(self) -> int:
        """Rows of the main stream per step: clips or images, views of a video counted each."""
        return main_part(self.batch, self.run.stream)['video'].shape[0]

    @property
    def shards(self) -> int:
        """Parts that the batch is split into."""
        return self.mesh.shape['data'] * self.mesh.shape['fsdp']

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; None if the length of its list is not known."""
        if self.run.steps is None and self.records is None:
            return None
        return self.run.total_steps(self.records or 0)


def list_length(config: ml_collections.ConfigDict, given: int | None) -> int | None:
    """Records of the training list: as given, else the list's if it is there, else by the data set's name."""
    if given is not None:
        return given
    data: Data = configs.build(Data, configs.section(config, 'data'), 'data')
    if data.mixture or os.path.isfile(data.files):
        return len(data.read().records)
    names = re.split(r'[/:]', data.files)
    return next((count for name, count in RECORDS.items() if name in names), None)


def blank_batch(stream: Stream, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract global batch of a stream."""
    recipe = stream.data.make()
    sample: Sample = recipe.blank()
    placed = sharding.batch_sharding(mesh)

    def rows(value: Any) -> jax.ShapeDtypeStruct:
        shape = value.shape[1:] if recipe.views > 1 else value.shape
        return jax.ShapeDtypeStruct((stream.batch * recipe.views, *shape), value.dtype, sharding=placed)

    return {name: rows(value) for name, value in sample.items()}


def place(tree: Any, mesh: Any) -> Any:
    """Abstract arrays with the shardings that the parameter rules give them."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding.tree_sharding(tree, mesh)
    )


def abstract_batch(streams: Mapping[str, Stream], mesh: Any) -> Any:
    """The batch of all streams: flat for one, else a sub-dict for each."""
    parts = {name: blank_batch(stream, mesh) for name, stream in streams.items()}
    return parts if len(parts) > 1 else next(iter(parts.values()))


def make_step(config: ml_collections.ConfigDict, topology: Topology, records: int | None = None) -> Step:
    """The step of a config on a machine.

    Args:
      config: a loaded config.
      topology: the machine.
      records: length of the training list, if it is known.

    Raises:
      UserError: the mesh or the batch does not fit the devices, or a section is wrong.
    """
    run: Run = configs.build(Run, configs.section(config, 'run'), 'run')
    mesh = configs.build(topology.mesh, configs.section(config, 'mesh'), 'mesh')
    task: Task = configs.make_task(config)
    streams = read_streams(config, run, read=lambda data: NO_LIST)
    for name, stream in streams.items():
        what = 'run.global_batch' if name == run.stream else f'streams.{name}.batch'
        sharding.check_batch_size(stream.batch, run.accumulate, mesh, 1, what)
    batch = abstract_batch(streams, mesh)
    params = train_state.abstract_params(task, batch)
    # The schedules' numbers depend on the list's length, what is computed does not.
    optimizer = make_optimizer(config, run, task, params, records or 100 * run.global_batch)
    make = train_state.make_state_function(task, optimizer, run.ema_decay > 0)
    state = place(jax.eval_shape(make, jax.random.key(0), batch), mesh)
    function = compile_step(task, optimizer, run, state, mesh, rows_per_record(streams))
    frozen = place(task.abstract_frozen(batch), mesh)
    views = streams[run.stream].data.make().views
    return Step(config, run, task, mesh, function, state, frozen, batch, records, views)
