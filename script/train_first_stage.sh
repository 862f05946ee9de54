#!/usr/bin/env bash
# Trains the first stage of TSAN. Edit the block; further flags on the command line win:
#   bash script/train_first_stage.sh --epochs 80
# An empty value is the recipe's, which stands beside it: ours, then paper. All flags: --help;
# all values, and what measured them: utils/training/recipes.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}" # holds train/, val/, test/ and the label sheet
LABELS="$DATA/Dataset.xls"      # file name, age in years, sex (0 female, 1 male)
OUTPUT="$ROOT/runs/first_stage" # new or empty; --resume continues the run in it
REGISTRATION=                   # of the scans: affine or deformable; empty: as their sidecars say
MASK=                           # of the scans: template or subject; empty: as their sidecars say
SEED=0
NPROC="${NPROC:-1}" # processes of this machine, one per GPU; BATCH_SIZE is of all together

RECIPE=ours  # ours: measured on OASIS-1, mean absolute error 5.02 years, five folds; paper: as published
WIDTH=       # compact, released; compact is the paper's figure, released the authors' code (GPU): no better
RESOLUTION=  # 4, 2; mm, 2 is for a GPU: 5.08 years, where three seeds at 4 mm have 5.14 to 5.67
EPOCHS=      # 32, 150; 16 epochs: 5.42 years
BATCH_SIZE=  # 8, 32; scans
LR=          # 2e-3, 1e-3
RANK_WEIGHT= # 10, 10; lambda
PAIR_WEIGHT= # 0, 1; beta
AUGMENT=     # light, none; without random shifts 6.39 years instead of 5.56, three folds

launch "$NPROC" "$ROOT/train_first_stage.py" \
  --train_folder "$DATA/train" --val_folder "$DATA/val" --labels "$LABELS" \
  --output_dir "$OUTPUT" --seed "$SEED" --recipe "$RECIPE" \
  ${WIDTH:+--width "$WIDTH"} ${RESOLUTION:+--resolution "$RESOLUTION"} \
  ${EPOCHS:+--epochs "$EPOCHS"} ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} ${LR:+--lr "$LR"} \
  ${RANK_WEIGHT:+--rank_weight "$RANK_WEIGHT"} ${PAIR_WEIGHT:+--pair_weight "$PAIR_WEIGHT"} \
  ${AUGMENT:+--augment "$AUGMENT"} \
  ${REGISTRATION:+--registration "$REGISTRATION"} ${MASK:+--mask "$MASK"} "$@"
