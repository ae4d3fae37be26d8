"""`mvdjax train --profile=FIRST:STEPS`: a trace of a few steps, for TensorBoard's profile page or Perfetto."""

import os
import re

import jax

from mvdjax import processes
from mvdjax.console import say
from mvdjax.errors import UserError

FOLDER = 'profile'


class Profiler:
    """Traces the steps it was told to; a context manager that ends a trace that is still open.

    Of several processes each has a folder of its own: JAX names files after the host and the second.
    """

    def __init__(self, workdir: str, steps: str) -> None:
        """`steps` is 'FIRST:COUNT', numbered as in the metrics, or '' for none.

        Raises:
          UserError: it is neither.
        """
        self._folder = os.path.join(workdir, FOLDER)
        self._first = self._last = 0
        self._open = False
        if steps:
            numbers = re.fullmatch(r'(\d+):(\d+)', steps)
            if not numbers or min(int(n) for n in numbers.groups()) < 1:
                raise UserError(
                    f'--profile={steps} is not FIRST:STEPS: --profile=20:5 traces steps 20 to 24 (the first step of a '
                    'process compiles: start after it)'
                )
            self._first = int(numbers[1])
            self._last = self._first + int(numbers[2]) - 1

    def __enter__(self) -> 'Profiler':
        """Self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends an open trace."""
        self._stop()

    def before(self, step: int) -> None:
        """To be called between two steps, when the devices are idle: a trace holds whole steps."""
        if self._first <= step <= self._last and not self._open:
            own = f'process_{processes.index()}' if processes.count() > 1 else ''
            folder = os.path.join(self._folder, own)
            os.makedirs(folder, exist_ok=True)
            jax.profiler.start_trace(folder)
            self._open = True
        elif step > self._last:
            self._stop()

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Names a step in the trace; costs nothing measurable without one."""
        return jax.profiler.StepTraceAnnotation('train', step_num=step)

    def _stop(self) -> None:
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
            self._last = 0
            say(f'the trace of the steps is in {self._folder}: tensorboard --logdir={self._folder}')
