#!/usr/bin/env bash
# Runs on the training machines; the launch scripts call it.
#   worker.sh setup ARCHIVE PYTHON JAX [SERVER:/SHARE MOUNT]
#       unpacks and installs dmpo-jax in the home directory, mounts the share; skips steps that are
#       done
#   worker.sh guard WORKDIR LIMIT RUN
#       counts the starts of a run; status 2 after LIMIT starts in a row without a new checkpoint
#   worker.sh attempt ID COMMAND...
#       runs the command independently of this connection, prints its output and exits with its
#       status; called again with the same ID, it joins the running command
set -euo pipefail

setup() {
  local archive="$1" python="$2" jax="$3" share="${4:-}" mount="${5:-}" wanted uv
  wanted="$(cksum < "$archive") $python $jax"
  if [ "$(cat dmpo_jax.installed 2> /dev/null)" != "$wanted" ]; then
    rm -rf dmpo_jax && mkdir dmpo_jax
    tar -xzf "$archive" -C dmpo_jax
    # The images of TPU VMs have Python 3.10; uv installs another version.
    python3 -m pip install --user --quiet uv
    uv="$HOME/.local/bin/uv"
    [ -x dmpo_venv/bin/python ] || "$uv" venv --quiet --python "$python" dmpo_venv
    "$uv" pip install --quiet --python dmpo_venv/bin/python --editable './dmpo_jax[gcs]' "$jax"
    echo "$wanted" > dmpo_jax.installed
  fi
  if [ -n "$share" ] && ! mountpoint --quiet "$mount"; then
    command -v mount.nfs > /dev/null || sudo apt-get install --quiet --yes nfs-common
    sudo mkdir -p "$mount"
    sudo mount -t nfs -o hard "$share" "$mount"
    # A new share is empty and root's. One that is in use keeps its owner and its permissions.
    if [ ! -w "$mount" ] && [ -z "$(ls -A -I lost+found "$mount")" ]; then
      sudo chown "$(id -u):$(id -g)" "$mount"
    fi
  fi
}

# latest_step WORKDIR: prints the step of the last complete checkpoint, or 0.
latest_step() {
  local entry step latest=0
  for entry in "$1"/checkpoints/*; do
    step="${entry##*/}"
    if [[ "$step" =~ ^(0|[1-9][0-9]{0,17})$ ]] && ((step > latest)); then latest=$step; fi
  done
  echo "$latest"
}

guard() {
  local workdir="$1" limit="$2" run="$3" step old_run="" old_step="" count=0 rest file
  file="$workdir/starts.txt"
  if [[ ! "$limit" =~ ^[0-9]{1,9}$ ]]; then
    echo "worker.sh: the limit is not a whole number below a billion" >&2
    return 2
  fi
  if [[ "$workdir" == gs://* ]]; then
    local python=python
    [ ! -x dmpo_venv/bin/python ] || python=dmpo_venv/bin/python
    "$python" -m dmpo_jax.training.starts "$workdir" "$limit" "$run"
    return
  fi
  step="$(latest_step "$workdir")"
  mkdir -p "$workdir"
  if [ -f "$file" ]; then
    # read fails without a line break at the end. The words of the file are data: bash's arithmetic
    # would run a command in them.
    read -r old_run old_step count rest < "$file" || true
    if [[ -n "$rest" || ! "$old_step" =~ ^[0-9]{1,18}$ || ! "$count" =~ ^[0-9]{1,9}$ ]]; then
      echo "worker.sh: $file is damaged; counting the starts of this run anew" >&2
      old_run="" count=0
    fi
  fi
  if [ "$old_run $old_step" != "$run $step" ]; then count=0; fi
  count=$((10#$count)) limit=$((10#$limit))
  if ((count >= limit)); then
    echo "worker.sh: the last $count starts left no checkpoint after step $step in $workdir;" \
      "stopping. See the end of the log, or save more often (config.checkpoint.every)" >&2
    return 2
  fi
  # Written beside and renamed, so that a full disk or a kill leaves the old count. With noclobber
  # a link of this name is not followed.
  rm -f "$file.new"
  (set -o noclobber && echo "$run $step $((count + 1))" > "$file.new") || return 1
  mv "$file.new" "$file"
}

# running PID STATUS_FILE: whether an attempt is still running.
running() { [ ! -f "$2" ] && kill -0 "$1" 2> /dev/null; }

# stop_running PID STATUS_FILE: ends an earlier attempt, with SIGTERM first so that it can save.
stop_running() {
  local tenth
  running "$@" || return 0
  kill -TERM -- "-$1" 2> /dev/null || return 0
  for ((tenth = 0; tenth < 3000; tenth++)); do
    running "$@" || return 0
    sleep 0.1
  done
  kill -KILL -- "-$1" 2> /dev/null || true
}

attempt() {
  local id="$1" folder="$HOME/dmpo_attempts" old="" pid="" lines=20 follower tenth
  shift
  mkdir -p "$folder"
  if [ -f "$folder/current" ]; then read -r old pid < "$folder/current" || true; fi
  if [[ ! "$pid" =~ ^[1-9][0-9]{0,9}$ ]]; then old="" pid=""; fi
  if [ "$old" != "$id" ]; then
    if [ -n "$pid" ]; then stop_running "$pid" "$folder/$old.status"; fi
    : > "$folder/$id.log" # before tail opens it
    # The shell around the command records the process id first, so that a later attempt can stop
    # it, and ignores the command's signals, so that it can record the status.
    # shellcheck disable=SC2016
    setsid bash -c 'trap : TERM HUP; folder=$1 id=$2; shift 2
      note() { echo "$2" > "$folder/$1.new"; mv "$folder/$1.new" "$folder/$1"; }
      note current "$id $$"; "$@"; note "$id.status" $?' \
      - "$folder" "$id" "$@" >> "$folder/$id.log" 2>&1 < /dev/null &
    pid=$!
    lines=+1
  fi
  # tail exits by itself after the process has ended and all output is printed. It is killed only if
  # another process has the same id.
  tail --lines="$lines" --follow --sleep-interval=0.2 --pid="$pid" "$folder/$id.log" &
  follower=$!
  while running "$pid" "$folder/$id.status"; do sleep 0.2; done
  for ((tenth = 0; tenth < 100; tenth++)); do
    kill -0 "$follower" 2> /dev/null || break
    sleep 0.1
  done
  kill "$follower" 2> /dev/null || true
  if [ ! -f "$folder/$id.status" ]; then
    echo "worker.sh: attempt $id ended without a status (killed, or the machine restarted)" >&2
    return 76
  fi
  read -r old < "$folder/$id.status" || true
  if [[ "$old" =~ ^[0-9]{1,3}$ ]]; then return "$old"; fi
  echo "worker.sh: $folder/$id.status holds no exit status" >&2
  return 76
}

case "${1:-}" in
  setup | guard | attempt) "$@" ;;
  --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" ;;
  *)
    echo "worker.sh: '${1:-}' is not one of setup, guard, attempt; see worker.sh --help" >&2
    exit 2
    ;;
esac
