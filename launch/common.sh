#!/usr/bin/env bash
# Sourced by the launch scripts: options, dry runs, input checks, TPU slices.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "the launch scripts need bash 4.4 or newer, this is $BASH_VERSION" >&2
  exit 2
fi

PROGRAM="$(basename "$0")"
DRY_RUN=""
REST=() # arguments after --
OPTION_FLAGS=()
OPTION_HELP=""

# say MESSAGE: prints a message in which control characters are replaced, so that no word of an
# option reaches the terminal as a command.
say() {
  local text="$*"
  printf '%s: %s\n' "$PROGRAM" "${text//[[:cntrl:]]/?}" >&2
}

# die MESSAGE: exits with a message and status 2, dmpo-jax's status of bad input.
die() {
  say "$@"
  exit 2
}

# option FLAG DEFAULT HELP: declares --FLAG. Its value is in the variable FLAG (capitals, _ for -);
# the environment variable DMPO_FLAG overrides the default.
option() {
  local variable="${1//-/_}" environment
  variable="${variable^^}"
  environment="DMPO_$variable"
  printf -v "$variable" '%s' "${!environment-$2}"
  OPTION_FLAGS+=("$1")
  printf -v OPTION_HELP '%s  --%-13s %s\n%18s%s; %s\n' \
    "$OPTION_HELP" "$1" "$3" "" "${2:+default: }${2:-no default}" "$environment"
}

# parse ARGUMENT...: sets the declared options, DRY_RUN and REST; --help prints USAGE and exits.
parse() {
  local flag value declared variable
  while (($#)); do
    case "$1" in
      --help | -h)
        printf '%s\n\nOptions, as --flag value, --flag=value or environment variable:\n%s' \
          "$USAGE" "$OPTION_HELP"
        echo "  --dry-run       print the commands, quoted for a shell, and run nothing"
        exit 0
        ;;
      --dry-run) DRY_RUN=yes && shift && continue ;;
      --) shift && REST=("$@") && break ;;
      --*) ;;
      *) die "unexpected argument '$1'; arguments of dmpo-jax train follow --" ;;
    esac
    flag="${1%%=*}"
    flag="${flag#--}"
    declared=""
    for variable in "${OPTION_FLAGS[@]}"; do [ "$variable" = "$flag" ] && declared=yes; done
    [ -n "$declared" ] || die "unknown option '--$flag'; see $PROGRAM --help"
    if [[ "$1" == *=* ]]; then
      value="${1#*=}"
    else
      (($# > 1)) || die "--$flag needs a value"
      value="$2"
      shift
    fi
    shift
    variable="${flag//-/_}"
    printf -v "${variable^^}" '%s' "$value"
  done
  for flag in "${OPTION_FLAGS[@]}"; do # also those of the environment
    variable="${flag//-/_}"
    variable="${variable^^}"
    printable "--$flag" "${!variable}"
  done
  for value in "${REST[@]}"; do printable "an argument after --" "$value"; done
}

# printable NAME VALUE: exits if the value has a control character, such as a line break, which
# could end a line of a YAML file or of a printed command.
printable() {
  [[ "$2" != *[[:cntrl:]]* ]] || die "$1 has a control character: '$2'"
}

# quote WORD...: the words quoted for a shell.
quote() {
  local word line=""
  for word in "$@"; do
    if [[ ! "$word" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# run COMMAND...: prints the command, and runs it unless this is a dry run.
run() {
  if [ -n "$DRY_RUN" ]; then
    quote "$@"
  else
    echo "+ $(quote "$@")" >&2
    "$@"
  fi
}

# note TEXT: prints a comment in a dry run.
note() { if [ -n "$DRY_RUN" ]; then echo "# $*"; fi; }

# need PROGRAM HINT: exits unless the program is installed. A dry run needs no program.
need() {
  if [ -z "$DRY_RUN" ] && ! command -v "$1" > /dev/null; then
    die "'$1' is not installed: $2"
  fi
}

# required FLAG...: exits unless each option has a value.
required() {
  local flag variable
  for flag in "$@"; do
    variable="${flag//-/_}"
    variable="${variable^^}"
    [ -n "${!variable}" ] || die "--$flag is missing (or DMPO_$variable); see $PROGRAM --help"
  done
}

# whole FLAG...: exits unless each option is a whole number below a billion; drops leading zeros,
# which bash's arithmetic would read as octal.
whole() {
  local flag variable
  for flag in "$@"; do
    variable="${flag//-/_}"
    variable="${variable^^}"
    [[ "${!variable}" =~ ^0*([0-9]{1,9})$ ]] ||
      die "--$flag '${!variable}' is not a whole number below a billion"
    printf -v "$variable" '%d' "$((10#${BASH_REMATCH[1]}))"
  done
}

# one_of FLAG CHOICE...: exits unless the option is one of the choices.
one_of() {
  local flag="$1" variable choice
  shift
  variable="${flag//-/_}"
  variable="${variable^^}"
  for choice in "$@"; do [ "${!variable}" = "$choice" ] && return; done
  die "--$flag '${!variable}' is not one of: $*"
}

# check_name: exits unless --name is valid in host names of clouds and clusters.
check_name() {
  required name
  [[ "$NAME" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name '$NAME': expected at most 40 of a-z, 0-9 and -, first a letter, last no -"
}

# in_bucket PATH: whether a path is a folder of a bucket.
in_bucket() { [[ "$1" == gs://* ]]; }

# check_workdir: exits unless --workdir is an absolute path or a folder of a bucket.
check_workdir() {
  required workdir
  if in_bucket "$WORKDIR"; then
    [[ "$WORKDIR" =~ ^gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]/[^/]+(/[^/]+)*/?$ ]] ||
      die "--workdir '$WORKDIR': expected gs://BUCKET/FOLDER"
    return
  fi
  [[ "$WORKDIR" != *://* ]] ||
    die "--workdir '$WORKDIR': expected gs://BUCKET/FOLDER, or a path on a disk that all workers" \
      "share"
  [[ "$WORKDIR" == /* ]] || die "--workdir '$WORKDIR' is neither an absolute path nor on gs://"
}

# fetch_bucket: copies --from, a folder or file in a bucket, to --to.
fetch_bucket() {
  need gcloud "https://cloud.google.com/sdk/docs/install"
  run gcloud storage cp "$FROM" "$TO" --recursive
}

# check_training: exits unless the arguments after -- have a config and no option set here.
check_training() {
  local argument config=""
  for argument in "${REST[@]}"; do
    case "$argument" in
      --config | --config=*) config=yes ;;
      --workdir | --workdir=* | --distributed | --coordinator | --coordinator=*)
        die "'$argument' after --: this script sets it"
        ;;
    esac
  done
  [ -n "$config" ] || die "no config: end the command with -- --config configs/NAME.py"
}

# check_type: exits unless --type is an accelerator type; sets CHIPS and what slice_of sets.
check_type() {
  local generation number
  TYPE="${TYPE/#v5e-/v5litepod-}"
  [[ "$TYPE" =~ ^(v4|v5p|v5litepod|v6e)-([1-9][0-9]{0,4})$ ]] ||
    die "--type '$TYPE' is unknown: v4-N, v5p-N, v5litepod-N or v6e-N"
  generation="${BASH_REMATCH[1]/litepod/e}" number="${BASH_REMATCH[2]}"
  case "$generation" in
    v4 | v5p) # names count cores: two per chip, four chips per host
      ((number >= 8 && number % 8 == 0)) || die "--type '$TYPE': cores must be a multiple of 8"
      CHIPS=$((number / 2))
      ;;
    *)
      CHIPS=$number
      [[ " 1 4 8 16 32 64 128 256 " == *" $CHIPS "* ]] ||
        die "--type '$TYPE': slices of this generation have 1, 4, 8, 16, 32, 64, 128 or 256 chips"
      ;;
  esac
  slice_of "$generation" "$CHIPS"
}

# check_slices NAME: exits unless --slices is a number of slices that NAME can have.
check_slices() {
  whole slices
  ((SLICES >= 1 && SLICES <= 256)) || die "--slices $SLICES: expected 1 to 256"
  ((SLICES == 1 || HOSTS > 1)) ||
    die "--slices $SLICES: $1 has one host, and Google connects only slices of several hosts"
}

# slice_of GENERATION CHIPS: for a slice of v4, v5e, v5p or v6e sets HOSTS, CHIPS_PER_HOST,
# VM_IMAGE, ACCELERATOR (GKE's node label) and MACHINE (GKE's machine type).
slice_of() {
  local one_host=4 prefix # one_host: largest number of chips on a single host
  case "$1" in
    v4) VM_IMAGE=tpu-ubuntu2204-base ACCELERATOR=tpu-v4-podslice prefix=ct4p-hightpu ;;
    v5p) VM_IMAGE=v2-alpha-tpuv5 ACCELERATOR=tpu-v5p-slice prefix=ct5p-hightpu ;;
    v5e)
      VM_IMAGE=v2-alpha-tpuv5-lite ACCELERATOR=tpu-v5-lite-podslice prefix=ct5lp-hightpu one_host=8
      ;;
    v6e) VM_IMAGE=v2-alpha-tpuv6e ACCELERATOR=tpu-v6e-slice prefix=ct6e-standard one_host=8 ;;
    *) return 1 ;;
  esac
  if (($2 <= one_host)); then CHIPS_PER_HOST=$2; else CHIPS_PER_HOST=4; fi
  HOSTS=$(($2 / CHIPS_PER_HOST))
  MACHINE="$prefix-${CHIPS_PER_HOST}t"
  : "$HOSTS $VM_IMAGE $ACCELERATOR $MACHINE" # used by the scripts that source this file
}
