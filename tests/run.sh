#!/usr/bin/env bash
# Makes a virtual environment, installs dmpo-jax with what its tests need, and runs the tests.
#   tests/run.sh                 all tests
#   tests/run.sh -m 'not slow'   arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment test
# Two processes, a file of tests at a time (slow tests last, see tests/conftest.py): a test
# mostly compiles, which one core does.
exec "$VENV/bin/python" -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
