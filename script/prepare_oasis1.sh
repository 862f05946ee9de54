#!/usr/bin/env bash
# From OASIS-1 as released to the folders that training, testing and brain-PAD figures read:
#   bash script/prepare_oasis1.sh DISCS TABLE OUT   [further flags of preprocess.sh]
# DISCS holds disc1/, disc2/ ... unpacked; TABLE is oasis_cross-sectional.csv or .xlsx. OUT gets
#   train/ val/ test/   healthy people, one scan each, split by person and balanced in age
#   retest/ dementia/   second scans within 90 days; people with a CDR above 0: never for training
#   Dataset.xls participants.tsv   one row per scan of every folder
#   raw/ healthy/ folds/           what these are made from; raw/left_out.tsv says what is missing
# Run again, it goes on where it was.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# -lt 3 ]; then
  echo "usage: bash script/prepare_oasis1.sh DISCS TABLE OUT" >&2
  exit 2
fi
DISCS="$1" TABLE="$2" OUT="$3"
shift 3
JOBS="${JOBS:-2}"         # scans at a time, one core each
FRACTIONS=(0.7 0.15 0.15) # of the healthy people: train, val, test
SEED=0                    # of the split
# The T88_111 images are brains already; affine, so that atrophy is not warped away.
RECIPE=(--registration affine --mask subject --contents brain)

# build FOLDER LAST PROGRAM FLAGS...: fills OUT/FOLDER unless its LAST file exists. The folder is
# called FOLDER.part until it is complete; what an interruption left of it is deleted.
build() {
  local folder="$OUT/$1" last="$2"
  shift 2
  [ ! -f "$folder/$last" ] || return 0
  if [ -e "$folder" ]; then
    echo "error: $folder has no $last, so it is not whole: remove it, and run again" >&2
    return 1
  fi
  rm -rf "$folder.part"
  mkdir -p "$folder.part"
  "$PYTHON" -m "$@" --output_dir "$folder.part"
  mv "$folder.part" "$folder"
}

echo "1/3 names, ages and groups: $OUT/raw"
build raw participants.tsv data_preprocessing.datasets oasis1 \
  --tables "$TABLE" --scan_folder "$DISCS"
echo "2/3 onto the MNI152 2 mm grid"
for group in healthy retest dementia; do
  # A part of the discs may have none of a group.
  if [ -d "$OUT/raw/$group" ] && [ -z "$(ls "$OUT/raw/$group")" ]; then
    mkdir -p "$OUT/$group"
    continue
  fi
  bash "$ROOT/script/preprocess.sh" "$OUT/raw/$group" --output_dir "$OUT/$group" \
    --jobs "$JOBS" "${RECIPE[@]}" "$@" || [ $? -eq 3 ] # 3: some scans failed, and are listed
done
echo "3/3 split of the healthy people"
build folds split.tsv data_preprocessing.split_dataset --scan_folder "$OUT/healthy" \
  --labels "$OUT/raw/Dataset.xls" --fractions "${FRACTIONS[@]}" --seed "$SEED"
for made in folds/train folds/val folds/test raw/Dataset.xls raw/participants.tsv; do
  ln -sfn "$made" "$OUT/${made##*/}"
done
