#!/usr/bin/env bash
# Checks scans and label sheet before training: a table of all problems, exit code 1 on any error.
# Edit the block; further flags on the command line win.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}" # holds train/, val/, test/ and the label sheet
LABELS="$DATA/Dataset.xls"
REPORT="$ROOT/runs/check_dataset.tsv" # new; --overwrite replaces it
JOBS=0                                # processes; 0: as many as cores

"$PYTHON" -m data_preprocessing.check_dataset \
  --folders "$DATA/train" "$DATA/val" "$DATA/test" --labels "$LABELS" \
  --output "$REPORT" --jobs "$JOBS" "$@"
