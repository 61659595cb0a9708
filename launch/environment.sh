#!/usr/bin/env bash
# Sourced by the scripts that set everything up. VENV names the virtual environment (default: .venv).
VENV="${VENV:-.venv}"

# XLA frees the temporary arrays of a step on a CPU, and glibc would hand their pages back to the system,
# which clears them anew in the next step: keeping them saves a tenth of the time. Other systems ignore it.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=17179869184:glibc.malloc.mmap_threshold=17179869184}"

# make_environment EXTRA: the virtual environment with dmpo-jax[EXTRA], installed once per setup.py.
make_environment() {
  local extra="$1" python stamp wanted
  stamp="$VENV/dmpo-jax-$extra.installed"
  wanted="$(cksum < setup.py)"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  python="$(find_python)"
  echo "Installing dmpo-jax[$extra] into $VENV (a minute or two, once) ..."
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  # First, and in this version, or the newest one with its accelerator libraries would be taken.
  # TORCH names another requirement, such as the path of a wheel.
  if [ "$extra" = test ] && ! "$VENV/bin/python" -c "import torch" 2> /dev/null; then
    "$VENV/bin/python" -m pip install --quiet "${TORCH:-torch==2.13.0}"
  fi
  "$VENV/bin/python" -m pip install --quiet --editable ".[$extra]"
  echo "$wanted" > "$stamp"
}

# The first Python of version 3.11 or newer.
find_python() {
  local name
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$name"
      return
    fi
  done
  echo "dmpo-jax needs Python 3.11 or newer; set PYTHON to one" >&2
  return 1
}
