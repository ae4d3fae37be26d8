"""Videos of a list in, features out: devices compute a batch while the one before is written."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import jax
import numpy as np

from mvdjax import sharding
from mvdjax.data.pipeline import BadFiles, Data, eval_batches, read_bad_files
from mvdjax.data.schema import FileList, Record
from mvdjax.errors import UserError

NOT_FINITE = 'its features are not finite: the training diverged, or the dtype of the model overflows'

Found = tuple[np.ndarray, list[str | None]]  # features of a batch's videos, and why there is none, or None


class FeatureBatches:
    """Computes the features of lists.

    Attributes:
      batch: videos per step over all devices.
    """

    def __init__(
        self,
        data: Data,
        function: Callable[[Any, Any], jax.Array],
        params: Any,
        *,
        shape: Sequence[int],
        batch: int,
        bad: str,
        precision: str | None,
    ) -> None:
        """Puts the parameters on the devices.

        Args:
          data: how videos are read.
          function: (parameters, uint8 (b, views, t, h, w, c)) -> features.
          params: of the encoder, on the host.
          shape: of the features of one video.
          batch: videos per step at least; for each device the same number, so it is rounded up.
          bad: file that notes what cannot be read.
          precision: of matrix products, as `run.matmul_precision`.
        """
        self._mesh = sharding.make_mesh()
        self.batch = -(-batch // self._mesh.size) * self._mesh.size
        self._data, self._shape, self._bad = data, tuple(shape), bad
        self._params = sharding.place_tree(params, self._mesh)
        traced = sharding.traced_on(self._mesh, function, precision)
        self._run = jax.jit(traced, out_shardings=sharding.batch_sharding(self._mesh))

    def of(self, files: FileList, stop: Callable[[], bool], start_step: int = 0) -> Generator[Found, None, None]:
        """Batch by batch, in the order of the list, without padding.

        Args:
          files: the list.
          stop: asked after every batch; True ends it once what the devices have got has come out.
          start_step: the batch to start from.

        Raises:
          UserError: the device is out of memory.
        """
        batches = eval_batches(
            self._data,
            files,
            batch=self.batch,
            empty=self._data.make().blank(),
            bad=BadFiles(self._bad),
            start_step=start_step,
        )

        def computed() -> Iterator[tuple[Any, Any]]:
            for host in batches:
                yield host, self._compute(host) if host['valid'].any() else None
                if stop():
                    break
            yield None, None

        waiting: tuple[Any, Any] = None, None
        place = start_step * self.batch
        with closing(batches), _memory_explained(self.batch):
            for host, found in computed():
                if waiting[0] is not None:
                    records = files.records[place : place + self.batch]
                    yield self._judged(records, *waiting)
                    place += self.batch
                waiting = host, found

    def _compute(self, host: Any) -> jax.Array:
        found: jax.Array = self._run(self._params, sharding.place_batch({'video': host['video']}, self._mesh)['video'])
        return found

    def _judged(self, records: Sequence[Record], host: Any, found: jax.Array | None) -> Found:
        valid = host['valid'][: len(records)]
        if found is None:
            values = np.zeros((len(records), *self._shape), np.float32)
        else:
            values = np.asarray(found)[: len(records)]
        reasons = {} if valid.all() else {entry['path']: entry['reason'] for entry in read_bad_files(self._bad)}
        finite = [bool(np.isfinite(value).all()) for value in values]
        return values, [
            reasons.get(record.path, 'cannot be read') if not fine else None if good else NOT_FINITE
            for fine, good, record in zip(valid, finite, records, strict=True)
        ]


@contextmanager
def _memory_explained(batch: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise UserError(f'the device is out of memory with {batch} videos at once: lower --batch') from error
