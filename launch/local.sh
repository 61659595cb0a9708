#!/usr/bin/env bash
# A run in several processes on one machine: with simulated CPU devices, as a test of a run on
# several hosts, or with one process per GPU. See docs/launch.md and docs/fault_tolerance.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh
source launch/environment.sh

USAGE="Usage: launch/local.sh [OPTIONS] --config FILE --workdir DIR [ARGUMENTS OF dmpo-jax train]

  launch/local.sh --processes 2 --devices 2 --config configs/digits_dmpo.py --workdir runs/dmpo
  launch/local.sh --processes 8 --gpus --config configs/sd15_dmpo.py --workdir runs/sd15

  --processes N   number of processes (default 2)
  --devices M     simulated CPU devices per process (default 1)
  --gpus          one GPU per process instead: process I sees GPU I
  --restarts K    restarts after a process was lost or preempted (default 5)
  --dry-run       print the commands, quoted for a shell, and run nothing

SIGTERM goes to all processes, which save a checkpoint. Ctrl-C ends all within two seconds (130). The
exit status is that of the processes; a killed process counts as lost (76)."

PROCESSES=2 DEVICES=1 GPUS="" RESTARTS=5
while (($#)); do
  case "$1" in
    --help | -h) echo "$USAGE" && exit 0 ;;
    --processes | --devices | --restarts)
      flag="${1#--}"
      (($# > 1)) || die "--$flag needs a value"
      printf -v "${flag^^}" '%s' "$2"
      shift
      ;;
    --gpus) GPUS=yes ;;
    --dry-run) DRY_RUN=yes ;;
    *) REST+=("$1") ;;
  esac
  shift
done
whole processes devices restarts
((PROCESSES > 0 && DEVICES > 0)) || die "--processes and --devices must be at least 1"
((PROCESSES <= 1024)) || die "--processes must be at most 1024, got $PROCESSES"
for argument in "${REST[@]}"; do printable "an argument" "$argument"; done

# command_of INDEX PORT: sets COMMAND, the command of a process.
command_of() {
  COMMAND=("$VENV/bin/dmpo-jax" train "${REST[@]}"
    --coordinator "127.0.0.1:$2" --num-processes "$PROCESSES" --process-id "$1")
  if [ -n "$GPUS" ]; then
    COMMAND=(env "CUDA_VISIBLE_DEVICES=$1" "${COMMAND[@]}")
  else
    # Simulated devices on few cores can deadlock unless XLA assumes more processors (NPROC).
    local flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES"
    COMMAND=(env JAX_PLATFORMS=cpu NPROC=32 "XLA_FLAGS=$flags" "${COMMAND[@]}")
  fi
}

free_port() {
  "$VENV/bin/python" -c \
    'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

if [ -n "$DRY_RUN" ]; then
  for ((index = 0; index < PROCESSES; index++)); do
    command_of "$index" PORT
    run "${COMMAND[@]}"
  done
  exit 0
fi

SIGNALLED="" INTERRUPTED="" pids=()
forward() {
  SIGNALLED=yes
  kill "-$1" "${pids[@]}" 2> /dev/null || true
}
# interrupt: ends all processes. bash starts them with SIGINT ignored, and they listen to it only
# once they run, so it is sent again.
interrupt() {
  [ -z "$INTERRUPTED" ] || return 0
  INTERRUPTED=yes
  forward INT
  (
    for ((tenth = 0; tenth < 17; tenth++)); do
      sleep 0.1
      kill -INT "${pids[@]}" 2> /dev/null || exit 0
    done
    kill -KILL "${pids[@]}" 2> /dev/null
  ) &
}
trap 'forward TERM' TERM
trap interrupt INT

# run_once: runs all processes to their end and sets STATUS; an error has priority over a loss.
run_once() {
  local port index code
  pids=() STATUS=0
  # Ctrl-C in a terminal reaches this Python too.
  port="$(free_port)" || { [ -n "$INTERRUPTED" ] && exit 130; } || exit 1
  for ((index = 0; index < PROCESSES; index++)); do
    [ -z "$INTERRUPTED" ] || break
    command_of "$index" "$port"
    # Each line of output begins with the index of its process.
    "${COMMAND[@]}" > >(sed -u "s/^/[$index] /") 2> >(sed -u "s/^/[$index] /" >&2) &
    pids+=($!)
  done
  # Processes that were started while Ctrl-C was handled did not get it, and have nothing to save.
  [ -z "$INTERRUPTED" ] || kill -KILL "${pids[@]}" 2> /dev/null || true
  for index in "${!pids[@]}"; do
    while true; do # a trapped signal ends wait, not the process
      code=0
      wait "${pids[index]}" || code=$?
      kill -0 "${pids[index]}" 2> /dev/null || break
    done
    if ((code == 137 || code == 143)); then code=76; fi
    case "$code:$STATUS" in
      0:*) ;;
      76:0 | 75:0 | 75:76) STATUS=$code ;;
      75:* | 76:*) ;;
      *) STATUS=$code ;;
    esac
  done
}

for ((start = 0; ; start++)); do
  run_once
  [ -z "$INTERRUPTED" ] || exit 130
  case "$STATUS" in
    75 | 76) ;;
    *) exit "$STATUS" ;;
  esac
  [ -z "$SIGNALLED" ] && ((start < RESTARTS)) || exit "$STATUS"
  say "status $STATUS: starting again ($((start + 1)) of $RESTARTS)"
done
