#!/usr/bin/env bash
# launch/slurm.sh against a real Slurm: a cluster of one node, two tasks, a run that is preempted twice and resumes.
#
# Needs root on a Debian with `apt-get install slurmctld slurmd slurm-client munge`, the package installed for PYTHON
# (default: python3), and some minutes. Everything is made in a folder of its own and removed again; an existing Slurm is
# not touched. Prints what it sees, and ends with 0 if the preempted run has the undisturbed run's losses.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
for program in slurmctld slurmd sbatch munged; do
  command -v "$program" >/dev/null || { echo "$program is missing: apt-get install slurmctld slurmd slurm-client munge"; exit 1; }
done
if [ "$(id -u)" -ne 0 ]; then echo 'slurmd needs root' && exit 1; fi

folder="$(mktemp -d /tmp/mvdjax_slurm.XXXXXX)"
daemons=()
finish() {
  code=$?
  if [ "$code" -ne 0 ]; then tail -n 20 "$folder"/*.log "$folder"/out/*.out 2>/dev/null || true; fi
  scancel --quiet --user=root 2>/dev/null || true
  sleep 1
  for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
  sleep 2
  for pid in "${daemons[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  if [ -n "${KEEP:-}" ]; then echo "kept $folder"; else rm -rf "$folder"; fi
}
trap finish EXIT

# Prints what it waits for when that does not come.
wait_until() { # SECONDS WHAT COMMAND...
  local seconds="$1" what="$2" i
  shift 2
  for ((i = 0; i < seconds * 2; i++)); do
    if "$@"; then return; fi
    sleep 0.5
  done
  echo "waited $seconds s in vain: $what"
  exit 1
}

start_cluster() {
  local host cores
  host="$(hostname -s)"
  cores="$(nproc)"
  mkdir -p "$folder"/{munge,state,spool,out}
  chmod 711 "$folder" "$folder/munge" # or munged warns that its socket cannot be reached
  dd if=/dev/urandom of="$folder/munge/key" bs=64 count=1 status=none
  chmod 600 "$folder/munge/key"
  munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" --log-file="$folder/munged.log" \
    >"$folder/munged.out.log" 2>&1 &
  daemons+=("$!")
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=10
CredType=cred/munge
SlurmctldPort=$((20000 + RANDOM % 5000))
SlurmdPort=$((25000 + RANDOM % 5000))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
JobRequeue=1
KillWait=60
MinJobAge=3600
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  export SLURM_CONF="$folder/slurm.conf"
  wait_until 20 'munged' test -S "$folder/munge/socket"
  slurmctld -D >"$folder/slurmctld.out.log" 2>&1 &
  daemons+=("$!")
  slurmd -D >"$folder/slurmd.out.log" 2>&1 &
  daemons+=("$!")
  wait_until 60 'an idle node' sh -c 'sinfo --noheader --format=%T 2>/dev/null | grep -q idle'
  echo "== a cluster of one node with $cores cores, $(slurmctld -V)"
  sinfo
}

steps_done() { # WORKDIR STEP
  [ -f "$1/metrics.jsonl" ] && grep -q "\"step\": $2, \"kind\": \"train\"" "$1/metrics.jsonl"
}
state_is() { # JOB STATE
  scontrol show job --oneliner "$1" | grep -q "JobState=$2"
}
job_over() { # JOB
  scontrol show job --oneliner "$1" | grep -Eq 'JobState=(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL) '
}

submit() { # WORKDIR NAME
  export MVDJAX="$python -m mvdjax" JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 PYTHONUNBUFFERED=1
  # Slurm 22.05 binds tasks to their cores; two tasks share what this machine has.
  sbatch --parsable --job-name="$2" --output="$folder/out/%x-%j.out" --nodes=1 --ntasks-per-node=2 --oversubscribe \
    launch/slurm.sh --config=configs/finetune/demo_nano.py:motion --workdir="$1" "${overrides[@]}"
}

export PYTHONPATH="$PWD"
start_cluster
echo '== demo videos'
"$python" - "$folder/demo" >"$folder/demo.log" 2>&1 <<'PYTHON'
import pathlib
import sys

from mvdjax.data.demo import DemoSpec, write_demo

spec = DemoSpec(pretrain=32, labelled=16, val=8, test=8, images=8, workers=1)
write_demo(pathlib.Path(sys.argv[1]), spec, progress=False)
PYTHON
motion="$folder/demo/motion"
overrides=(
  "--config.data.files=${motion}_train.txt" "--config.data.class_file=${motion}_classes.txt"
  "--config.evals.val.data.files=${motion}_val.txt" "--config.evals.val.data.class_file=${motion}_classes.txt"
  "--config.evals.test.data.files=${motion}_test.txt" "--config.evals.test.data.class_file=${motion}_classes.txt"
  --config.task.model.variant=debug --config.run.epochs=None --config.run.steps=60 --config.run.global_batch=8
  --config.run.log_every=1 --config.run.save_every=20 --config.run.eval_every=0 --config.data.threads=1
)

echo '== the undisturbed run'
job="$(submit "$folder/plain" plain)"
wait_until 900 'the end of the undisturbed run' job_over "$job"
state_is "$job" COMPLETED
echo "job $job COMPLETED"

echo '== the same, preempted'
job="$(submit "$folder/preempted" preempted)"
wait_until 600 'step 12' steps_done "$folder/preempted" 12
echo "-- scancel --signal=TERM $job: what --signal does before the time limit"
scancel --signal=TERM "$job"
wait_until 300 'the second start' grep -q 'start 1, on' "$folder/out/preempted-$job.out"
wait_until 600 'step 32' steps_done "$folder/preempted" 32
echo "-- scontrol requeue $job: what a scheduler does that wants the node back"
scontrol requeue "$job"
wait_until 300 'the third start' grep -q 'start 2, on' "$folder/out/preempted-$job.out"
wait_until 900 'the end of the preempted run' job_over "$job"
state_is "$job" COMPLETED
echo "job $job COMPLETED"
echo '== what it printed, steps left out'
grep -Ev ': step [0-9]+/|Gloo|P\(' "$folder/out/preempted-$job.out"

echo '== the losses of both'
"$python" - "$folder/plain" "$folder/preempted" <<'PYTHON'
import sys

from mvdjax.metric_writer import read_metrics

plain, preempted = ({r['step']: r['loss'] for r in read_metrics(w) if r['kind'] == 'train'} for w in sys.argv[1:])
assert sorted(plain) == sorted(preempted) == list(range(1, 61)), (sorted(plain), sorted(preempted))
for step in (1, 13, 33, 60):
    print(f'step {step}: undisturbed {plain[step]!r}, preempted {preempted[step]!r}')
worst = max(abs(plain[s] - preempted[s]) for s in plain)
same = sum(plain[s] == preempted[s] for s in plain)
print(f'{same} of {len(plain)} losses are the same to the bit, the largest difference is {worst:g}')
sys.exit(0 if worst < 1e-5 else 1)
PYTHON
