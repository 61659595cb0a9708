#!/usr/bin/env bash
# Trains on one machine in several processes, each with devices of its own: to try a run of many hosts,
# or to give each GPU a process.
#
#   launch/local.sh --processes 2 --devices 2 --config configs/digits_dmpo.py --workdir runs/dmpo
#   launch/local.sh --processes 8 --gpus --config configs/sd15_lora.py --workdir runs/sd15
#
#   --processes N   how many (default 2)
#   --devices M     simulated CPU devices of each (default 1)
#   --gpus          instead of them one GPU for each process: process I sees GPU I
#   --restarts K    how often to start again after a process was lost or pre-empted (default 5)
#   --dry-run       print what would run
# All else goes to dmpo-jax train. SIGTERM and Ctrl-C go to all processes. Exit status: theirs, see
# docs/survival.md; 76 too if they were lost more than K times.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

processes=2 devices=1 gpus="" restarts=5 dry_run="" arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --processes | --devices | --restarts)
      [[ "${2:-}" =~ ^[0-9]+$ ]] || { echo "local.sh: $1 needs a number, got '${2:-}'" >&2; exit 2; }
      declare "${1#--}=$2"
      shift 2
      ;;
    --gpus) gpus=1; shift ;;
    --dry-run) dry_run=1; shift ;;
    *) arguments+=("$1"); shift ;;
  esac
done
if [ "$processes" -lt 1 ] || [ "$devices" -lt 1 ]; then
  echo "local.sh: --processes and --devices count from 1" >&2
  exit 2
fi

# start I PORT: process I in the background, each line of its output marked by its number.
start() {
  local index="$1" port="$2" command
  command=("$VENV/bin/dmpo-jax" train "${arguments[@]}"
    --coordinator "127.0.0.1:$port" --num-processes "$processes" --process-id "$index")
  if [ -n "$gpus" ]; then
    command=(env "CUDA_VISIBLE_DEVICES=$index" "${command[@]}")
  else
    # NPROC: collectives of simulated devices can deadlock unless XLA is told of more processors.
    command=(env JAX_PLATFORMS=cpu NPROC=32
      "XLA_FLAGS=${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices" "${command[@]}")
  fi
  if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
    return
  fi
  "${command[@]}" > >(sed -u "s/^/[$index] /") 2> >(sed -u "s/^/[$index] /" >&2) &
  pids[index]=$!
}

free_port() {
  "$VENV/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

told=""
forward() {
  told=1
  kill "-$1" "${pids[@]}" 2> /dev/null || true
}
trap 'forward TERM' TERM
trap 'forward INT' INT

# run_once: all processes once; status is the one that says most: an error before a loss.
run_once() {
  local port code index
  port="$(free_port)"
  pids=()
  for ((index = 0; index < processes; index++)); do start "$index" "$port"; done
  status=0
  for index in "${!pids[@]}"; do
    code=0
    # A trapped signal ends wait early; the process is still there then.
    while true; do
      wait "${pids[index]}" && code=0 || code=$?
      kill -0 "${pids[index]}" 2> /dev/null || break
    done
    if [ "$code" -gt 128 ]; then code=76; fi # killed: lost
    case "$code" in
      0) ;;
      75 | 76) [ "$status" -ne 0 ] || status="$code" ;;
      *) status="$code" ;;
    esac
  done
}

if [ -n "$dry_run" ]; then
  for ((index = 0; index < processes; index++)); do start "$index" PORT; done
  exit 0
fi
for ((attempt = 0; ; attempt++)); do
  run_once
  if [ "$status" -ne 75 ] && [ "$status" -ne 76 ]; then exit "$status"; fi
  if [ -n "$told" ] || [ "$attempt" -ge "$restarts" ]; then exit "$status"; fi
  echo "local.sh: status $status; starting again ($((attempt + 1)) of $restarts)" >&2
done
