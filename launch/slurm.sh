#!/usr/bin/env bash
# A run on the GPUs of a Slurm cluster. See docs/launch.md.
set -euo pipefail
# Slurm runs a copy of this file, so DMPO_ROOT names the repository.
ROOT="${DMPO_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"
source "$ROOT/launch/common.sh"

USAGE="Usage: launch/slurm.sh COMMAND [OPTIONS] [-- --config FILE [ARGUMENTS OF dmpo-jax train]]

Commands:
  install  makes the virtual environment --venv with JAX for GPUs (on a login node, once)
  submit   submits the run, unless a job of its name is pending or running; the job saves before its
           time limit, and requeues itself then, after a preemption or after a lost process
  job      runs in the job: one process per GPU
  status   shows the job in the queue
  cancel   cancels the job

All nodes must share the file system of the repository, the virtual environment and --workdir."

option name dmpo "name of the job"
option nodes 1 "number of nodes"
option gpus 8 "GPUs (and processes) per node"
option cpus 8 "CPU cores per process"
option time 24:00:00 "time limit of each job"
option grace 300 "seconds before the time limit at which the run saves and stops"
option partition "" "partition"
option account "" "account"
option extra "" "further options of sbatch, separated by spaces"
option workdir "" "directory of the run"
option venv "$ROOT/.venv" "virtual environment"
option python python3 "install: Python 3.11 or newer"
option jax "jax[cuda13]" "install: requirement that brings JAX for GPUs"
option limit 5 "starts in a row without a new checkpoint after which the run stops"

COMMAND="${1:---help}"
(($# == 0)) || shift
case "$COMMAND" in
  install | submit | job | status | cancel) parse "$@" ;;
  --help | -h) parse --help ;;
  *) die "unknown command '$COMMAND': install, submit, job, status or cancel" ;;
esac
check_name
whole nodes gpus cpus grace limit
((NODES > 0 && GPUS > 0 && CPUS > 0)) || die "--nodes, --gpus and --cpus must be at least 1"
HINT="run this on a machine of a Slurm cluster (--dry-run works anywhere)"

case "$COMMAND" in
  install)
    need "$PYTHON" "set --python to Python 3.11 or newer"
    [ -n "$DRY_RUN" ] || "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      die "--python '$PYTHON' is older than 3.11"
    run "$PYTHON" -m venv "$VENV"
    run "$VENV/bin/python" -m pip install --quiet --editable "$ROOT" "$JAX"
    ;;

  submit)
    check_workdir
    check_training
    [[ "$TIME" =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] ||
      die "--time '$TIME' is not minutes, H:M:S or D-H:M:S"
    need sbatch "$HINT"
    [ -n "$DRY_RUN" ] || [ -x "$VENV/bin/dmpo-jax" ] ||
      die "no dmpo-jax in --venv '$VENV': run launch/slurm.sh install"
    query=(squeue --me "--name=$NAME" --noheader --format=%i)
    note "unless this prints a job:"
    if [ -n "$DRY_RUN" ]; then
      run "${query[@]}"
    else
      jobs="$("${query[@]}")"
      if [ -n "$jobs" ]; then
        say "job $jobs exists already; launch/slurm.sh cancel --name $NAME cancels it"
        exit 0
      fi
    fi
    read -ra more <<< "$EXTRA"
    [ -z "$PARTITION" ] || more+=("--partition=$PARTITION")
    [ -z "$ACCOUNT" ] || more+=("--account=$ACCOUNT")
    # Every process sees all GPUs of its node (no --gpus-per-task): JAX takes the one with its local
    # index. Without B:, the signal goes to the processes and not to this script.
    run mkdir -p "$WORKDIR"
    run sbatch "--job-name=$NAME" "--nodes=$NODES" "--ntasks-per-node=$GPUS" \
      "--gpus-per-node=$GPUS" "--cpus-per-task=$CPUS" "--time=$TIME" "--signal=TERM@$GRACE" \
      --requeue --open-mode=append "--output=$WORKDIR/slurm-%j.log" "--chdir=$ROOT" \
      "--export=ALL,DMPO_ROOT=$ROOT" "${more[@]}" "$ROOT/launch/slurm.sh" job \
      --name "$NAME" --cpus "$CPUS" --venv "$VENV" --limit "$LIMIT" --workdir "$WORKDIR" \
      -- "${REST[@]}"
    ;;

  job)
    check_workdir
    check_training
    need srun "$HINT"
    JOB="${SLURM_JOB_ID:-}"
    if [ -n "$DRY_RUN" ]; then JOB="${JOB:-1}"; fi
    [ -n "$JOB" ] || die "not in a Slurm job; launch/slurm.sh submit submits one"
    run "$ROOT/launch/worker.sh" guard "$WORKDIR" "$LIMIT" "$JOB"
    status=0
    # When one process is lost, the others exit with 76 themselves; srun must not kill them.
    run srun --kill-on-bad-exit=0 "--cpus-per-task=$CPUS" "$VENV/bin/dmpo-jax" train \
      --workdir "$WORKDIR" --distributed --no-progress "${REST[@]}" || status=$?
    note "if that ends with 75, 76, 137 (killed) or 143:"
    if [ -n "$DRY_RUN" ]; then status=75; fi
    case "$status" in
      75 | 76 | 137 | 143)
        [ -n "$DRY_RUN" ] || say "exit status $status; requeueing the job"
        run scontrol requeue "$JOB"
        ;;
      *) exit "$status" ;;
    esac
    ;;

  status)
    need squeue "$HINT"
    run squeue --me "--name=$NAME"
    ;;

  cancel)
    need scancel "$HINT"
    run scancel --me "--name=$NAME"
    ;;
esac
