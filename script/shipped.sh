#!/usr/bin/env bash
# The figures of docs/RESULTS.md for the shipped networks: errors on the test folder of OASIS-1, and
# what brain-PAD is worth (retest, dementia). Minutes on a CPU. TSAN_DATA names OASIS-1 as made by
# script/prepare_oasis1.sh; its scans are affine.   bash script/oasis1.sh [FOLDER]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}" # holds train/ val/ test/ retest/ dementia/, sheet and participants
LABELS="$DATA/Dataset.xls"
OUTPUT="${1:-$ROOT/runs/oasis1_shipped}"
NETWORKS=("$ROOT"/pretrained/tsan_oasis1_*.pt)

# ages FOLDER NETWORKS...: one table of ages, with errors where healthy.
ages() {
  local folder="$1" output="$2"
  shift 2
  "$PYTHON" "$ROOT/test.py" --test_folder "$DATA/$folder" --labels "$LABELS" \
    --output_dir "$output" --model_name "$@" --overwrite
}

echo "== mean age and kernel ridge"
"$PYTHON" -m utils.results.baseline --train_folders "$DATA/train" "$DATA/val" \
  --test_folder "$DATA/test" --labels "$LABELS"
for network in "${NETWORKS[@]}"; do
  echo "== one cascade: $(basename "$network")"
  ages test "$OUTPUT/$(basename "$network" .pt)" "$network"
done
for folder in test retest dementia; do
  echo "== the mean of all, $folder"
  ages "$folder" "$OUTPUT/$folder" "${NETWORKS[@]}"
done
echo "== brain-PAD, calibrated on out-of-fold ages"
"$PYTHON" -m analysis.brain_pad --labels "$LABELS" \
  --out_of_fold "$ROOT/docs/out_of_fold_oasis1.csv" --test "$OUTPUT/test/predictions.tsv" \
  --retest "$OUTPUT/retest/predictions.tsv" --dementia "$OUTPUT/dementia/predictions.tsv" \
  --participants "$DATA/participants.tsv" --output_dir "$OUTPUT/brain_pad" --overwrite
