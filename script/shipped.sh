#!/usr/bin/env bash
# The figures of docs/RESULTS.md for the shipped networks: errors on the test folders of their sites,
# and what brain-PAD is worth (retest, dementia). Minutes on a CPU.   bash script/shipped.sh [FOLDER]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}"        # holds a folder for each site
SITES="${SITES:-oasis1 ixi ds002748}"  # each with train/ val/ test/, affine scans
SECOND="${SECOND:-oasis1}"             # the site with retest/, dementia/ and participants.tsv (CDR)
LABELS=("${LABELS:-$DATA/Dataset.xls}") # one or several, with a column site
OUTPUT="${1:-$ROOT/runs/shipped}"
NETWORKS=("$ROOT"/pretrained/tsan_*.pt)

train_folders=() test_folders=()
for site in $SITES; do
  train_folders+=("$DATA/$site/train" "$DATA/$site/val")
  test_folders+=("$DATA/$site/test")
done

# ages NAME --model_name NETWORKS... --test_folder FOLDERS...: a table of ages, errors where healthy.
ages() {
  "$PYTHON" "$ROOT/test.py" --labels "${LABELS[@]}" --output_dir "$OUTPUT/$1" --overwrite "${@:2}"
}

echo "== mean age and kernel ridge"
"$PYTHON" -m utils.results.baseline --train_folders "${train_folders[@]}" \
  --test_folder "${test_folders[@]}" --labels "${LABELS[@]}"
for network in "${NETWORKS[@]}"; do
  name="$(basename "$network" .pt)"
  echo "== one cascade: $name"
  ages "$name" --model_name "$network" --test_folder "${test_folders[@]}"
done
echo "== the mean of all, test folders"
ages test --model_name "${NETWORKS[@]}" --test_folder "${test_folders[@]}"
for folder in retest dementia; do
  echo "== the mean of all, $folder"
  ages "$folder" --model_name "${NETWORKS[@]}" --test_folder "$DATA/$SECOND/$folder"
done
echo "== brain-PAD, calibrated on out-of-fold ages, with intervals of sites that were held out"
"$PYTHON" -m analysis.brain_pad --labels "${LABELS[@]}" \
  --out_of_fold "$ROOT/docs/out_of_fold_sites.csv" --held_out_sites "$ROOT/docs/held_out_sites.csv" \
  --test "$OUTPUT/test/predictions.tsv" --retest "$OUTPUT/retest/predictions.tsv" \
  --dementia "$OUTPUT/dementia/predictions.tsv" \
  --participants "$DATA/$SECOND/participants.tsv" --output_dir "$OUTPUT/brain_pad" --overwrite
