# shellcheck shell=bash
# Sourced by the launchers beside it: when is a run that has ended worth starting again?

TRY_AGAIN=75    # exit code of a run that was told to stop, or lost a process: it goes on from its last checkpoint
IDLE_RESTARTS=5 # restarts in a row without a new checkpoint before somebody has to look

# The value of --workdir among the arguments.
find_workdir() {
  local argument take=''
  for argument in "$@"; do
    if [ -n "$take" ]; then echo "$argument" && return; fi
    case "$argument" in
      --workdir=*) echo "${argument#--workdir=}" && return ;;
      --workdir) take=yes ;;
    esac
  done
}

# The newest checkpoint's step in a workdir, 0 without one.
newest_step() {
  local folder step newest=0
  for folder in "$1"/checkpoints/*/; do
    step="$(basename "$folder")"
    if [[ "$step" =~ ^[0-9]+$ ]] && [ "$step" -gt "$newest" ]; then newest="$step"; fi
  done
  echo "$newest"
}

# restartable CODE: whether an exit code means that the same command may go on: told to stop, or ended by a signal, be it a
# kill (137, 143) or a crash in a library or driver (134 abort, 135 bus error, 139 segmentation fault). Not by Ctrl-C.
restartable() {
  [ "$1" -eq "$TRY_AGAIN" ] || { [ "$1" -ge 128 ] && [ "$1" -ne 130 ]; }
}

# may_restart WORKDIR [NOTE]: counts a restart in the file NOTE; fails after IDLE_RESTARTS without a new checkpoint.
may_restart() {
  local note="${2:-$1/.restarts}" before=-1 count=0 now
  now="$(newest_step "$1")"
  if [ -f "$note" ]; then read -r before count <"$note"; fi
  if [ "$now" -ne "$before" ]; then count=0; fi
  count=$((count + 1))
  mkdir -p "$(dirname "$note")" && echo "$now $count" >"$note"
  if [ "$count" -gt "$IDLE_RESTARTS" ]; then
    echo "$IDLE_RESTARTS restarts since step $now without a new checkpoint: see what the run says, then remove $note" >&2
    return 1
  fi
}
