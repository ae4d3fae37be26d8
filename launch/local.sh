#!/usr/bin/env bash
# Trains with several processes on this machine; each takes its share of the GPUs.
#
#   start, resume   launch/local.sh 2 --config=configs/finetune/demo_nano.py:motion --workdir=runs/motion
#                   (the number of processes, then the arguments of `mvdjax train`; the same command goes on where it was)
#   stop            Ctrl-C: all processes save and end; once more ends them at once. Also: kill -TERM of this script.
#   watch           process 0 prints here; metrics.jsonl and tensorboard/ are in the workdir
#
# A run that is killed, crashes (exit codes from 128 on) or was told to stop from outside (75) is started again from its last
# checkpoint, up to 5 times without a new one. An error that would come again (exit code 1 or 2) ends the script.
# Variables: MVDJAX, the command (default: .venv/bin/mvdjax here, else mvdjax); MVDJAX_COORDINATOR_PORT; MVDJAX_PATIENCE,
# the seconds that the others have to end by themselves when one process has failed (default: 60).
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/restarting.sh
. "$here/launch/restarting.sh"

processes="${1:-}"
if ! [[ "$processes" =~ ^[1-9][0-9]*$ ]] || [ "$#" -lt 2 ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
shift
command=(mvdjax)
if [ -x "$here/.venv/bin/mvdjax" ]; then command=("$here/.venv/bin/mvdjax"); fi
if [ -n "${MVDJAX:-}" ]; then read -ra command <<<"$MVDJAX"; fi # words: it may be "python -m mvdjax"
workdir="$(find_workdir "$@")"
patience="${MVDJAX_PATIENCE:-60}"
stopping=0 # how often somebody has asked
children=()

# A script's background commands ignore SIGINT, so it reaches them as SIGTERM, which saves and ends just the same.
pass_on() {
  stopping=$((stopping + 1))
  if [ "$stopping" -gt 1 ]; then kill -KILL "${children[@]}" 2>/dev/null; else kill -TERM "${children[@]}" 2>/dev/null; fi
}
trap pass_on INT TERM

# A port that nobody has just now.
free_port() {
  local port
  while :; do
    port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port" && return; fi
  done
}

# take CODE: of a process that has ended, into `code`: 0, or the first that is no use trying again, or 75.
take() {
  if [ "$1" -eq 0 ]; then return; fi
  if ! restartable "$1"; then
    if [ "$code" -eq 0 ] || [ "$code" -eq "$TRY_AGAIN" ]; then code="$1"; fi
  elif [ "$code" -eq 0 ]; then code="$TRY_AGAIN"; fi
}

# Starts all processes and waits for them; sets `code`. When one fails the others end by themselves, at once; but those
# that have not met it yet would wait for it for run.init_timeout: they are ended.
run_once() {
  local port i pid running waiting failed='' force=TERM
  port="${MVDJAX_COORDINATOR_PORT:-$(free_port)}"
  children=()
  code=0
  for ((i = 0; i < processes; i++)); do
    MVDJAX_COORDINATOR="127.0.0.1:$port" MVDJAX_PROCESSES="$processes" MVDJAX_PROCESS="$i" "${command[@]}" train "$@" &
    children+=("$!")
  done
  waiting=("${children[@]}")
  while :; do
    running=()
    for pid in "${waiting[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then running+=("$pid"); else wait "$pid"; take "$?"; fi
    done
    if [ "${#running[@]}" -eq 0 ]; then return; fi
    waiting=("${running[@]}")
    if [ "$code" -ne 0 ] && [ -z "$failed" ]; then failed="$SECONDS"; fi
    if [ -n "$failed" ] && [ $((SECONDS - failed)) -ge "$patience" ]; then
      echo "== a process has failed, and ${#waiting[@]} of $processes have not noticed in $patience s: SIG$force" >&2
      kill "-$force" "${waiting[@]}" 2>/dev/null
      failed="$SECONDS" force=KILL
    fi
    sleep 0.2
  done
}

while :; do
  run_once "$@"
  if [ "$stopping" -gt 0 ]; then
    echo "stopped; the same command goes on from the last checkpoint" >&2
    exit 130
  fi
  if [ "$code" -ne "$TRY_AGAIN" ]; then exit "$code"; fi
  if [ -z "$workdir" ] || ! may_restart "$workdir"; then exit "$code"; fi
  echo "== starting again from the last checkpoint" >&2
done
