"""The sections of a config that are plain values: where parameters start from, how long a run is, streams beside it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mvdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Init:
    """Where the parameters start from.

    Attributes:
      checkpoint: workdir or checkpoint of an earlier stage; '' starts from scratch.
      allow_fresh: regexes of parameters that may be missing there.
      allow_unused: regexes of parameters there that may be left over.
      fresh: regexes of parameters that start fresh even where the checkpoint has them.
      use_ema: take that run's moving average.
    """

    checkpoint: str = ''
    allow_fresh: Sequence[str] = ()
    allow_unused: Sequence[str] = ()
    fresh: Sequence[str] = ()
    use_ema: bool = False


@dataclasses.dataclass(frozen=True)
class SideStream:
    """A stream of batches beside that of config.data: images beside clips.

    Attributes:
      data: section of `data.pipeline.Data`.
      batch: records per optimizer step over all devices and processes.
    """

    data: Mapping[str, Any]
    batch: int

    def __post_init__(self) -> None:
        """Refuses an empty batch."""
        if self.batch < 1:
            raise UserError(f'config.streams.<name>.batch must be at least 1, not {self.batch}')


@dataclasses.dataclass(frozen=True)
class Run:
    """How long and how often.

    Attributes:
      global_batch: records per optimizer step over all devices and processes (a record may give several views).
      epochs: length in passes over the training list; or give `steps`.
      steps: length in optimizer steps.
      schedule_epochs: length that the rate schedule is computed for, if not the run's (the published runs schedule
        401 epochs and use the checkpoint after 400).
      seed: of initialisation, data order, augmentation, masks and dropout.
      accumulate: micro-batches per optimizer step.
      ema_decay: decay of the moving average of the parameters, which `eval_sets` are then scored with; 0 keeps none.
      ema_updates: updates of it per step: the micro-batches of the published run where each of them had one, see
        `train_state.average`.
      log_every: steps per line of metrics.
      save_every: steps between checkpoints; the last step is saved always.
      save_minutes: also save when the last checkpoint is this old; 0 saves by steps only.
      keep: newest checkpoints kept.
      keep_every: checkpoints whose step divides by this are kept for good; 0 for none.
      max_skipped: steps in a row that are not finite before the run goes back to an earlier checkpoint.
      max_rollbacks: times that it does so before it stops.
      hang_minutes: without a step before the run is taken for hanging, and ended with every thread's stack; 0 never.
      eval_every: steps between evaluations of `eval_sets`; 0 for none.
      eval_sets: names in config.evals.
      wandb: Weights & Biases project to report to as well; '' for none.
      stream: name of the sub-dict of config.data in a batch, where config.streams has others beside it. Epochs,
        `global_batch` and clips per second are those of config.data.
      matmul_precision: of float32 matrix products where the hardware has quicker ones: 'default' (TensorFloat-32 on
        GPUs, one bfloat16 pass on TPUs), 'high' or 'highest' (float32); None leaves JAX's setting.
      compile_cache: folder of executables, relative to the workdir unless absolute; '' for none (`compile_cache.use`).
      init_timeout: seconds that processes wait for each other to start.
      heartbeat_timeout: seconds without a sign of life after which a process counts as lost and the run ends.
    """

    global_batch: int
    epochs: float | None = None
    steps: int | None = None
    schedule_epochs: float | None = None
    seed: int = 0
    accumulate: int = 1
    ema_decay: float = 0.0
    ema_updates: int = 1
    log_every: int = 50
    save_every: int = 1000
    save_minutes: float = 0.0
    keep: int = 3
    keep_every: int = 0
    max_skipped: int = 10
    max_rollbacks: int = 3
    hang_minutes: float = 30.0
    eval_every: int = 0
    eval_sets: Sequence[str] = ()
    wandb: str = ''
    stream: str = 'video'
    matmul_precision: str | None = None
    compile_cache: str = 'compile_cache'
    init_timeout: float = 1800.0
    heartbeat_timeout: float = 100.0

    def __post_init__(self) -> None:
        """Refuses two spellings of the length, and counts that cannot be."""
        if (self.epochs is None) == (self.steps is None):
            raise UserError('config.run: give the length either as epochs or as steps, the other as None')
        counts = (
            'global_batch',
            'steps',
            'accumulate',
            'ema_updates',
            'log_every',
            'save_every',
            'keep',
            'max_skipped',
        )
        for name in counts:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f'config.run.{name} must be at least 1, not {getattr(self, name)}')
        for name in ('epochs', 'schedule_epochs', 'init_timeout', 'heartbeat_timeout'):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f'config.run.{name} must be above 0, not {getattr(self, name)}')
        for name in ('seed', 'eval_every', 'save_minutes', 'keep_every', 'max_rollbacks', 'hang_minutes'):
            if getattr(self, name) < 0:
                raise UserError(f'config.run.{name} must be at least 0, not {getattr(self, name)}')
        if not 0 <= self.seed < 2**32:
            raise UserError(f'config.run.seed must lie in [0, 2**32), not {self.seed}')
        if self.matmul_precision not in (None, 'default', 'high', 'highest'):
            raise UserError(
                "config.run.matmul_precision must be 'default', 'high', 'highest' or None, "
                f'not {self.matmul_precision!r}'
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f'config.run.ema_decay must lie in [0, 1), not {self.ema_decay}')

    def steps_per_epoch(self, records: int) -> int:
        """Full batches in a pass over the list.

        Raises:
          UserError: the list is smaller than a batch.
        """
        if records < self.global_batch:
            raise UserError(
                f'the training list has {records} files, fewer than run.global_batch {self.global_batch}: '
                'use a smaller batch (and rate)'
            )
        return records // self.global_batch

    def total_steps(self, records: int) -> int:
        """Optimizer steps of the run."""
        return self.steps or max(1, round((self.epochs or 0) * self.steps_per_epoch(records)))

    def schedule_steps(self, records: int) -> int:
        """Optimizer steps that the rate schedule spans."""
        if self.schedule_epochs is None:
            return self.total_steps(records)
        return round(self.schedule_epochs * self.steps_per_epoch(records))
