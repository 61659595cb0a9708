#!/usr/bin/env bash
# A run on a Cloud TPU slice, from its request to its deletion. See docs/launch.md.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/launch/common.sh"

USAGE="Usage: launch/tpu_vm.sh COMMAND [OPTIONS] [-- --config FILE [ARGUMENTS OF dmpo-jax train]]

Commands:
  create   requests the slice unless it exists, and waits until it is ready
  run      creates the slice, copies this commit to all workers, installs it and trains; after a
           preemption or a lost worker it resumes from the last checkpoint, on a new slice if
           needed; exits with the run's status
  fetch    copies --from, a folder of a bucket or a path on the workers, to --to, a folder here
  status   states of the request and of the slice
  delete   deletes both; a slice is billed until it is deleted

By default the slice is spot capacity, which can be preempted, from a queued resource."

option name dmpo "name of the slice and of its request"
option project "${CLOUDSDK_CORE_PROJECT:-}" "Google Cloud project"
option zone "${CLOUDSDK_COMPUTE_ZONE:-}" "zone, such as us-west4-a"
option type v5litepod-16 "accelerator type: v4-N, v5p-N (N cores), v5litepod-N, v6e-N (N chips)"
option runtime "" "image of the VMs; without one, the generation's"
option capacity spot "spot, on-demand or reserved"
option via queued "queued (a queued resource) or direct (created immediately or refused)"
option network default "VPC network"
option workdir "" "directory of the run: gs://BUCKET/FOLDER, or on a disk that all workers share"
option share "" "NFS share to mount on all workers, as 10.0.0.2:/vol"
option mount /mnt/dmpo "where the share is mounted"
option python 3.11 "version of Python on the workers"
option jax "jax[tpu]" "requirement that brings JAX for TPUs"
option limit 5 "starts in a row without a new checkpoint after which the run stops"
option poll 30 "seconds between two queries of a state"
option wait 86400 "seconds to wait for capacity"
option when-done keep "keep or delete the slice after a successful run"
option from "" "fetch: path in a bucket or on the workers, such as WORKDIR/pipeline"
option to . "fetch: folder here"

COMMAND="${1:---help}"
(($# == 0)) || shift
case "$COMMAND" in
  create | run | fetch | status | delete) parse "$@" ;;
  --help | -h) parse --help ;;
  *) die "unknown command '$COMMAND': create, run, fetch, status or delete" ;;
esac

check_name
required project zone type
one_of capacity spot on-demand reserved
one_of via queued direct
one_of when-done keep delete
whole limit poll wait

# All options are checked before the first request.
check_type
RUNTIME="${RUNTIME:-$VM_IMAGE}"

case "$COMMAND" in
  run)
    check_workdir
    check_training
    [ -z "$SHARE" ] || [[ "$SHARE" =~ ^[^:/]+:/.+ ]] || die "--share '$SHARE' is not SERVER:/PATH"
    if ((HOSTS > 1)); then
      if ! in_bucket "$WORKDIR"; then
        [ -n "$SHARE" ] ||
          die "--workdir '$WORKDIR': the $HOSTS workers of a $TYPE need gs://BUCKET/FOLDER, or a" \
            "--share to mount"
        [[ "$WORKDIR/" == "$MOUNT"/* ]] || die "--workdir '$WORKDIR' is not on the share at $MOUNT"
      fi
      if [ -z "$DRY_RUN" ]; then
        # gcloud requires this for several workers; check it before they are billed.
        ssh-add -l > /dev/null 2>&1 ||
          die "gcloud's key is not in the SSH agent: gcloud compute config-ssh;" \
            "eval \"\$(ssh-agent)\"; ssh-add ~/.ssh/google_compute_engine"
      fi
    fi
    [ -n "$SHARE" ] || in_bucket "$WORKDIR" || [ "$CAPACITY" != spot ] || [ -n "$DRY_RUN" ] ||
      say "a preemption deletes the directory of the run, which is not on gs:// or a share"
    need git "the workers get the checked-out commit"
    ;;
  fetch) required from ;;
esac
need gcloud "https://cloud.google.com/sdk/docs/install"

PLACE=(--zone="$ZONE" --project="$PROJECT")
TPU=(gcloud compute tpus)
QUEUED=("${TPU[@]}" queued-resources list "${PLACE[@]}" "--filter=name~\"(^|/)$NAME\$\"")
QUEUED+=("--format=value(state.state)")
NODES=("${TPU[@]}" tpu-vm list "${PLACE[@]}" "--filter=name~\"(^|/)$NAME\$\"")
NODES+=("--format=value(state)")

create() {
  local flags=("${PLACE[@]}" --accelerator-type="$TYPE" --network="$NETWORK")
  case "$CAPACITY" in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reserved) ;;
  esac
  if [ "$VIA" = queued ]; then
    run "${TPU[@]}" queued-resources create "$NAME" --node-id="$NAME" \
      --runtime-version="$RUNTIME" "${flags[@]}"
  else
    run "${TPU[@]}" tpu-vm create "$NAME" --version="$RUNTIME" "${flags[@]}"
  fi
}

# ask COMMAND...: prints the output of the command. After a first success, failures are retried, so
# that a short loss of the network does not end a run of days.
TRIES=1
ask() {
  local try answer
  for ((try = 1; ; try++)); do
    if answer="$("$@")"; then
      echo "$answer"
      return
    fi
    ((try < TRIES)) || return 1
    sleep "$POLL"
  done
}

# query: sets STATE to absent, waiting, ready, refused or gone, from the states in both lists.
query() {
  local request node
  request="$(ask "${QUEUED[@]}")"
  node="$(ask "${NODES[@]}")"
  TRIES=3
  case "$request/$node" in
    /) STATE=absent ;;
    FAILED/*) STATE=refused ;;
    SUSPENDED/* | */PREEMPTED | */TERMINATED | */STOPPED | ACTIVE/) STATE=gone ;;
    ACTIVE/READY | /READY) STATE=ready ;;
    *) STATE=waiting ;;
  esac
  STATES="request: ${request:-none}, slice: ${node:-none}"
}

delete() {
  local request node
  if [ -n "$DRY_RUN" ]; then
    note "each deleted only if its list has it:"
    run "${QUEUED[@]}"
    run "${TPU[@]}" queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
    run "${NODES[@]}"
    run "${TPU[@]}" tpu-vm delete "$NAME" "${PLACE[@]}" --quiet
    return
  fi
  request="$(ask "${QUEUED[@]}")"
  if [ -n "$request" ]; then
    run "${TPU[@]}" queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
  fi
  node="$(ask "${NODES[@]}")"
  if [ -n "$node" ]; then
    run "${TPU[@]}" tpu-vm delete "$NAME" "${PLACE[@]}" --quiet
  fi
  say "there is no slice '$NAME' in $ZONE"
}

# ensure: returns when the slice is ready. The remains of a preempted slice are deleted first.
ensure() {
  local started="$SECONDS" previous="" requested=""
  if [ -n "$DRY_RUN" ]; then
    note "unless the lists show the slice ready:"
    run "${QUEUED[@]}"
    run "${NODES[@]}"
    create
    note "both lists every $POLL s, until ACTIVE and READY, for at most $WAIT s"
    return
  fi
  while :; do
    query
    [ "$STATES" = "$previous" ] || say "$STATES"
    previous="$STATES"
    case "$STATE" in
      ready) return ;;
      absent)
        create
        requested=yes
        continue
        ;;
      gone)
        delete
        continue
        ;;
      refused)
        if [ -n "$requested" ]; then
          say "the request failed: no quota or no capacity for $TYPE in $ZONE, or a wrong type:"
          "${TPU[@]}" queued-resources describe "$NAME" "${PLACE[@]}" >&2 || true
          exit 1
        fi
        delete
        continue
        ;;
    esac
    if ((SECONDS - started > WAIT)); then
      say "not ready after $WAIT s; the request stays in the queue until launch/tpu_vm.sh delete"
      exit 1
    fi
    sleep "$POLL"
  done
}

# on WORKER COMMAND...: runs the command on one worker or on all. Status 255: no connection. If
# several workers fail, gcloud returns the status of the first of them.
on() {
  run "${TPU[@]}" tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$1" --quiet \
    --ssh-flag=-oServerAliveInterval=30 --command="$(shift && quote "$@")"
}

ARCHIVES="" # folder of the archive
# install_on_all: copies the commit and worker.sh to all workers and installs what has changed.
install_on_all() {
  local archive
  # A folder of this run alone: in the shared one another user could plant a link of this name.
  if [ -n "$DRY_RUN" ]; then
    ARCHIVES="${TMPDIR:-/tmp}/dmpo_jax.XXXXXXXX"
  else
    [ -n "$ARCHIVES" ] || ARCHIVES="$(mktemp -d "${TMPDIR:-/tmp}/dmpo_jax.XXXXXXXX")"
  fi
  archive="$ARCHIVES/dmpo_jax-$NAME.tar.gz"
  run git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD &&
    run "${TPU[@]}" tpu-vm scp "$archive" "$ROOT/launch/worker.sh" "$NAME:" "${PLACE[@]}" \
      --worker=all --quiet &&
    on all bash worker.sh setup "$(basename "$archive")" "$PYTHON" "$JAX" "$SHARE" "$MOUNT"
}

# join ID: starts an attempt on all workers, or joins a running one, and waits for its end.
join() {
  on all bash worker.sh attempt "$1" env --chdir=dmpo_jax ../dmpo_venv/bin/dmpo-jax train \
    --workdir "$WORKDIR" --distributed --no-progress "${REST[@]}"
}

start() {
  install_on_all &&
    on 0 bash worker.sh guard "$WORKDIR" "$LIMIT" "$RUN" &&
    join "$1"
}

train() {
  local attempt=1 lost=0 status action="start"
  RUN="${NAME}_$(date +%s)"
  [ -z "$DRY_RUN" ] || RUN="${NAME}_1"
  while :; do
    ensure
    status=0
    "$action" "$RUN.$attempt" || status=$?
    action="start"
    if [ -n "$DRY_RUN" ]; then
      note "status 0: done. 75 (preempted, saved), 76 (a worker lost), 137, 143 (killed): restart,"
      note "on a new slice if this one is gone. 255 (connection lost): rejoin. Otherwise: stop"
      return
    fi
    case "$status" in
      0) return ;;
      75) say "preempted; the run has saved a checkpoint and resumes" ;;
      76 | 137 | 143) say "a worker was lost or killed; the run resumes from its last checkpoint" ;;
      1 | 255) # gcloud's status, or the run's 1: decided by the state of the slice
        sleep "$POLL"
        query
        if [ "$STATE" = ready ]; then
          if ((status == 1 || ++lost > LIMIT)); then exit "$status"; fi
          say "the connection was lost, the run continues; joining it again"
          action="join"
          continue
        fi
        say "the slice is gone ($STATES)"
        ;;
      *) exit "$status" ;;
    esac
    lost=0
    attempt=$((attempt + 1))
    sleep "$POLL"
  done
}

case "$COMMAND" in
  create) ensure ;;
  delete) delete ;;
  status)
    if [ -n "$DRY_RUN" ]; then
      run "${QUEUED[@]}"
      run "${NODES[@]}"
    else
      query
      echo "$STATES ($STATE)"
    fi
    ;;
  fetch)
    if in_bucket "$FROM"; then
      fetch_bucket
    else
      run "${TPU[@]}" tpu-vm scp "$NAME:$FROM" "$TO" "${PLACE[@]}" --worker=0 --recurse --quiet
    fi
    ;;
  run)
    BILLED=yes
    # ending: removes the archive, and says that the slice is still there.
    ending() {
      [ -z "$ARCHIVES" ] || rm -rf "$ARCHIVES"
      [ -z "$BILLED" ] ||
        say "an existing slice is kept and billed; launch/tpu_vm.sh delete deletes it"
    }
    [ -n "$DRY_RUN" ] || trap ending EXIT
    train
    if [ "$WHEN_DONE" = delete ]; then
      delete
      BILLED=""
    fi
    ;;
esac
