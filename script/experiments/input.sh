#!/usr/bin/env bash
# What the network sees: the sex, the whole grid, scans times the template's mask (MASKED: a copy of
# the data folder with masked scans, made below).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}"
MASKED="${MASKED:-$RUNS/masked}"
row default
row no_sex --use_sex false
row whole_grid --crop false
"$PYTHON" -m data_preprocessing.apply_mask --scan_folders "$DATA/train" "$DATA/val" \
  --labels "$DATA/Dataset.xls" --output_dir "$MASKED"
TSAN_DATA="$MASKED" row masked --mask template
# Compact at 2 mm takes eight times as long: one fold.
ONLY=0 row two_millimetres --resolution 2
