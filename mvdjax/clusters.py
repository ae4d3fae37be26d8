"""Where a process stands among others: read from flags, or from what SLURM, Kubernetes, a TPU host or Open MPI left.

`find_place` asks in the order of `SOURCES` and the first that knows decides. Nothing here opens a connection, but for
one to the metadata server of a TPU host.
"""

import dataclasses
import glob
import http.client
import importlib.util
import ipaddress
import os
import re
import socket
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping

from mvdjax.errors import UserError

PORTS = (61440, 4096)  # first and number of ports, of which a job's number picks its coordinator's
FIXED_PORT = 8482  # where a job has its hosts to itself
METADATA_PATIENCE = 60.0  # seconds that a TPU host's metadata server may fail to answer, as it does while a host starts

Environment = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
      source: who says so.
      coordinator: HOST:PORT of process 0; '' for a process alone, or where the source does not know.
      processes: how many there are.
      process: this one's number.
      hosts: of how many machines they are, where that is known; 0 where it is not.
      names: host of each process where that is known.
      on_first_host: whether this process is on process 0's machine; None where that is not known.
    """

    source: str
    coordinator: str = ''
    processes: int = 1
    process: int = 0
    hosts: int = 0
    names: tuple[str, ...] = ()
    on_first_host: bool | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be."""
        if not 0 <= self.process < self.processes:
            raise UserError(
                f'{self.source} says process {self.process} of {self.processes}: processes are numbered from 0'
            )
        if self.processes > 1 and self.coordinator and not re.fullmatch(r'(.*[^:]|\[.+\]):\d+', self.coordinator):
            raise UserError(f'the coordinator is HOST:PORT, not {self.coordinator!r} ({self.source})')

    def host(self) -> str:
        """The coordinator's host."""
        return self.coordinator.rpartition(':')[0].strip('[]')


ALONE = Place('a single process')


def find_place(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environment: Environment | None = None,
) -> Place:
    """This process's place: as flags say, else as the first source that knows.

    Args:
      coordinator: HOST:PORT, or None.
      processes: how many there are, or None.
      process: this one's number, or None.
      environment: variables; None takes those of this process.

    Raises:
      UserError: flags or variables that are incomplete, no numbers, or contradict each other.
    """
    env = os.environ if environment is None else environment
    flags = {'--coordinator': coordinator, '--processes': processes, '--process': process}
    found = _stated('flags', flags) or next((place for source in SOURCES if (place := source(env))), ALONE)
    if found.processes == 1:
        return dataclasses.replace(ALONE, source=found.source)
    if coordinator is None and env.get('MVDJAX_COORDINATOR'):
        found = dataclasses.replace(found, coordinator=env['MVDJAX_COORDINATOR'])
    if not found.coordinator:
        raise UserError(
            f'{found.source} does not say where process 0 runs: give all processes its address, '
            'MVDJAX_COORDINATOR=HOST:PORT'
        )
    return found


def _stated(source: str, given: Mapping[str, object]) -> Place | None:
    """A place given as coordinator, processes and process; all of them, or a single process."""
    coordinator, processes, process = given.values()
    if all(value is None for value in given.values()):
        return None
    if processes == 1 and process in (None, 0):
        return Place(source)
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(f'several processes are started with {", ".join(given)}: {" and ".join(missing)} is missing')
    assert isinstance(coordinator, str)
    assert isinstance(processes, int)
    assert isinstance(process, int)
    return Place(source, coordinator, processes, process)


def _own_variables(env: Environment) -> Place | None:
    """MVDJAX_COORDINATOR, MVDJAX_PROCESSES, MVDJAX_PROCESS. The first alone corrects the address of another source."""
    if 'MVDJAX_PROCESSES' not in env and 'MVDJAX_PROCESS' not in env:
        return None
    return _stated(
        'MVDJAX_ variables',
        {
            'MVDJAX_COORDINATOR': env.get('MVDJAX_COORDINATOR'),
            'MVDJAX_PROCESSES': _number(env, 'MVDJAX_PROCESSES'),
            'MVDJAX_PROCESS': _number(env, 'MVDJAX_PROCESS'),
        },
    )


def _open_mpi(env: Environment) -> Place | None:
    """Variables of mpirun. They come before SLURM's, which mpirun's helpers inherit from the srun that starts them."""
    if 'OMPI_COMM_WORLD_SIZE' not in env:
        return None
    processes, process = _need(env, 'OMPI_COMM_WORLD_SIZE'), _need(env, 'OMPI_COMM_WORLD_RANK')
    if processes == 1:
        return Place('Open MPI')
    local = _number(env, 'OMPI_COMM_WORLD_LOCAL_SIZE')
    # '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911' up to version 4; 5 has no such address.
    found = re.search(r'tcp6?://(?:\[([^\],]+)|([^,:]+))', env.get('OMPI_MCA_orte_hnp_uri', ''))
    job = zlib.crc32((env.get('PMIX_NAMESPACE') or env.get('OMPI_MCA_orte_hnp_uri', '').partition('.')[0]).encode())
    host = '127.0.0.1' if local == processes else (found.group(1) or found.group(2)) if found else ''
    coordinator = _join(host, _port(env, job)) if host else ''
    return Place('Open MPI', coordinator, processes, process, 1 if local == processes else 0)


def _slurm(env: Environment) -> Place | None:
    """Variables of a step that srun started; a batch script or a shell in an allocation is no such step."""
    needed = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID')
    if any(name not in env for name in needed) or env.get('SLURM_STEP_ID', '').startswith('42949672'):
        return None
    nodes = expand_nodes(env['SLURM_STEP_NODELIST'])
    processes = _need(env, 'SLURM_STEP_NUM_TASKS')
    port = _port(env, _need(env, 'SLURM_JOB_ID') + 7 * (_number(env, 'SLURM_STEP_ID') or 0))
    names = tuple(nodes) if len(nodes) == processes else (nodes[0],) * processes if len(nodes) == 1 else ()
    first = _number(env, 'SLURM_NODEID')
    return Place(
        'SLURM',
        _join(nodes[0], port),
        processes,
        _need(env, 'SLURM_PROCID'),
        len(nodes),
        names,
        None if first is None else first == 0,
    )


def expand_nodes(text: str) -> list[str]:
    """SLURM's short form of host names, 'a[001-003,7],b' -> a001 a002 a003 a7 b."""
    found = []
    for part in re.findall(r'[^,\[]+(?:\[[^\]]*\][^,\[]*)*', text):
        names = ['']
        for plain, ranges in re.findall(r'([^\[]+)|\[([^\]]*)\]', part):
            ends = [plain] if plain else [n for piece in ranges.split(',') for n in _range(piece)]
            names = [name + end for name in names for end in ends]
        found += names
    return found


def _range(piece: str) -> list[str]:
    """'008-010' -> 008 009 010."""
    first, dash, last = piece.partition('-')
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)] if dash else [first]


def _tpu_variables(env: Environment) -> Place | None:
    """Variables that Google's Kubernetes gives to the pods of a TPU slice, or of several (MEGASCALE_)."""
    listed = env.get('TPU_PROCESS_ADDRESSES') or env.get('TPU_WORKER_HOSTNAMES')
    if not listed or 'TPU_WORKER_ID' not in env:
        return None
    return _slices(listed.split(','), _need(env, 'TPU_WORKER_ID'), env)


def _tpu_metadata(env: Environment) -> Place | None:
    """The metadata server of a TPU host. A host that cannot ask is refused: alone it would train a run of its own."""
    if 'TPU_SKIP_MDS_QUERY' in env or not has_tpu():
        return None
    worker = _metadata(env, 'agent-worker-number')
    listed = _metadata(env, 'worker-network-endpoints')
    if worker is None or not listed:
        return None
    # 'a,b' or, as older images have it, 'name:number:address,...'
    hosts = [parts[-1] if len(parts := host.split(':')) == 3 else host for host in listed.split(',')]
    pairs = re.findall(r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*?)'?\s*$", _metadata(env, 'tpu-env') or '', re.MULTILINE)
    return _slices(hosts, int(worker), {**dict(pairs), **env})


def _slices(hosts: list[str], worker: int, env: Environment) -> Place:
    slices, number = _number(env, 'MEGASCALE_NUM_SLICES') or 1, _number(env, 'MEGASCALE_SLICE_ID') or 0
    hosts = [re.sub(r':\d+$', '', host.strip()) for host in hosts]
    first = env.get('MEGASCALE_COORDINATOR_ADDRESS', '').split(':')[0] or hosts[0]
    port = env.get('MVDJAX_COORDINATOR_PORT', FIXED_PORT)
    processes, process = slices * len(hosts), number * len(hosts) + worker
    names = tuple(hosts) if slices == 1 else ()
    machines = slices * len(set(hosts))
    return Place('TPU', _join(first, int(port)), processes, process, machines, names, process == 0)


def has_tpu() -> bool:
    """Whether this machine has TPU devices and the library for them."""
    devices = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
    return bool(devices) and importlib.util.find_spec('libtpu') is not None


def _metadata(env: Environment, key: str) -> str | None:
    """An attribute of this virtual machine, or None if it has none of that name.

    Raises:
      UserError: the server has not answered for `METADATA_PATIENCE` seconds.
    """
    server = env.get('GCE_METADATA_IP') or env.get('GCE_METADATA_HOST') or 'metadata.google.internal'
    request = urllib.request.Request(
        f'http://{server}/computeMetadata/v1/instance/attributes/{key}', headers={'Metadata-Flavor': 'Google'}
    )
    until = time.monotonic() + METADATA_PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                if error.code == 404:
                    return None
            if time.monotonic() >= until:
                raise UserError(
                    f'this machine has a TPU, but the metadata server {server}, which knows the other hosts of its '
                    f'slice, has not told {key} in {METADATA_PATIENCE:g} s ({error}): look at the network of this '
                    'host, state --coordinator, --processes and --process, or --processes=1 to train on this host alone'
                ) from error
        time.sleep(min(2.0, METADATA_PATIENCE / 10))


def _jobset(env: Environment) -> Place | None:
    """Variables that launch/k8s_jobset.yaml sets from what JobSet writes on its pods.

    Pod p of job j of a replicated job r is <set>-r-j-p.<set> to the others; jobs of the set count on from each other.
    """
    if 'JOBSET_NAME' not in env:
        return None
    name, job = env['JOBSET_NAME'], env.get('REPLICATED_JOB_NAME', '')
    if not job:
        raise UserError('JOBSET_NAME is set but REPLICATED_JOB_NAME is not: see launch/k8s_jobset.yaml')
    jobs, pods = _number(env, 'JOBSET_REPLICAS') or 1, _need(env, 'JOBSET_PARALLELISM')
    process = (_number(env, 'JOB_INDEX') or 0) * pods + _need(env, 'JOB_COMPLETION_INDEX')
    names = tuple(f'{name}-{job}-{j}-{p}.{name}' for j in range(jobs) for p in range(pods))
    port = int(env.get('MVDJAX_COORDINATOR_PORT', FIXED_PORT))
    return Place('Kubernetes JobSet', _join(names[0], port), len(names), process, len(names), names, process == 0)


SOURCES: tuple[Callable[[Environment], Place | None], ...] = (
    _own_variables,
    _open_mpi,
    _slurm,
    _tpu_variables,
    _tpu_metadata,
    _jobset,
)


def check_coordinator(place: Place) -> None:
    """Refuses a coordinator that several hosts cannot reach: each would look for it on itself, for ever.

    Raises:
      UserError: its address is the loopback's.
    """
    host = place.host()
    if place.hosts > 1 and is_loopback(host):
        raise UserError(
            f'the coordinator {place.coordinator} is an address of the loopback, which means another machine to each '
            f'of the {place.hosts} hosts: give the address of process 0 that the others reach'
        )
    if place.hosts > 1 and place.on_first_host is False and resolves_to_loopback(host):
        raise UserError(
            f'{socket.gethostname()} takes the name of the coordinator, {host}, for itself (127.x): correct its '
            '/etc/hosts, or give the address as MVDJAX_COORDINATOR'
        )


def is_loopback(host: str) -> bool:
    """Whether a host is named as the machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ('localhost', 'localhost.localdomain', 'ip6-localhost')


def resolves_to_loopback(host: str) -> bool:
    """Whether this machine's resolver takes a name for the machine itself; False for a name that is not known yet."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(a.partition('%')[0]).is_loopback for a in found)


def _join(host: str, port: int) -> str:
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def _port(env: Environment, job: int) -> int:
    """The coordinator's port: as told, or picked by a job's number, so that two jobs on one host seldom meet."""
    return int(env.get('MVDJAX_COORDINATOR_PORT', PORTS[0] + job % PORTS[1]))


def _number(env: Environment, name: str) -> int | None:
    text = env.get(name)
    if text is None or text == '':
        return None
    if not text.strip().isdigit():
        raise UserError(f'{name} must be a whole number, not {text!r}')
    return int(text)


def _need(env: Environment, name: str) -> int:
    value = _number(env, name)
    if value is None:
        raise UserError(f'{name} is not set, though other variables of the same launcher are: start all through it')
    return value
