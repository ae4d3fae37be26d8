"""Writes a converted checkpoint leaf by leaf: each is made, written and forgotten before the next one is made."""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mvdjax import checkpoints, selfcheck, trees
from mvdjax.convert import files
from mvdjax.convert.layouts import Shape

CHUNK = 2**26  # bytes, of a leaf on disk


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf that does not exist yet.

    Attributes:
      shape: of the array.
      read: makes the float32 array; called once.
    """

    shape: Shape
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Of the array."""
        return 4 * math.prod(self.shape)


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Writes `Leaf`s as Orbax writes arrays, but never two at a time, in chunks that can be read one by one.

    The smallest first: their tensors are gone when the largest leaf is made and written.
    """

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        """See `ocp.type_handlers.TypeHandler`; all is on disk when this returns."""
        del args  # nothing is cast
        chunks = ocp.SaveArgs(chunk_byte_size=CHUNK)
        for leaf, info in sorted(zip(values, infos, strict=True), key=lambda each: each[0].nbytes):
            for future in await super().serialize([leaf.read()], [info], [chunks]):
                await asyncio.to_thread(future.result)
        return []


def save(destination: str, leaves: Mapping[str, Leaf], meta: Mapping[str, Any]) -> None:
    """Writes a workdir with one checkpoint, at step 0, of parameters alone, and the answers for selfcheck.

    Uncompressed, since float32 weights hardly shrink.

    Raises:
      UserError: it cannot be written; what was there is untouched.
    """
    registry = ocp.type_handlers.create_type_handler_registry((Leaf, _OneByOne()))
    params = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False, use_ocdbt=False)
    handler = ocp.CompositeCheckpointHandler(params=params, meta=ocp.JsonCheckpointHandler())
    items = {'params': ocp.args.PyTreeSave(trees.unflatten(dict(leaves))), 'meta': ocp.args.JsonSave(dict(meta))}
    with files.appearing(destination) as folder:
        with ocp.Checkpointer(handler) as writer:
            writer.save(epath.Path(folder) / checkpoints.FOLDER / '0', args=ocp.args.Composite(**items))
        selfcheck.store_once(folder)
