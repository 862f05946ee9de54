#!/usr/bin/env bash
# Brain-PAD from tables of predicted ages: corrected, with intervals; repeatability; dementia. Seconds.
# Edit the block; further flags on the command line win.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}"              # holds the participants table
TABLES="$ROOT/runs/second_stage"             # holds tables that test.py wrote
OUT_OF_FOLD="$ROOT/runs/out_of_fold.csv"     # healthy; analysis/brain_pad/out_of_fold.py writes it
TEST="$TABLES/predictions.csv"               # healthy persons not trained on
RETEST=("$TABLES/retest_predictions.csv")    # second scans; (): none
DEMENTIA="$TABLES/dementia_predictions.csv"  # "": none
PARTICIPANTS="$DATA/participants.tsv"        # scan_id and CDR; "": none
OUTPUT="$ROOT/runs/brain_pad"                # --overwrite replaces results in it
CALIPER=5                                    # years between matched scans at most

"$PYTHON" -m analysis.brain_pad \
  --out_of_fold "$OUT_OF_FOLD" --test "$TEST" --retest ${RETEST[@]+"${RETEST[@]}"} \
  --dementia "$DEMENTIA" --participants "$PARTICIPANTS" --caliper "$CALIPER" \
  --output_dir "$OUTPUT" "$@"
