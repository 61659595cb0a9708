#!/usr/bin/env bash
# Makes a virtual environment, installs dmpo-jax with what its tests need, and runs the tests.
#   tests/run.sh                 all tests
#   tests/run.sh -m 'not slow'   arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment test
exec "$VENV/bin/python" -m pytest "$@"
