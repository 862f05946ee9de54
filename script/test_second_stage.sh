#!/usr/bin/env bash
# Predicts the test folder with the whole cascade and reports both stages.
# An authors' checkpoint needs --first_stage_net FILE as well; ours hold their first stage.
# Edit the block; further flags on the command line win. Without ages: --labels ''.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}" # holds test/ and the label sheet
LABELS="$DATA/Dataset.xls"
OUTPUT="$ROOT/runs/second_stage" # holds the checkpoint; the results go there too
CHECKPOINT= # in OUTPUT or a path; empty: the result of the run in OUTPUT or, without one there, the
            # networks shipped in pretrained/

"$PYTHON" "$ROOT/test.py" \
  --test_folder "$DATA/test" --labels "$LABELS" \
  --output_dir "$OUTPUT" ${CHECKPOINT:+--model_name "$CHECKPOINT"} "$@"
