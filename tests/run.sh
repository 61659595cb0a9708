#!/usr/bin/env bash
# Makes a virtual environment, installs dmpo-jax with what its tests need, and runs the tests.
#   tests/run.sh                 all tests
#   tests/run.sh -m 'not slow'   arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment test
# Two processes, a file of tests at a time (tests/conftest.py groups them, slow tests last): a test
# mostly compiles, which one core does.
exec "$VENV/bin/python" -m pytest --numprocesses=2 --dist=loadgroup --no-loadscope-reorder "$@"
