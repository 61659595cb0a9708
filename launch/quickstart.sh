#!/usr/bin/env bash
# Makes a virtual environment, installs dmpo-jax, and runs the quickstart: about ten minutes on two
# cores. Interrupted, the same command resumes. Arguments go to `dmpo-jax quickstart`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
make_environment quickstart
exec "$VENV/bin/dmpo-jax" quickstart "$@"
