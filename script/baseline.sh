#!/usr/bin/env bash
# Mean age and linear kernel ridge on 4 mm voxels: what a network must beat. Seconds, no GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}" # holds train/, val/, test/ and the label sheet
LABELS="$DATA/Dataset.xls"

"$PYTHON" -m utils.results.baseline \
  --train_folders "$DATA/train" "$DATA/val" --test_folder "$DATA/test" --labels "$LABELS" "$@"
