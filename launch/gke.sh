#!/usr/bin/env bash
# A run on a TPU slice of a GKE cluster, as a JobSet. See docs/launch.md.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/launch/common.sh"

USAGE="Usage: launch/gke.sh COMMAND [OPTIONS] [-- --config FILE [ARGUMENTS OF dmpo-jax train]]

Commands:
  image    builds --image from the checked-out commit and pushes it
  yaml     prints the JobSet
  create   creates the JobSet unless it exists; after a preemption or a lost worker all pods restart
           and the run resumes from the last checkpoint
  wait     waits for the end: status 0 if the run succeeded, 1 if it failed
  logs     follows the output of the first worker
  fetch    copies --from, a folder of a bucket or a path in --mount, to --to, a folder here
  status   shows the JobSet and its pods
  delete   deletes the JobSet and its pods

The cluster, with the JobSet controller (version 0.8 or newer), must exist."

option name dmpo "name of the JobSet"
option slice v5e:4x4 "generation and topology: v4:AxBxC, v5p:AxBxC, v5e:AxB or v6e:AxB"
option slices 1 "number of such slices, which train one model"
option image "" "container image, such as REGION-docker.pkg.dev/PROJECT/REPOSITORY/dmpo-jax:1"
option claim "" "persistent volume claim, ReadWriteMany, that all pods mount; not with gs://"
option mount /mnt/dmpo "mount point of the claim"
option workdir "" "directory of the run: gs://BUCKET/FOLDER, or in --mount"
option capacity spot "spot or on-demand"
option namespace default "namespace"
option restarts 100 "total number of restarts after which the run stops"
option limit 5 "starts in a row without a new checkpoint after which the run stops"
option grace 120 "seconds to save in after SIGTERM (spot nodes grant less)"
option jax "jax[tpu]" "image: requirement of JAX for TPUs"
option poll 30 "wait: seconds between two queries"
option from "" "fetch: path in a bucket or in --mount, such as WORKDIR/pipeline"
option to . "fetch: local path"

COMMAND="${1:---help}"
(($# == 0)) || shift
case "$COMMAND" in
  image | yaml | create | wait | logs | fetch | status | delete) parse "$@" ;;
  --help | -h) parse --help ;;
  *) die "unknown command '$COMMAND': image, yaml, create, wait, logs, fetch, status or delete" ;;
esac
check_name
whole restarts limit grace poll
# check_object FLAG: exits unless the option is a valid name of an object in Kubernetes.
check_object() {
  local value="${1^^}"
  value="${!value}"
  [[ "$value" =~ ^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$ ]] ||
    die "--$1 '$value': expected a name of at most 253 of a-z, 0-9, - and ., ends no - or ."
}
check_object namespace
[ -z "$CLAIM" ] || check_object claim
[[ "$MOUNT" =~ ^(/[A-Za-z0-9_.@-]+)+$ && ! "$MOUNT/" =~ /\.\.?/ ]] ||
  die "--mount '$MOUNT' is not an absolute path of letters, digits and _.@-"

# Sets GENERATION, TOPOLOGY, HOSTS and the rest of slice_of.
check_slice() {
  local sides side chips=1 last=0
  [[ "$SLICE" =~ ^((v5e|v6e):([0-9]+x[0-9]+)|(v4|v5p):([0-9]+x[0-9]+x[0-9]+))$ ]] ||
    die "--slice '$SLICE' is unknown: v4:AxBxC, v5p:AxBxC, v5e:AxB or v6e:AxB"
  GENERATION="${SLICE%%:*}" TOPOLOGY="${SLICE#*:}"
  IFS=x read -ra sides <<< "$TOPOLOGY"
  for side in "${sides[@]}"; do chips=$((chips * 10#$side)); done
  case "$GENERATION" in
    v5e | v6e)
      [[ " 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 " == *" $TOPOLOGY "* ]] ||
        die "--slice '$SLICE': one of 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
      ;;
    *) # a few shapes up to 64 chips, above that multiples of four in ascending order
      if [[ " 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 " != *" $TOPOLOGY "* ]]; then
        for side in "${sides[@]}"; do
          ((10#$side % 4 == 0 && 10#$side >= last && 10#$side > 0)) ||
            die "--slice '$SLICE': 2x2x1, 2x2x2, 2x2x4, 2x4x4, or multiples of 4, ascending"
          last=$((10#$side))
        done
      fi
      ;;
  esac
  slice_of "$GENERATION" "$chips"
}

# string TEXT: a YAML string in double quotes in which Kubernetes expands no variable.
string() {
  local text="${1//\\/\\\\}"
  text="${text//\"/\\\"}"
  text="${text//\$(/\$\$(}"
  # YAML reads these three characters (U+0085, U+2028, U+2029) as line breaks.
  text="${text//$'\xc2\x85'/\\u0085}"
  text="${text//$'\xe2\x80\xa8'/\\u2028}"
  text="${text//$'\xe2\x80\xa9'/\\u2029}"
  printf '"%s"' "$text"
}

yaml() {
  local argument spot="" mounts="" script
  if [ "$CAPACITY" = spot ]; then
    spot="
                cloud.google.com/gke-spot: \"true\""
  fi
  if [ -n "$CLAIM" ]; then
    mounts="
                  volumeMounts:
                    - name: share
                      mountPath: $(string "$MOUNT")
              volumes:
                - name: share
                  persistentVolumeClaim:
                    claimName: $(string "$CLAIM")"
  fi
  # The first worker counts the starts. Then the training process replaces the shell, so that it
  # receives the pod's SIGTERM.
  # shellcheck disable=SC2016
  script='[ "${MEGASCALE_SLICE_ID:-0}/$JOB_COMPLETION_INDEX" != 0/0 ] || '
  # shellcheck disable=SC2016
  script+='launch/worker.sh guard "$1" "$2" "$3" || exit; '
  # shellcheck disable=SC2016
  script+='shift 3; exec dmpo-jax train "$@"'
  cat << YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(string "$NAME")
  namespace: $(string "$NAMESPACE")
  annotations:
    # The pods of a job on one slice, where the cluster has several.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  network: # a headless service: the pods find each other as $NAME-slice-0-INDEX.$NAME
    enableDNSHostnames: true
    subdomain: $(string "$NAME")
  failurePolicy:
    maxRestarts: $RESTARTS
    rules: # any other failure restarts all pods
      - name: notCuredByAnotherStart
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          completionMode: Indexed
          completions: $HOSTS # the hosts of $SLICE
          parallelism: $HOSTS
          backoffLimit: 0 # the first failed pod fails the job; the JobSet restarts it
          podFailurePolicy:
            rules:
              - action: Count # preempted or evicted, with any status
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
              - action: FailJob # bad input (2) and other errors that a restart does not cure
                onExitCodes:
                  containerName: train
                  operator: NotIn
                  values: [75, 76, 137, 143]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $GRACE
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY$spot
              containers:
                - name: train
                  image: $(string "$IMAGE")
                  workingDir: /dmpo_jax
                  command: [bash, -c, $(string "$script"), dmpo-jax]
                  args:
$(for argument in "$WORKDIR" "$LIMIT" "$(date +%s)" --workdir "$WORKDIR" --distributed \
    --no-progress "${REST[@]}"; do
    printf '                    - %s\n' "$(string "$argument")"
  done)
                  ports:
                    - containerPort: 8471 # between the TPU hosts
                    - containerPort: 8080 # between the slices
                    - containerPort: 8482 # JAX's coordinator
                  resources:
                    requests:
                      google.com/tpu: $CHIPS_PER_HOST
                    limits:
                      google.com/tpu: $CHIPS_PER_HOST$mounts
YAML
}

KUBECTL=(kubectl "--namespace=$NAMESPACE")
PODS="--selector=jobset.sigs.k8s.io/jobset-name=$NAME"
HINT="gcloud components install kubectl, and gcloud container clusters get-credentials CLUSTER"

check_run() {
  check_slice
  check_slices "$SLICE"
  check_workdir
  check_training
  required image
  one_of capacity spot on-demand
  if ! in_bucket "$WORKDIR"; then
    required claim
    [[ "$WORKDIR/" == "$MOUNT"/* ]] || die "--workdir '$WORKDIR' is not on the claim at $MOUNT"
  fi
}

case "$COMMAND" in
  image)
    required image
    need docker "https://docs.docker.com/engine/install"
    if [ -n "$DRY_RUN" ]; then
      echo "$(quote git -C "$ROOT" archive HEAD) |" \
        "$(quote docker build "--build-arg=JAX=$JAX" --file=launch/Dockerfile "--tag=$IMAGE" -)"
    else
      git -C "$ROOT" archive HEAD |
        run docker build "--build-arg=JAX=$JAX" --file=launch/Dockerfile "--tag=$IMAGE" -
    fi
    run docker push "$IMAGE"
    ;;

  yaml)
    check_run
    yaml
    ;;

  create)
    check_run
    need kubectl "$HINT"
    note "unless the first prints it:"
    if [ -n "$DRY_RUN" ]; then
      run "${KUBECTL[@]}" get jobset "$NAME" --ignore-not-found --output=name
      printf '%s << "YAML"\n%s\nYAML\n' "$(quote "${KUBECTL[@]}" create --filename=-)" "$(yaml)"
    else
      jobset="$("${KUBECTL[@]}" get jobset "$NAME" --ignore-not-found --output=name)"
      if [ -n "$jobset" ]; then
        say "$jobset exists already; launch/gke.sh delete --name $NAME deletes it"
        exit 0
      fi
      yaml | run "${KUBECTL[@]}" create --filename=-
    fi
    ;;

  wait)
    need kubectl "$HINT"
    QUERY=("${KUBECTL[@]}" get jobset "$NAME" "--output=jsonpath={.status.terminalState}")
    if [ -n "$DRY_RUN" ]; then
      run "${QUERY[@]}"
      note "every $POLL s, until it prints Completed or Failed"
      exit 0
    fi
    while :; do
      state="$("${QUERY[@]}")"
      case "$state" in
        Completed) exit 0 ;;
        Failed)
          say "the JobSet failed; see launch/gke.sh logs and kubectl describe jobset $NAME"
          exit 1
          ;;
      esac
      sleep "$POLL"
    done
    ;;

  logs)
    need kubectl "$HINT"
    run "${KUBECTL[@]}" logs "$PODS,batch.kubernetes.io/job-completion-index=0" --tail=-1 --follow
    ;;

  fetch)
    required from
    if in_bucket "$FROM"; then
      fetch_bucket
      exit 0
    fi
    required claim
    need kubectl "$HINT"
    pod="$NAME-fetch"
    # The checks above leave no quote or brace in the two options.
    volume="{\"name\": \"share\", \"persistentVolumeClaim\": {\"claimName\": \"$CLAIM\"}}"
    place="{\"name\": \"share\", \"mountPath\": \"$MOUNT\"}"
    container="{\"name\": \"$pod\", \"image\": \"busybox\", \"command\": [\"sleep\", \"3600\"],"
    container+=" \"volumeMounts\": [$place]}"
    run "${KUBECTL[@]}" run "$pod" --image=busybox --restart=Never \
      "--overrides={\"spec\": {\"containers\": [$container], \"volumes\": [$volume]}}"
    # The pod goes whether or not the copy succeeds, or the next fetch could not make it.
    [ -n "$DRY_RUN" ] || trap 'run "${KUBECTL[@]}" delete pod "$pod"' EXIT
    run "${KUBECTL[@]}" wait --for=condition=Ready "pod/$pod" --timeout=600s
    run "${KUBECTL[@]}" cp "$pod:$FROM" "$TO"
    [ -z "$DRY_RUN" ] || run "${KUBECTL[@]}" delete pod "$pod"
    ;;

  status)
    need kubectl "$HINT"
    run "${KUBECTL[@]}" get jobset "$NAME" --ignore-not-found
    run "${KUBECTL[@]}" get pods "$PODS" --output=wide
    ;;

  delete)
    need kubectl "$HINT"
    run "${KUBECTL[@]}" delete jobset "$NAME" --ignore-not-found
    ;;
esac
