#!/usr/bin/env bash
# Sourced by quickstart.sh and the tests. VENV is the virtual environment (default: .venv).
VENV="${VENV:-.venv}"

# After each step on a CPU XLA frees its temporary arrays. Keeping their pages in the process saves
# a tenth of the time, since the system need not clear them again. Systems without glibc ignore it.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=17179869184:glibc.malloc.mmap_threshold=17179869184}"

# make_environment EXTRA: installs dmpo-jax[EXTRA] into VENV, once per version of setup.py.
make_environment() {
  local extra="$1" python stamp wanted
  stamp="$VENV/dmpo-jax-$extra.installed"
  wanted="$(cksum < setup.py)"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  python="$(find_python)"
  echo "Installing dmpo-jax[$extra] into $VENV (a minute or two, once) ..."
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  # torch first, in this version: otherwise pip takes the newest one with its accelerator libraries.
  # TORCH is another requirement, such as the path of a wheel.
  if [ "$extra" = test ] && ! "$VENV/bin/python" -c "import torch" 2> /dev/null; then
    "$VENV/bin/python" -m pip install --quiet "${TORCH:-torch==2.13.0}"
  fi
  "$VENV/bin/python" -m pip install --quiet --editable ".[$extra]"
  echo "$wanted" > "$stamp"
}

# find_python: prints the first Python of version 3.11 or newer.
find_python() {
  local name
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$name"
      return
    fi
  done
  echo "dmpo-jax needs Python 3.11 or newer; set PYTHON to its path" >&2
  return 1
}
