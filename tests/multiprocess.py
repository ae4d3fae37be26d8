"""Commands on several real processes of this machine, each with a few simulated CPU devices."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = ('SLURM_', 'OMPI_', 'JOBSET_', 'TPU_', 'MEGASCALE_', 'MVDJAX_', 'JAX_', 'XLA_')


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def environment(devices: int, **more: str) -> dict[str, str]:
    """Variables of a process with simulated devices and the numbers of tests/conftest.py."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    return kept | {
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': str(devices),
        'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),
        'PYTHONUNBUFFERED': '1',
        'TQDM_DISABLE': '1',
        **more,
    }


def executables_folder(demo_data: Path) -> Path:
    """The folder of executables that the tests of one worker share, beside their data."""
    folder = demo_data.parent / 'executables'
    folder.mkdir(exist_ok=True)
    return folder


def executables(folder: Path) -> dict[str, str]:
    """Variables that keep what is compiled in a folder, however quickly it was, for the next start."""
    return {
        'JAX_COMPILATION_CACHE_DIR': str(folder),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }


class Group:
    """Processes that run one command, their output in files; a context manager that ends them.

    Attributes:
      children: the processes.
    """

    def __init__(
        self,
        logs: Path,
        commands: Sequence[Sequence[str]],
        *,
        devices: int,
        variables: Sequence[Mapping[str, str]] = (),
        cwd: Path = ROOT,
    ) -> None:
        """Starts them.

        Args:
          logs: folder for their output, one file each.
          commands: of each process.
          devices: simulated devices of each.
          variables: further variables of each.
          cwd: folder to start in.
        """
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f'{i}.log' for i in range(len(commands))]
        more = variables or [{}] * len(commands)
        self.children = []
        for command, log, extra in zip(commands, self.logs, more, strict=True):
            with open(log, 'ab') as file:
                self.children.append(
                    subprocess.Popen(
                        [*command],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=environment(devices, **extra),
                        cwd=cwd,
                        start_new_session=True,
                    )
                )

    def __enter__(self) -> 'Group':
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self, *processes: int) -> None:
        """SIGKILL to some, or all, of the processes and their children."""
        for i in processes or range(len(self.children)):
            if self.children[i].poll() is None:
                os.killpg(self.children[i].pid, signal.SIGKILL)
                self.children[i].wait()

    def send(self, number: int, *processes: int) -> None:
        """A signal to some, or all, of the processes."""
        for i in processes or range(len(self.children)):
            if self.children[i].poll() is None:
                self.children[i].send_signal(number)

    def wait(self, timeout: float) -> list[int]:
        """Exit codes. Processes that are still there after `timeout` seconds are killed, and that is an error."""
        until = time.monotonic() + timeout
        try:
            return [child.wait(max(0.1, until - time.monotonic())) for child in self.children]
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError('still running:\n' + self.text()) from None

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> None:
        """Returns when the condition holds; a process that has ended by then is an error."""
        until = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < until, 'waited in vain:\n' + self.text()
            assert all(child.poll() is None for child in self.children), 'ended early:\n' + self.text()
            time.sleep(0.05)

    def output(self, process: int) -> str:
        """What a process has printed so far."""
        return self.logs[process].read_text(errors='replace')

    def text(self) -> str:
        """What all have printed."""
        return '\n'.join(f'-- {i}\n{self.output(i)}' for i in range(len(self.logs)))


def mvdjax(*arguments: str) -> list[str]:
    """The command line of one process."""
    return [sys.executable, '-m', 'mvdjax', *arguments]


def together(count: int, arguments: Sequence[str], port: int | None = None) -> list[list[str]]:
    """The command lines of `count` processes that run one command together."""
    where = f'--coordinator=127.0.0.1:{port or free_port()}'
    return [mvdjax(*arguments, where, f'--processes={count}', f'--process={i}') for i in range(count)]
