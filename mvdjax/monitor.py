"""What the loop needs to know how well it runs: whose time is whose, which share of the devices' rate is used."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from mvdjax import hardware, processes
from mvdjax.goodput import Goodput
from mvdjax.profiler import Profiler
from mvdjax.step_clock import StepClock
from mvdjax.tasks.base import Batch, Task
from mvdjax.window import Window


class Monitor:
    """Makes the loop's windows and turns them into numbers; a context manager.

    Attributes:
      flops: model FLOPs of a step over all devices; 0 until `know_work`.
      peak: FLOP/s of all devices, None where they are not in the table of `hardware`.
    """

    def __init__(self, workdir: str, profile: str = '') -> None:
        """`profile` is that of `profiler.Profiler`.

        Raises:
          UserError: it names no steps.
        """
        self._workdir = workdir
        self._stack = contextlib.ExitStack()
        self._clock = self._stack.enter_context(StepClock())
        self._profiler = self._stack.enter_context(Profiler(workdir, profile))
        self._goodput: Goodput | None = None
        self._compiled = False
        self.flops = 0.0
        self.peak: float | None = None

    def __enter__(self) -> 'Monitor':
        """Self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the clock, and a trace that is open."""
        self._stack.close()

    def know_work(self, task: Task, host: Batch, times: float, mesh: Mesh) -> None:
        """Computes FLOPs and peak from this process's part of a batch; the whole is `times` as large."""
        self.flops = sum(task.flops(host).values()) * times
        rate = hardware.peak_flops(mesh.devices.flat[0].device_kind, jax.numpy.dtype(task.backbone().dtype).name)
        self.peak = None if rate is None else rate * mesh.size

    def start(self, step: int) -> None:
        """The run starts, or goes on, after this step; to be called when its metrics have been taken back to there."""
        if not processes.is_main():
            return
        if self._goodput is None:
            self._goodput = Goodput(self._workdir, step)
        else:
            self._goodput.back_to(self._workdir, step)

    def window(self) -> Window:
        """A new window, from now on."""
        return Window(clock=self._clock)

    @contextlib.contextmanager
    def step(self, step: int, window: Window) -> Iterator[None]:
        """Around the call of the step function; the first one compiles, which is no time of training."""
        self._profiler.before(step)
        compiling = contextlib.nullcontext() if self._compiled else window.losing('compile')
        with self._profiler.step(step), compiling:
            yield
        self._compiled = True

    def started(self, values: Any, records: int, window: Window) -> None:
        """A step was handed to the devices: its metrics and the rows it trains on, over all processes."""
        window.values.append(values)
        window.records += records
        self._clock.started(values)

    def numbers(self, window: Window) -> dict[str, float]:
        """Closes a window, see there; on process 0 with the run's goodput."""
        numbers = window.close(self.flops, self.peak)
        useful = numbers.pop('useful_seconds')
        return numbers if self._goodput is None else {**numbers, **self._goodput.add(useful)}
