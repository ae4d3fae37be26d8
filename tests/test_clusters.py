import http.server
import threading

import pytest

from mvdjax import clusters
from mvdjax.clusters import check_coordinator, expand_nodes, find_place
from mvdjax.errors import UserError

SLURM = {
    'SLURM_JOB_ID': '4100',
    'SLURM_STEP_ID': '0',
    'SLURM_STEP_NODELIST': 'gpu[07-08],fat1',
    'SLURM_STEP_NUM_TASKS': '3',
    'SLURM_PROCID': '1',
    'SLURM_NODEID': '1',
}
OPEN_MPI = {
    'OMPI_COMM_WORLD_SIZE': '16',
    'OMPI_COMM_WORLD_RANK': '9',
    'OMPI_COMM_WORLD_LOCAL_SIZE': '8',
    'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
}
TPU = {'TPU_WORKER_HOSTNAMES': 't0.example,t1.example', 'TPU_WORKER_ID': '1'}
SLICES = TPU | {
    'MEGASCALE_NUM_SLICES': '2',
    'MEGASCALE_SLICE_ID': '1',
    'MEGASCALE_COORDINATOR_ADDRESS': 'first.example:8080',
}
JOBSET = {
    'JOBSET_NAME': 'mvdjax',
    'REPLICATED_JOB_NAME': 'train',
    'JOBSET_REPLICAS': '2',
    'JOBSET_PARALLELISM': '4',
    'JOB_INDEX': '1',
    'JOB_COMPLETION_INDEX': '2',
}
OWN = {'MVDJAX_COORDINATOR': 'a:1', 'MVDJAX_PROCESSES': '4', 'MVDJAX_PROCESS': '3'}


@pytest.mark.parametrize(
    ('environment', 'source', 'coordinator', 'processes', 'process', 'hosts'),
    [
        (SLURM, 'SLURM', f'gpu07:{61440 + 4}', 3, 1, 3),
        (SLURM | {'SLURM_STEP_NODELIST': 'n1', 'SLURM_STEP_ID': '2'}, 'SLURM', f'n1:{61440 + 18}', 3, 1, 1),
        (SLURM | {'MVDJAX_COORDINATOR': '10.0.0.1:7'}, 'SLURM', '10.0.0.1:7', 3, 1, 3),
        (SLURM | {'MVDJAX_COORDINATOR_PORT': '9'}, 'SLURM', 'gpu07:9', 3, 1, 3),
        (SLURM | OWN, 'MVDJAX_ variables', 'a:1', 4, 3, 0),
        (SLURM | OPEN_MPI, 'Open MPI', None, 16, 9, 0),  # mpirun's helpers inherit srun's variables
        (TPU, 'TPU', 't0.example:8482', 2, 1, 2),
        (SLICES, 'TPU', 'first.example:8482', 4, 3, 4),
        (JOBSET, 'Kubernetes JobSet', 'mvdjax-train-0-0.mvdjax:8482', 8, 6, 8),
        (JOBSET | SLICES, 'TPU', 'first.example:8482', 4, 3, 4),
    ],
)
def test_the_place_that_an_environment_gives(environment, source, coordinator, processes, process, hosts):
    place = find_place(environment=environment)
    assert (place.source, place.processes, place.process, place.hosts) == (source, processes, process, hosts)
    assert coordinator in (place.coordinator, None)


@pytest.mark.parametrize(
    'environment',
    [
        {},
        {name: value for name, value in SLURM.items() if not name.startswith('SLURM_STEP')},  # a batch script
        SLURM | {'SLURM_STEP_ID': '4294967290', 'SLURM_STEP_NUM_TASKS': '1'},  # a shell that salloc gave
        SLURM | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'},
        {'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'},
        {'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0'},
        {'MVDJAX_PROCESSES': '1'},
        {'MVDJAX_COORDINATOR': 'a:1'},
    ],
)
def test_a_process_alone(environment):
    assert find_place(environment=environment).processes == 1


def test_open_mpi_takes_the_address_of_mpirun_or_one_host():
    place = find_place(environment=OPEN_MPI)
    assert place.host() == '10.96.0.1'
    assert find_place(environment=OPEN_MPI | {'OMPI_COMM_WORLD_RANK': '0'}).coordinator == place.coordinator
    six = OPEN_MPI | {'OMPI_MCA_orte_hnp_uri': '1314521088.0;tcp6://[fe80::b9b:ac5d,2620::2]:43370'}
    assert find_place(environment=six).host() == 'fe80::b9b:ac5d'
    alone = OPEN_MPI | {'OMPI_COMM_WORLD_LOCAL_SIZE': '16'}
    assert find_place(environment=alone).host() == '127.0.0.1'
    five = {name: value for name, value in OPEN_MPI.items() if 'uri' not in name} | {'PMIX_NAMESPACE': 'prterun-a-7@1'}
    with pytest.raises(UserError, match='MVDJAX_COORDINATOR=HOST:PORT'):
        find_place(environment=five)
    assert find_place(environment=five | {'MVDJAX_COORDINATOR': 'b:5'}).coordinator == 'b:5'


def test_flags_come_first_and_have_to_be_complete():
    assert find_place('h:1', 2, 1, SLURM).source == 'flags'
    assert find_place(None, 1, None, SLURM).processes == 1
    for given in (('h:1', None, None), ('h:1', 2, None), (None, 2, 0)):
        with pytest.raises(UserError, match='is missing'):
            find_place(*given, environment={})
    with pytest.raises(UserError, match='numbered from 0'):
        find_place('h:1', 2, 2, {})
    with pytest.raises(UserError, match='HOST:PORT'):
        find_place('h', 2, 0, {})
    with pytest.raises(UserError, match='SLURM_PROCID must be a whole number'):
        find_place(environment=SLURM | {'SLURM_PROCID': 'x'})


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('node001', ['node001']),
        ('a,b', ['a', 'b']),
        ('a[008-011]', ['a008', 'a009', 'a010', 'a011']),
        ('a[1,3-4]-ib,b2', ['a1-ib', 'a3-ib', 'a4-ib', 'b2']),
        ('r[1-2]n[1-2]', ['r1n1', 'r1n2', 'r2n1', 'r2n2']),
    ],
)
def test_node_lists(text, names):
    assert expand_nodes(text) == names


@pytest.mark.parametrize('address', ['127.0.0.1', 'localhost', '[::1]', '127.1.2.3'])
def test_a_loopback_coordinator_of_several_hosts_is_refused(address):
    with pytest.raises(UserError, match=r'loopback.*3 hosts'):
        check_coordinator(find_place(environment=SLURM | {'MVDJAX_COORDINATOR': f'{address}:5'}))
    check_coordinator(find_place(f'{address}:5', 2, 1, {}))  # on one host it is right


def test_a_host_that_takes_the_coordinator_for_itself_is_refused(monkeypatch):
    monkeypatch.setattr(clusters.socket, 'getaddrinfo', lambda host, port: [(0, 0, 0, '', ('127.0.1.1', 0))])
    with pytest.raises(UserError, match=r'gpu07.*etc/hosts'):
        check_coordinator(find_place(environment=SLURM))
    check_coordinator(find_place(environment=SLURM | {'SLURM_NODEID': '0', 'SLURM_PROCID': '0'}))


def test_the_metadata_of_a_tpu_host(monkeypatch):
    attributes = {
        'agent-worker-number': '1',
        'worker-network-endpoints': 'unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3',
        'tpu-env': "ACCELERATOR_TYPE: 'v5litepod-16'\nMEGASCALE_NUM_SLICES: '1'\n",
    }

    trouble = []  # codes of the next answers

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rpartition('/')[2])
            if trouble:
                self.send_response(trouble.pop())
                self.end_headers()
                return
            known = value is not None and self.headers['Metadata-Flavor'] == 'Google'
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((value or '').encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {'GCE_METADATA_IP': f'127.0.0.1:{server.server_port}'}
    try:
        assert find_place(environment=environment).processes == 1  # no TPU here
        monkeypatch.setattr(clusters, 'has_tpu', lambda: True)
        place = find_place(environment=environment)
        assert (place.coordinator, place.processes, place.process) == ('10.0.0.2:8482', 2, 1)
        assert place.names == ('10.0.0.2', '10.0.0.3')
        attributes['tpu-env'] = (
            "MEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\nMEGASCALE_COORDINATOR_ADDRESS: 'c:1'"
        )
        place = find_place(environment=environment)
        assert (place.coordinator, place.processes, place.process) == ('c:8482', 6, 5)
        monkeypatch.setattr(clusters, 'METADATA_PATIENCE', 0.5)
        trouble += [503, 500]  # it is asked again
        assert find_place(environment=environment) == place
        del attributes['agent-worker-number']
        assert find_place(environment=environment).processes == 1
        trouble += [503] * 1000
        with pytest.raises(
            UserError, match=r'metadata server 127.0.0.1:\d+, .*agent-worker-number.*503.*--processes=1'
        ):
            find_place(environment=environment)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UserError, match='Connection refused'):  # no answer at all
        find_place(environment=environment)
    assert find_place(None, 1, None, environment).processes == 1
