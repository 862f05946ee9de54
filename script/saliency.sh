#!/usr/bin/env bash
# Which regions of the brain move the age that a checkpoint gives: maps, a table and a picture.
# Edit the block; further flags on the command line win. Without a sheet: --labels ''.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}" # holds test/ and the label sheet, which says the sexes
CHECKPOINT="$ROOT/runs/first_stage/ScaleDense_best_model.pth.tar" # of either stage
SCANS="$DATA/test"
LABELS="$DATA/Dataset.xls"
OUTPUT="$ROOT/runs/saliency"
METHOD=smoothgrad # seconds per scan; occlusion: minutes per scan without a GPU
LIMIT=50          # scans, the first ones by name

"$PYTHON" -m analysis.saliency --checkpoint "$CHECKPOINT" --scan_folder "$SCANS" \
  --labels "$LABELS" --output_dir "$OUTPUT" --method "$METHOD" --limit "$LIMIT" "$@"
