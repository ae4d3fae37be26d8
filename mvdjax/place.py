"""Where a run stands, in steps and in the data; every checkpoint tells it."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run stands.

    Attributes:
      step: optimizer steps taken.
      offset: steps' worth of data that rollbacks have passed over: step k + 1 reads what k + offset counts in the data.
      rollbacks: how many there were.
      streak: steps skipped in a row up to here.
      files: counts of files tried, see `Feed.counts`.
      owes_evaluation: evaluations belong to this step, which was saved before they were made; see `evaluations.owed`.
    """

    step: int = 0
    offset: int = 0
    rollbacks: int = 0
    streak: int = 0
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    owes_evaluation: bool = False

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> 'Place':
        """The place that the meta of a checkpoint tells."""
        # Checkpoints of earlier versions have no `progress`.
        return cls(meta['step'], files=meta['data_position'].get('files', {}), **meta.get('progress', {}))

    def meta(self, global_batch: int, lists: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a checkpoint's meta that changes from step to step."""
        return {
            'step': self.step,
            'data_position': {
                'next_sample': (self.step + self.offset) * global_batch,
                'files': dict(self.files),
                'lists': dict(lists),
            },
            'progress': {
                'offset': self.offset,
                'rollbacks': self.rollbacks,
                'streak': self.streak,
                'owes_evaluation': self.owes_evaluation,
            },
        }
