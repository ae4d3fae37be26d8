#!/usr/bin/env bash
#SBATCH --job-name=mvdjax
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
# Trains on the nodes of a SLURM job; submit it from the root of this repository, on storage that all nodes share.
#
#   start, resume   sbatch --nodes=4 --gres=gpu:8 --cpus-per-task=64 --time=24:00:00 launch/slurm.sh \
#                     --config=configs/mvd/k400_vit_b_from_b_400.py --workdir=/shared/runs/mvd_b
#                   (first sbatch's options, which your cluster decides, then the arguments of `mvdjax train`)
#   stop            scancel --signal=TERM JOB: the run saves, ends and is requeued; then scancel JOB, while it is pending.
#                   scancel JOB alone leaves it KillWait (30 s unless the cluster says otherwise) before it is killed
#   watch           tail -f mvdjax-JOB.out; squeue --me; metrics.jsonl and tensorboard/ are in the workdir
#
# One task per node takes all its GPUs; --ntasks-per-node=8 gives each task its share. Show tasks all GPUs of the node
# (--gres or --gpus-per-node); with --gpus-per-task each takes the ones it sees. Three minutes before the time limit
# (--signal) and when the scheduler wants the nodes back, the run saves and ends with exit code 75, and the job is
# requeued: so it goes on for as many jobs as it takes. --signal concerns the time limit only: for preemption the cluster
# decides (docs/launching.md). A save that is cut short costs the steps since the last checkpoint.
# Variables: MVDJAX, the command (default: .venv/bin/mvdjax here, else mvdjax).
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 1
# shellcheck source=launch/restarting.sh
. launch/restarting.sh

command=(mvdjax)
if [ -x .venv/bin/mvdjax ]; then command=("$PWD/.venv/bin/mvdjax"); fi
if [ -n "${MVDJAX:-}" ]; then read -ra command <<<"$MVDJAX"; fi # words: it may be "python -m mvdjax"
workdir="$(find_workdir "$@")"
if [ -z "$workdir" ]; then
  echo 'no --workdir=DIR among the arguments; they are those of mvdjax train' >&2
  exit 2
fi
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # since 22.05 srun does not take it from sbatch
else
  echo 'note: without --cpus-per-task a task may have a single core, too little for reading videos' >&2
fi
echo "== job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, on ${SLURM_JOB_NODELIST:-this node}, $(date)"

# The scheduler's own SIGTERM reaches the steps; this shell has to outlive them, to see how they ended.
trap ':' TERM
srun --kill-on-bad-exit=1 --label "${command[@]}" train "$@" &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends `wait` early
wait "$step"
code=$?

state="$(scontrol show job --oneliner "$SLURM_JOB_ID" | sed 's/.*JobState=\([A-Z_]*\).*/\1/')"
echo "== mvdjax ended with exit code $code, the job is $state"
# A job that was cancelled stays so, and one that was preempted is requeued by SLURM itself.
if restartable "$code" && [ "$state" = RUNNING ] && may_restart "$workdir"; then
  echo '== requeued; it goes on from the last checkpoint'
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 # until the requeue ends this shell: ending by itself, the job would count as failed
fi
exit "$code"
