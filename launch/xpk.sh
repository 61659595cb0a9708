#!/usr/bin/env bash
# A run on one or several TPU slices of a cluster that xpk made. See docs/launch.md.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/launch/common.sh"

USAGE="Usage: launch/xpk.sh COMMAND [OPTIONS] [-- --config FILE [ARGUMENTS OF dmpo-jax train]]

Commands:
  create   creates the workload: one process on every host of --slices slices; after a preemption or
           a lost worker all start again and the run resumes from the last checkpoint
  status   lists the workload
  delete   deletes the workload

The cluster (xpk cluster create) and the image (launch/gke.sh image) must exist."

option name dmpo "name of the workload"
option cluster "" "name of the cluster"
option project "${CLOUDSDK_CORE_PROJECT:-}" "Google Cloud project"
option zone "${CLOUDSDK_COMPUTE_ZONE:-}" "zone, such as us-west4-a"
option type v5litepod-16 "accelerator type: v4-N, v5p-N (N cores), v5litepod-N, v6e-N (N chips)"
option slices 1 "number of such slices, which train one model"
option image "" "container image, such as REGION-docker.pkg.dev/PROJECT/REPOSITORY/dmpo-jax:1"
option workdir "" "directory of the run: gs://BUCKET/FOLDER"
option restarts 100 "total number of restarts after which the run stops"
option limit 5 "starts in a row without a new checkpoint after which the run stops"
option grace 120 "seconds to save in after SIGTERM (spot nodes grant less)"

COMMAND="${1:---help}"
(($# == 0)) || shift
case "$COMMAND" in
  create | status | delete) parse "$@" ;;
  --help | -h) parse --help ;;
  *) die "unknown command '$COMMAND': create, status or delete" ;;
esac
check_name
whole slices restarts limit grace
required cluster project zone
PLACE=("--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE")

# script: the command of every host. The first worker of the first slice counts the starts. Then the
# training process replaces the shell that xpk sends SIGTERM to.
script() {
  local text
  # shellcheck disable=SC2016
  text='[ "${MEGASCALE_SLICE_ID:-0}/$JOB_COMPLETION_INDEX" != 0/0 ] || '
  text+="$(quote launch/worker.sh guard "$WORKDIR" "$LIMIT" "$(date +%s)") || exit; "
  text+="exec $(quote dmpo-jax train --workdir "$WORKDIR" --distributed --no-progress "${REST[@]}")"
  printf '%s' "${text//\$(/\$\$(}" # Kubernetes would expand $(NAME)
}

case "$COMMAND" in
  create)
    check_type
    check_slices "$TYPE"
    check_workdir
    in_bucket "$WORKDIR" || die "--workdir '$WORKDIR': expected gs://BUCKET/FOLDER"
    check_training
    required image
    need xpk "pip install xpk"
    run xpk workload create "--workload=$NAME" "${PLACE[@]}" "--tpu-type=$TYPE" \
      "--num-slices=$SLICES" "--docker-image=$IMAGE" "--max-restarts=$RESTARTS" \
      --restart-on-exit-codes=75,76 "--termination-grace-period-seconds=$GRACE" \
      "--command=$(script)"
    ;;
  status)
    need xpk "pip install xpk"
    run xpk workload list "${PLACE[@]}" "--filter-by-job=$NAME"
    ;;
  delete)
    need xpk "pip install xpk"
    run xpk workload delete "--workload=$NAME" "${PLACE[@]}" --force
    ;;
esac
