import contextlib
import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from jobset_schema import JOBSET, problems

from mvdjax.clusters import find_place
from mvdjax.errors import TRY_AGAIN

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / 'launch'
SCRIPTS = [*LAUNCH.glob('*.sh'), *(ROOT / 'tests/integration').glob('*.sh'), ROOT / '.ci/run']


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/usr/bin/env bash\n' + text)
    path.chmod(0o755)
    return path


# Tests in the background of a script, or under nohup, ignore SIGINT, and what they start would, too; a shell that was
# started so cannot trap it. This becomes the command that it is given, with Ctrl-C as a terminal has it.
AS_IN_A_TERMINAL = (
    'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])'
)


@contextlib.contextmanager
def start(*command, **variables):
    """A launcher in a process group of its own, which ends with the block."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(('SLURM_', 'MVDJAX'))}
    with subprocess.Popen(
        [sys.executable, '-IS', '-c', AS_IN_A_TERMINAL, *(str(word) for word in command)],
        env=env | {k: str(v) for k, v in variables.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def run(*command, **variables):
    """(exit code, output) of a launcher."""
    with start(*command, **variables) as process:
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_scripts_pass_shellcheck():
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    shellcheck = shutil.which('shellcheck', path=path)
    assert shellcheck, 'shellcheck comes with the extra "test"'
    found = subprocess.run([shellcheck, *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize('name', ['local.sh', 'slurm.sh', 'tpu_pod.sh', 'k8s_jobset.yaml'])
def test_launchers_say_how_to_use_them_and_hold_no_hyperparameters(name):
    head = (LAUNCH / name).read_text()
    for word in ('start, resume', 'stop', 'watch'):
        assert f'#   {word}' in head
    assert '--config.' not in head


# One process of a run: notes its place and arguments, then ends with the code that the test wrote for this attempt.
FAKE = """
mkdir -p "$LOG"
attempt="$(ls "$LOG" | grep -c "^$MVDJAX_PROCESS\\.")"
echo "$MVDJAX_PROCESS/$MVDJAX_PROCESSES $MVDJAX_COORDINATOR $*" >"$LOG/$MVDJAX_PROCESS.$attempt"
codes=($CODES)
code="${codes[$attempt]:-0}"
if [ "$code" = kill ]; then kill -KILL $$; fi
if [ "$code" = save ]; then mkdir -p "$WORKDIR/checkpoints/$((attempt + 1))"; code=75; fi
if [ "$code" = alone ]; then # process 1 crashes, and the other neither notices nor listens
  if [ "$MVDJAX_PROCESS" = 1 ]; then exit 139; fi
  trap '' TERM
  while :; do sleep 0.05; done
fi
if [ "$code" = wait ]; then trap 'echo saved; exit 75' TERM; while :; do sleep 0.05; done; fi
exit "$code"
"""


def local(tmp_path, codes, processes=2):
    """launch/local.sh with processes that end with `codes`, one for each start."""
    fake = script(tmp_path / 'bin/mvdjax', FAKE)
    command = [LAUNCH / 'local.sh', processes, f'--workdir={tmp_path}/run', '--config=a b']
    return command, {'MVDJAX': fake, 'LOG': tmp_path / 'log', 'CODES': codes, 'WORKDIR': tmp_path / 'run'}


def test_local_gives_each_process_its_place_and_the_arguments(tmp_path):
    command, variables = local(tmp_path, '0', processes=3)
    assert run(*command, **variables)[0] == 0
    told = [(tmp_path / f'log/{i}.0').read_text().split(' ', 2) for i in range(3)]
    assert [place for place, _, _ in told] == ['0/3', '1/3', '2/3']
    assert len({address for _, address, _ in told}) == 1
    assert told[0][1].startswith('127.0.0.1:')
    assert told[0][2] == f'train --workdir={tmp_path}/run --config=a b\n'


@pytest.mark.parametrize(
    ('codes', 'code', 'starts'),
    [
        ('75 kill 0', 0, 3),  # told to stop, then killed, then done
        ('134 135 139 0', 0, 4),  # crashes in a library
        ('1 0', 1, 1),  # it would only come again
        ('130 0', 130, 1),  # Ctrl-C
        ('2', 2, 1),
        ('75 1', 1, 2),
        ('75 75 75 75 75 75 75 75 0', TRY_AGAIN, 6),  # in vain
        ('save save save save save save save save 0', 0, 9),  # there is progress
    ],
)
def test_local_starts_again_what_is_worth_it(tmp_path, codes, code, starts):
    command, variables = local(tmp_path, codes)
    assert run(*command, **variables)[0] == code
    for process in (0, 1):
        assert len(list((tmp_path / 'log').glob(f'{process}.*'))) == starts


def test_local_ends_processes_that_wait_for_one_that_has_failed(tmp_path):
    command, variables = local(tmp_path, 'alone 0')
    code, output = run(*command, **variables, MVDJAX_PATIENCE=1)
    assert code == 0
    assert '1 of 2 have not noticed in 1 s: SIGTERM' in output
    assert '1 of 2 have not noticed in 1 s: SIGKILL' in output
    assert output.count('starting again') == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_local_passes_a_stop_on_and_does_not_start_again(tmp_path, number):
    command, variables = local(tmp_path, 'wait wait wait')
    with start(*command, **variables) as process:
        until = time.monotonic() + 30
        while len(list((tmp_path / 'log').glob('*'))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output.count('saved') == 2
    assert len(list((tmp_path / 'log').glob('*'))) == 2


def test_local_explains_itself():
    for arguments in ((), ('two', '--config=a'), ('2',)):
        code, output = run(LAUNCH / 'local.sh', *arguments)
        assert code == 2
        assert 'start, resume   launch/local.sh 2' in output


@pytest.mark.parametrize(
    ('code', 'state', 'requeued'),
    [
        (75, 'RUNNING', True),
        (137, 'RUNNING', True),
        (134, 'RUNNING', True),
        (130, 'RUNNING', False),
        (0, 'RUNNING', False),
        (1, 'RUNNING', False),
        (75, 'CANCELLED', False),  # by scancel
        (75, 'PREEMPTED', False),  # SLURM does it
    ],
)
def test_slurm_requeues_what_is_worth_it(tmp_path, code, state, requeued):
    script(
        tmp_path / 'bin/srun',
        f'printf "%s|" "$@" >{tmp_path}/srun; echo "$SRUN_CPUS_PER_TASK" >>{tmp_path}/srun; exit {code}\n',
    )
    script(tmp_path / 'bin/sleep', 'exit 0\n')
    script(tmp_path / 'bin/scontrol', f'echo "$@" >>{tmp_path}/scontrol; echo "JobId=7 JobState={state} Reason=None"\n')
    variables = {'SLURM_JOB_ID': 7, 'SLURM_SUBMIT_DIR': ROOT, 'SLURM_CPUS_PER_TASK': 4, 'MVDJAX': 'my mvdjax'}
    variables['PATH'] = f'{tmp_path}/bin:{os.environ["PATH"]}'
    copied = shutil.copy(LAUNCH / 'slurm.sh', tmp_path / 'script')  # as slurmd does
    found, output = run(copied, '--config=a b', '--workdir', tmp_path / 'run', **variables)
    assert found == code, output
    words = (tmp_path / 'srun').read_text().strip().split('|')
    assert words[-7:] == ['my', 'mvdjax', 'train', '--config=a b', '--workdir', f'{tmp_path}/run', '4']
    assert ('requeue 7' in (tmp_path / 'scontrol').read_text()) == requeued


def test_slurm_wants_a_workdir_and_sbatch(tmp_path):
    assert 'submit this script with sbatch' in run(LAUNCH / 'slurm.sh', '--workdir=x')[1]
    code, output = run(LAUNCH / 'slurm.sh', '--config=a', SLURM_SUBMIT_DIR=ROOT, SLURM_JOB_ID=1)
    assert (code, 'no --workdir=DIR' in output) == (2, True)


# ssh to "the hosts" runs the command in a folder of this machine.
GCLOUD = """
printf "%s|" "$@" >>"$CALLS"; echo >>"$CALLS"
for word in "$@"; do
  case "$word" in --command=*) cd "$HOSTS" && exec bash -c "${word#--command=}" ;; esac
done
"""


def tpu_pod(tmp_path, fake):
    """launch/tpu_pod.sh with one host on which `fake` is installed as mvdjax: a function of its arguments."""
    script(tmp_path / 'host/mvdjax/.venv/bin/mvdjax', fake)
    shutil.copytree(LAUNCH, tmp_path / 'host/mvdjax/launch')
    gcloud = script(tmp_path / 'gcloud', GCLOUD)
    environment = {'GCLOUD': gcloud, 'CALLS': tmp_path / 'calls', 'HOSTS': tmp_path / 'host', 'PROJECT': 'mine'}

    def pod(action, *arguments, **variables):
        return run(LAUNCH / 'tpu_pod.sh', action, 'pod', 'zone', *arguments, **environment, **variables)

    return pod


def test_tpu_pod_starts_shows_and_stops(tmp_path):
    fake = 'echo "args: $*"; trap \'echo saved; exit 1\' TERM; while :; do sleep 0.05; done\n'
    pod = tpu_pod(tmp_path, fake)
    log = tmp_path / 'host/mvdjax/run.log'

    def wait_for(text):
        until = time.monotonic() + 30
        while not (log.exists() and text in log.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        assert text in log.read_text()

    assert pod('start', '--config=a b.py:c', '--workdir=/r')[0] == 0
    wait_for('args: train --config=a b.py:c --workdir=/r\n')
    try:
        assert 'at work\nargs: train' in pod('status')[1]
        code, output = pod('start', '--workdir=/r')
        assert (code, 'runs already' in output) == (1, True)
    finally:
        assert pod('stop')[0] == 0
    wait_for('saved')
    until = time.monotonic() + 30
    while 'at work' in pod('status')[1] and time.monotonic() < until:
        time.sleep(0.1)
    assert 'ended' in pod('status')[1]
    calls = (tmp_path / 'calls').read_text()
    assert 'compute|tpus|tpu-vm|ssh|pod|--zone=zone|--project=mine|--worker=all|' in calls
    assert pod('start')[0] == pod('start', '--config=x')[0] == pod('dance')[0] == 2


def test_tpu_pod_starts_again_what_is_worth_it(tmp_path):
    pod = tpu_pod(tmp_path, f'cat {tmp_path}/code; exit "$(cat {tmp_path}/code)"\n')
    script(tmp_path / 'bin/sleep', 'exit 0\n')
    variables = {'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}'}
    log = tmp_path / 'host/mvdjax/run.log'
    for code, starts in ((1, 1), (139, 6), (75, 6), (0, 1)):  # each `start` counts anew
        log.unlink(missing_ok=True)
        (tmp_path / 'code').write_text(f'{code}\n')
        assert pod('start', f'--workdir={tmp_path}/run', **variables)[0] == 0
        until = time.monotonic() + 30
        while 'at work' in pod('status')[1] and time.monotonic() < until:
            time.sleep(0.1)
        assert log.read_text().count(f'ended with exit code {code}\n') == starts
        assert ('5 restarts since step 0 without a new checkpoint' in log.read_text()) == (starts == 6)


@pytest.fixture(scope='module')
def manifest():
    return yaml.safe_load((LAUNCH / 'k8s_jobset.yaml').read_text())


def parts(manifest):
    """(job spec, pod spec, container)."""
    job = manifest['spec']['replicatedJobs'][0]['template']['spec']
    pod = job['template']['spec']
    return job, pod, pod['containers'][0]


def test_the_manifest_fits_the_apis(manifest):
    assert problems(manifest, JOBSET) == []
    for change, said in (
        (lambda m: m.update(kind='Job'), 'kind'),
        (lambda m: m['spec'].update(replicatedjobs=[]), 'replicatedjobs is not known'),
        (lambda m: parts(m)[0].update(parallelism='4'), "parallelism: '4' is of the wrong type"),
        (lambda m: parts(m)[0]['podFailurePolicy']['rules'][0].update(action='Restart'), "'Restart' is none of"),
        (lambda m: parts(m)[2]['env'][0].pop('name'), 'lacks name'),
        (lambda m: parts(m)[1]['containers'].clear(), 'not a list of anything'),
    ):
        wrong = copy.deepcopy(manifest)
        change(wrong)
        found = problems(wrong, JOBSET)
        assert len(found) == 1, found
        assert said in found[0]


def test_the_manifest_fits_itself_and_the_program(manifest):
    job, pod, container = parts(manifest)
    assert job['parallelism'] == job['completions']
    assert (job['completionMode'], job['backoffLimit'], pod['restartPolicy']) == ('Indexed', 0, 'Never')
    codes, conditions = job['podFailurePolicy']['rules']
    again = [TRY_AGAIN, *sorted(128 + getattr(signal, f'SIG{n}') for n in ('ABRT', 'BUS', 'KILL', 'SEGV', 'TERM'))]
    assert codes['onExitCodes'] == {'containerName': container['name'], 'operator': 'In', 'values': again}
    assert conditions['onPodConditions'] == [{'type': 'DisruptionTarget', 'status': 'True'}]
    (rule,) = manifest['spec']['failurePolicy']['rules']
    assert (rule['action'], rule['onJobFailureReasons']) == ('RestartJobSetAndIgnoreMaxRestarts', ['PodFailurePolicy'])
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    assert mounts.keys() == {volume['name'] for volume in pod['volumes']}
    assert mounts['shm'] == '/dev/shm'
    (workdir,) = [a.removeprefix('--workdir=') for a in container['args'] if a.startswith('--workdir=')]
    assert workdir.startswith(mounts['runs'] + '/')
    (config,) = [a.removeprefix('--config=') for a in container['args'] if a.startswith('--config=')]
    assert (ROOT / config).exists()


def test_pods_of_the_manifest_find_their_places(manifest):
    job, _, container = parts(manifest)
    name, replicated = manifest['metadata']['name'], manifest['spec']['replicatedJobs'][0]['name']
    for slices in (1, 2):
        places = []
        for index in range(slices):
            for pod in range(job['parallelism']):
                annotations = {  # as JobSet and the Job controller write them
                    'jobset.sigs.k8s.io/jobset-name': name,
                    'jobset.sigs.k8s.io/replicatedjob-name': replicated,
                    'jobset.sigs.k8s.io/replicatedjob-replicas': str(slices),
                    'jobset.sigs.k8s.io/job-index': str(index),
                    'batch.kubernetes.io/job-completion-index': str(pod),
                }
                env = {}
                for entry in container['env']:
                    path = entry.get('valueFrom', {}).get('fieldRef', {}).get('fieldPath', '')
                    key = path.removeprefix("metadata.annotations['").removesuffix("']")
                    env[entry['name']] = entry['value'] if 'value' in entry else annotations[key]
                places.append(find_place(environment=env))
        assert [place.process for place in places] == list(range(slices * job['parallelism']))
        assert {place.coordinator for place in places} == {f'{name}-{replicated}-0-0.{name}:8482'}
        assert container['ports'] == [{'containerPort': 8482}]
