#!/usr/bin/env bash
# Runs all tests that need no GPU, in the virtual environment, which it makes where it is missing.
#   bash script/run_tests.sh -m "not slow"     the fast ones alone
# Those of the preprocessing engines run where requirements-preprocessing.txt is installed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment requirements.txt requirements-dev.txt
cd "$ROOT"
export OMP_NUM_THREADS=1 # two processes of one thread each, and so what they start
"$PYTHON" -m pytest -q -n 2 "$@"
