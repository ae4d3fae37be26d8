"""Several processes as one run: start-up, what they must agree on, and one end for all of them.

A command that can run on many processes calls `start` before anything touches a device. Alone, this does nothing.
JAX is imported where it is needed: the command line imports this module, and so do the data workers, which have no JAX.
"""

import argparse
import dataclasses
import faulthandler
import itertools
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvdjax import clusters, startup_checks
from mvdjax.clusters import Place
from mvdjax.errors import TRY_AGAIN, UserError
from mvdjax.hub import Hub
from mvdjax.wire import Spoke

PATIENCE = 1800.0  # seconds that one process may be late at a barrier
VISIBLE = 30.0  # seconds that a file may take to show on another host


@dataclasses.dataclass
class _Group:
    """The processes of this run, as this one knows them."""

    place: Place
    wire: Hub | Spoke
    hosts: list[str]
    rounds: dict[str, Any] = dataclasses.field(default_factory=dict)


_place: Place | None = None
_group: _Group | None = None
_ending = threading.Lock()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that can run on several processes."""
    group = parser.add_argument_group(
        'several processes',
        'Read from SLURM, a TPU host, Kubernetes (launch/k8s_jobset.yaml) or mpirun; or state all three, or the '
        'variables MVDJAX_COORDINATOR, MVDJAX_PROCESSES and MVDJAX_PROCESS. See docs/launching.md.',
    )
    group.add_argument('--coordinator', metavar='HOST:PORT', help='address of process 0 that all others reach')
    group.add_argument('--processes', type=int, metavar='N', help='how many processes there are')
    group.add_argument('--process', type=int, metavar='I', help="this one's number, from 0")


def start(
    args: argparse.Namespace, config: Mapping[str, Any], folder: str, init_timeout: float, heartbeat_timeout: float
) -> Place:
    """Finds the other processes, checks that all are about to do the same, and starts jax.distributed.

    Args:
      args: with the flags of `add_arguments`.
      config: the config, flat, see `config.flat`.
      folder: what the run writes to; every process must see the same.
      init_timeout: seconds to wait for all processes.
      heartbeat_timeout: seconds without a sign of life after which a process counts as lost and the run ends.

    Returns:
      Where this process stands.

    Raises:
      UserError: processes are missing, or differ in what they must not; the message names them.
    """
    global _place, _group
    place = clusters.find_place(args.coordinator, args.processes, args.process)
    _place = place
    if place.processes == 1:
        return place
    clusters.check_coordinator(place)
    _prefix_warnings(place.process)
    card = startup_checks.make_card(config)
    port = int(place.coordinator.rpartition(':')[2])
    common = (place.processes, card, heartbeat_timeout, _end_from_afar, TRY_AGAIN)
    if place.process == 0:
        hub = Hub(port, *common)
        _tell(f'process 0 of {place.processes} ({place.source}), coordinator {place.coordinator}')
        seen = _call_roll(hub, place, init_timeout)
        wire: Hub | Spoke = hub
    else:
        wire = spoke = Spoke(place.coordinator, place.process, *common)
        answer = spoke.roll_call(init_timeout, lambda what: _tell(f'waiting for {what} ({place.coordinator})'))
        if answer is None:
            where = ', which is this host itself: give its address' if clusters.is_loopback(place.host()) else ''
            raise UserError(
                f'process 0 has not answered at {place.coordinator}{where} in {init_timeout:g} s (run.init_timeout): '
                'look at its output, and whether this host can reach that port'
            )
        seen = answer
    _group = _Group(place, wire, [one['host'] for one in seen])
    _check_folder(folder)
    shares = startup_checks.share_gpus(seen)
    import jax

    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=shares[place.process],
        cluster_detection_method='deactivate',
        initialization_timeout=math.ceil(init_timeout),
        # The line knows who was lost and says so; jax, which would only abort, comes second.
        heartbeat_timeout_seconds=math.ceil(2 * heartbeat_timeout) + 10,
    )
    _check_devices(place)
    return place


def _call_roll(hub: Hub, place: Place, timeout: float) -> list[Any]:
    """What the processes may know of each other: their cards without what process 0 has compared."""
    names = place.names

    def named(processes: list[int]) -> str:
        return ', '.join(f'{i} ({names[i]})' if names else str(i) for i in processes)

    def tell(missing: list[int]) -> None:
        _tell(f'waiting for {len(missing)} of {place.processes} processes: {named(missing)}')

    cards = hub.roll_call(timeout, tell)
    if cards is None:
        text = _missing_text(hub, named(hub.missing()), timeout)
    else:
        machines = {card['machine'] for card in cards}
        loopback = len(machines) > 1 and clusters.is_loopback(place.host())
        text = startup_checks.first_difference(cards) or (
            f'the coordinator {place.coordinator} is an address of the loopback, but the processes are on several '
            'machines: give the address of process 0 that the others reach'
            if loopback
            else ''
        )
    if text or cards is None:
        hub.fail(text, 1)
        raise UserError(text)
    seen = [{key: value for key, value in card.items() if key != 'same'} for card in cards]
    hub.begin(seen)
    return seen


def _missing_text(hub: Hub, missing: str, timeout: float) -> str:
    here = ', '.join(f'{i} on {card["host"]}' for i, card in sorted(hub.cards.items()))
    return (
        f'{len(hub.missing())} of {hub.processes} processes have not started within run.init_timeout, {timeout:g} s: '
        f'{missing}; here are {here}. Look at the output of the missing ones and whether they reach the coordinator, '
        'or raise run.init_timeout'
    )


def _check_folder(folder: str) -> None:
    """Refuses a folder that is another one on another host: each process writes a file and looks for all others.

    Raises:
      UserError: a host sees another folder, or cannot write to it.
    """
    mine = f'.process_{index()}_{os.getpid()}'
    path = Path(folder).resolve()
    trouble = ''
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / mine).write_text(host())
    except OSError as error:
        trouble = f'process {index()} on {host()} cannot write to {path} ({error.strerror})'
    names = exchange('workdir', {'file': mine, 'path': str(path), 'trouble': trouble})
    lost = next((n['trouble'] for n in names if n['trouble']), '') or _unseen(path, names)
    troubles = exchange('workdir seen', lost)
    (path / mine).unlink(missing_ok=True)
    if any(troubles):
        raise UserError(next(text for text in troubles if text) + ': choose a folder on storage that all hosts share')


def _unseen(path: Path, names: list[dict[str, str]]) -> str:
    """A sentence about a process whose file does not show here, or ''."""
    until = time.monotonic() + VISIBLE
    while True:
        present = set(os.listdir(path))  # a listing: a file that was asked for too early may stay hidden
        absent = [i for i, name in enumerate(names) if name['file'] not in present]
        if not absent:
            return ''
        if time.monotonic() > until:
            other = absent[0]
            return (
                f'{path} of process {index()} on {host()} is not the folder {names[other]["path"]} that process '
                f'{other} on {host(other)} writes to'
            )
        time.sleep(0.2)


def _check_devices(place: Place) -> None:
    """Refuses processes that do not see each other's devices, or have different ones.

    Raises:
      UserError: the message names the process.
    """
    import jax

    if jax.process_count() != place.processes:
        raise UserError(
            f'process {place.process} on {host()} sees {jax.process_count()} of {place.processes} processes: its '
            f'backend, {jax.default_backend()}, is not the one that the others use; install the extra for the device'
        )
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    check_same('devices', {'number': jax.local_device_count(), 'kind': ', '.join(kinds)}, 'give every process the same')


def index() -> int:
    """This process's number. Touches no device."""
    return _place.process if _place is not None else _of_jax('process_index', 0)


def count() -> int:
    """How many processes there are. Touches no device."""
    return _place.processes if _place is not None else _of_jax('process_count', 1)


def _of_jax(name: str, alone: int) -> int:
    """What jax.distributed says where another program has started it."""
    jax = sys.modules.get('jax')
    return getattr(jax, name)() if jax is not None and jax.distributed.is_initialized() else alone


def is_main() -> bool:
    """Whether this is process 0, which prints and writes for all."""
    return index() == 0


def host(process: int | None = None) -> str:
    """Host name of a process, this one by default."""
    if _group is None:
        return os.uname().nodename
    return _group.hosts[index() if process is None else process]


def exchange(name: str, value: Any, timeout: float = PATIENCE) -> list[Any]:
    """The JSON-able values that all processes give at this point of the program, by process; every one must come here.

    No device takes part, so it may be called at any time, from one thread.

    Raises:
      UserError: a process has not come within `timeout` seconds.
    """
    if _group is None:
        return [value]
    number = next(_group.rounds.setdefault(name, itertools.count()))
    return _group.wire.exchange(f'{name} {number}', value, timeout)


def broadcast(value: Any, name: str = 'broadcast') -> Any:
    """Process 0's value, JSON-able, on every process."""
    return exchange(name, value if is_main() else None)[0]


def barrier(name: str, timeout: float = PATIENCE) -> None:
    """Returns when all processes have come to the barrier of that name."""
    exchange(name, None, timeout)


def check_same(what: str, value: Mapping[str, Any], remedy: str) -> None:
    """Refuses processes that differ in a flat dict of JSON-able values. All must call it.

    Raises:
      UserError: on every process, naming the first that differs from process 0, and the first key.
    """
    for process, theirs in enumerate(found := exchange(f'check {what}', dict(value))):
        for key in sorted(theirs.keys() | found[0].keys()):
            if theirs.get(key) != found[0].get(key):
                raise UserError(
                    f'process {process} on {host(process)} has {theirs.get(key)!r} as its {what} ({key}), process 0 on '
                    f'{host(0)} has {found[0].get(key)!r}: {remedy}'
                )


def finish() -> None:
    """Ends a run that went well: waits for all processes, and leaves them."""
    global _place, _group
    if _group is not None:
        import jax

        barrier('finish')
        jax.distributed.shutdown()
        _group.wire.bye()
    _place = _group = None


def await_news(seconds: float = 2.0) -> None:
    """Gives the line a moment to end this process because of another one."""
    if _group is not None:
        time.sleep(seconds)


def abandon(text: str, code: int, hangs: bool = False) -> None:
    """Ends this process and, by telling them why, all others; does nothing if it is alone.

    If the run hangs, the others show where each of their threads is: the first to notice is seldom the one at fault.
    Python's own way out would wait for the others in jax's shutdown, and they for this process in their next step.
    """
    if _group is None:
        return
    if _group.wire.over:  # another one's end is being told
        time.sleep(10)
        return
    with _ending:
        _group.wire.fail(_one_line(text), code, hangs)
        _flush()
        time.sleep(1.0 if is_main() else 0.1)  # or jax would notice on the others before they have read why
        os._exit(code)


def _end_from_afar(text: str, code: int, hangs: bool = False) -> None:
    """Called from the line's thread when another process has ended, is lost, or finds that the run hangs."""
    with _ending:
        print(f'{prefix()}error: {text}', file=sys.stderr)
        if hangs:
            show_stacks()
        _flush()
        if is_main():
            time.sleep(1.0)
        os._exit(code)


def show_stacks() -> None:
    """Prints where every thread of this process is."""
    if (where := sys.__stderr__) is not None:
        print(f'process {index()} on {host()}, every thread:', file=where, flush=True)
        faulthandler.dump_traceback(where, all_threads=True)


def _one_line(text: str) -> str:
    return re.sub(r'\s+', ' ', text.removeprefix('error: ')).strip()[:2000]


def prefix() -> str:
    """What stands before a line of any process but 0."""
    return f'[process {index()}] ' if count() > 1 and not is_main() else ''


def _tell(text: str) -> None:
    print(f'{prefix()}{text}', file=sys.stderr, flush=True)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _prefix_warnings(process: int) -> None:
    """Every process but 0 says who it is in front of its warnings."""
    if process:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f'[process {process}] %(message)s'))
        logging.getLogger('mvdjax').addHandler(handler)
