"""What the processes of a run say of themselves before it starts, and what must be the same for all.

Each fills in a card. Process 0 compares them before any device is touched: hosts that differ in a config, a version or
an environment variable would compile different programs, and wait for each other for ever.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from mvdjax import __version__
from mvdjax.errors import UserError

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
# Variables that change what is compiled. JAX_ ones do too, but for those that are each process's own.
SHARED_VARIABLES = re.compile(
    r'^(XLA_FLAGS|LIBTPU_INIT_ARGS|JAX_(?!.*(COORDINATOR|PROCESS|LOCAL_|PARTITION|SLICE|_DIR)).*)$'
)

Card = Mapping[str, Any]


def make_card(config: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """This process's card.

    Args:
      config: the run's, flat: {'run.seed': 0, ...}.
      environment: variables; None takes those of this process.

    Returns:
      {'host', 'pid', 'machine': something that two machines do not share, 'gpus': see `visible_gpus`,
      'same': {what must be the same: value}}.
    """
    env = os.environ if environment is None else environment
    same: dict[str, Any] = {'mvdjax': __version__, "mvdjax's files": package_hash()}
    same['Python'] = '.'.join(platform.python_version_tuple()[:2])
    same |= {name: importlib.metadata.version(name) for name in PACKAGES}
    same |= {f'config.{key}': value for key, value in config.items()}
    same |= {f'the variable {name}': value for name, value in env.items() if SHARED_VARIABLES.match(name)}
    return {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'machine': _machine(),
        'gpus': visible_gpus(env),
        'same': json.loads(json.dumps(same)),
    }


@functools.cache
def package_hash() -> str:
    """A hash of this package's Python files, by their contents: what is installed, whatever its version says."""
    root = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        digest.update(str(path.relative_to(root)).encode() + b'\0' + path.read_bytes() + b'\0')
    return digest.hexdigest()[:16]


def _machine() -> str:
    try:
        return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    except OSError:
        return socket.gethostname()


def first_difference(cards: Sequence[Card]) -> str | None:
    """A sentence about the first thing in which a process differs from process 0, or None."""
    for process, card in enumerate(cards):
        mine, theirs = cards[0]['same'], card['same']
        for name in sorted(mine.keys() | theirs.keys(), key=_weight):
            if mine.get(name) != theirs.get(name):
                return difference(name, process, card['host'], theirs.get(name), cards[0]['host'], mine.get(name))
    return None


def _weight(name: str) -> tuple[int, str]:
    """Versions come first: a config may differ only because they do."""
    return (2 if name.startswith('the variable') else 1 if name.startswith('config.') else 0, name)


def difference(name: str, process: int, host: str, value: Any, first_host: str, first_value: Any) -> str:
    """The sentence, with its remedy."""
    if name.startswith('config.'):
        remedy = 'start all processes with the same config file and overrides'
    elif name.startswith('the variable'):
        remedy = 'set it alike on all hosts'
    else:
        remedy = 'install the same on all hosts'
    return (
        f'process {process} on {host} has {_shown(value)} for {name}, process 0 on {first_host} has '
        f'{_shown(first_value)}: {remedy}'
    )


def _shown(value: Any) -> str:
    return 'nothing' if value is None else repr(value)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """What tells the NVIDIA GPUs that this process may use from others; [] without any, or on another platform.

    A batch system may hide GPUs from a process in two ways: by CUDA_VISIBLE_DEVICES, and so that nvidia-smi does not
    see them either.
    """
    platforms = environment.get('JAX_PLATFORMS', '')
    if platforms and not re.search(r'cuda|gpu', platforms):
        return []
    try:
        command = ['nvidia-smi', '--query-gpu=uuid', '--format=csv,noheader']
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    present = [line.strip() for line in answer.splitlines() if line.strip()]
    chosen = environment.get('CUDA_VISIBLE_DEVICES')
    if chosen is None:
        return present
    entries = [entry.strip() for entry in chosen.split(',') if entry.strip()]
    return [present[int(e)] if e.isdigit() and int(e) < len(present) else e for e in entries]


def share_gpus(cards: Sequence[Card]) -> list[list[int] | None]:
    """Which of the GPUs that it sees each process takes; None for all.

    Processes of one host that see the same GPUs divide them evenly, in order; those that see GPUs of their own take
    them all. So it does not matter whether a batch system shows a task all GPUs of the node or only its own.

    Raises:
      UserError: they do not divide, or overlap in another way.
    """
    shares: list[list[int] | None] = [None] * len(cards)
    hosts: dict[tuple[str, str], list[int]] = {}
    for process, card in enumerate(cards):
        hosts.setdefault((card['host'], card['machine']), []).append(process)
    for (host, _), processes in hosts.items():
        views = {tuple(cards[p]['gpus']) for p in processes}
        seen = [gpu for view in views for gpu in view]
        if len(processes) == 1 or not seen:
            continue
        counts = sorted({len(view) for view in views})
        if () in views:
            blind = [p for p in processes if not cards[p]['gpus']]
            raise UserError(
                f'process {blind[0]} on {host} sees no GPU and others there see {counts[-1]}: give each task of a node '
                "the same, see docs/launching.md's section on GPUs"
            )
        if len(seen) != len(set(seen)):
            raise UserError(
                f'the {len(processes)} processes on {host} see GPUs that overlap without being the same: show each '
                'task all GPUs of the node (--gres=gpu:N), or each its own'
            )
        for view in views:
            sharing = [p for p in processes if tuple(cards[p]['gpus']) == view]
            each, rest = divmod(len(view), len(sharing))
            if rest or not each:
                raise UserError(
                    f'{len(sharing)} processes on {host} see the same {len(view)} GPU{"s" * (len(view) > 1)}, which '
                    'do not divide among them: start one task per GPU or one per node, and show each task all GPUs of '
                    'the node (--gres=gpu:N, not --gpus-per-task)'
                )
            if len(sharing) > 1:
                shares = [
                    list(range(sharing.index(p) * each, sharing.index(p) * each + each)) if p in sharing else share
                    for p, share in enumerate(shares)
                ]
    return shares
