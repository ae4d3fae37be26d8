#!/usr/bin/env bash
# Trains on a Cloud TPU slice, on all of its hosts, through gcloud.
#
#   install         launch/tpu_pod.sh install NAME ZONE        copies this repository to every host and installs it there
#   start, resume   launch/tpu_pod.sh start NAME ZONE --config=configs/mvd/k400_vit_b_from_b_400.py --workdir=/runs/mvd_b
#   watch           launch/tpu_pod.sh watch NAME ZONE          what the first host prints, until Ctrl-C
#   status          launch/tpu_pod.sh status NAME ZONE         whether each host is at work, and its last line
#   stop            launch/tpu_pod.sh stop NAME ZONE           the run saves and ends on all hosts
#
# The TPU is made first: gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-256 --version=...
# The workdir has to be one folder for all hosts: Filestore, or a bucket mounted with gcsfuse at the same place on each.
# The run does not depend on this terminal. A host on which it ends with exit code 75 (told to stop by the cloud, or lost
# another host) or by a signal (a crash of libtpu, out of memory) starts it again by itself, up to 5 times without a new
# checkpoint; `start` counts anew. After a spot TPU was taken away and made anew: install, mount, start.
# Variables: GCLOUD, the command (default: gcloud); PROJECT.
# shellcheck disable=SC2016 # what is in single quotes is for the hosts' shells
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

usage() {
  sed -n '2,/^# shellcheck/{/^# shellcheck/d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" >&2
  exit 2
}
if [ "$#" -lt 3 ]; then usage; fi
action="$1" name="$2" zone="$3"
shift 3
gcloud="${GCLOUD:-gcloud}"
where=("--zone=$zone")
if [ -n "${PROJECT:-}" ]; then where+=("--project=$PROJECT"); fi

# on HOSTS COMMAND: runs a shell command on hosts of the slice, "all" or a number.
on() {
  "$gcloud" compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

case "$action" in
  install)
    archive="$(mktemp)"
    trap 'rm -f "$archive"' EXIT
    git -C "$repository" archive --format=tar.gz --output="$archive" HEAD # what is committed
    "$gcloud" compute tpus tpu-vm scp "$archive" "$name:mvdjax.tar.gz" "${where[@]}" --worker=all
    # A folder that is made anew: files of an older version would count as part of this one.
    on all 'set -e; rm -rf mvdjax && mkdir mvdjax && tar -xzf mvdjax.tar.gz -C mvdjax
      cd mvdjax && . launch/environment.sh && make_environment tpu'
    ;;
  start)
    # shellcheck source=launch/restarting.sh
    . "$repository/launch/restarting.sh"
    if [ -z "$(find_workdir "$@")" ]; then
      echo 'no --workdir=DIR among the arguments; they are those of mvdjax train' >&2
      usage
    fi
    arguments="$(printf ' %q' "$@")"
    # The loop outlives the connection; it leads a process group, by which it is found again. Each host counts for itself.
    loop='. launch/restarting.sh; workdir="$(find_workdir "$@")"
      while :; do .venv/bin/mvdjax train "$@"; code=$?; echo "== ended with exit code $code"
        if ! restartable "$code" || ! may_restart "$workdir" .restarts; then exit "$code"; fi; sleep 10; done'
    on all "set -e; cd mvdjax
      if [ -e .run ] && kill -0 -- -\$(cat .run) 2>/dev/null; then echo 'runs already'; exit 1; fi
      rm -f .restarts
      nohup setsid bash -c $(printf %q "$loop") mvdjax $arguments >>run.log 2>&1 </dev/null &
      echo \$! >.run"
    ;;
  watch) on 0 'tail -n 20 -F mvdjax/run.log' ;;
  status)
    on all 'set -e; cd mvdjax
      if kill -0 -- -$(cat .run) 2>/dev/null; then echo "$(hostname): at work"; else echo "$(hostname): ended"; fi
      tail -n 1 run.log'
    ;;
  stop) # mvdjax, which saves, and the loop around it; not the data workers, which end with mvdjax
    on all 'cd mvdjax && pkill -TERM -g "$(cat .run)" -f "mvdjax train" || echo "$(hostname): nothing runs"'
    ;;
  *) usage ;;
esac
