#!/usr/bin/env bash
# Runs all tests that need no GPU, in the virtual environment, which it makes where it is missing.
#   bash script/run_tests.sh -m "not slow"     the fast ones alone
# Tests of the preprocessing engines are skipped unless requirements-preprocessing.txt is installed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment requirements.txt requirements-dev.txt
cd "$ROOT"
export OMP_NUM_THREADS=1 # two processes of one thread each, and so what they start
# With worksteal each process keeps to its half of the files, and so makes most fixtures once.
"$PYTHON" -m pytest -q -n 2 --dist worksteal "$@"
