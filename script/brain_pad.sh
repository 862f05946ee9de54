#!/usr/bin/env bash
# Brain-PAD from tables of predicted ages: corrected, with intervals; repeatability; dementia. Takes seconds.
# Edit the block; further flags on the command line win.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}"                # holds the participants table
OUT_OF_FOLD="$ROOT/runs/out_of_fold.csv"       # healthy; analysis.brain_pad.out_of_fold writes it
# Written by test.py, each into an --output_dir of its own:
TEST="$ROOT/runs/second_stage/predictions.tsv" # healthy persons not trained on
RETEST=("$ROOT/runs/retest/predictions.tsv")   # second scans; (): none
DEMENTIA="$ROOT/runs/dementia/predictions.tsv" # "": none
PARTICIPANTS="$DATA/participants.tsv"          # scan_id and CDR; "": none
OUTPUT="$ROOT/runs/brain_pad"                  # --overwrite replaces results in it
CALIPER=5                                      # years between matched scans at most

"$PYTHON" -m analysis.brain_pad \
  --out_of_fold "$OUT_OF_FOLD" --test "$TEST" --retest ${RETEST[@]+"${RETEST[@]}"} \
  --dementia "$DEMENTIA" --participants "$PARTICIPANTS" --caliper "$CALIPER" \
  --output_dir "$OUTPUT" "$@"
