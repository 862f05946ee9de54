#!/usr/bin/env bash
# Trains the second stage of TSAN on top of a first stage, which stays as it is. Edit the block;
# further flags on the command line win. An empty value is the recipe's, which stands beside it:
# ours, then paper. All flags: --help; all values, and what measured them: utils/training/recipes.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}" # holds train/, val/, test/ and the label sheet
LABELS="$DATA/Dataset.xls"
FIRST_STAGE="$ROOT/runs/first_stage/ScaleDense_best_model.pth.tar" # ours or the authors'
OUTPUT="$ROOT/runs/second_stage" # new or empty; --resume continues the run in it
REGISTRATION=                    # of the scans: affine or deformable; empty: as their sidecars say
MASK=                            # of the scans: template or subject; empty: as their sidecars say
SEED=0
NPROC="${NPROC:-1}" # processes of this machine, one per GPU; BATCH_SIZE is of all together

RECIPE=ours  # ours, or paper: as published
WIDTH=       # as the first stage, released
AGE_STEP=    # 5, 5; years between rounded ages
EPOCHS=      # 32, 150
BATCH_SIZE=  # 8, 32; scans
LR=          # 2e-3, 1e-5; AdamW, SGD
RANK_WEIGHT= # 10, 10; lambda
PAIR_WEIGHT= # 0, 1; beta
AUGMENT=     # light, none

launch "$NPROC" "$ROOT/train_second_stage.py" \
  --train_folder "$DATA/train" --val_folder "$DATA/val" --labels "$LABELS" \
  --first_stage_net "$FIRST_STAGE" --output_dir "$OUTPUT" --seed "$SEED" --recipe "$RECIPE" \
  ${WIDTH:+--width "$WIDTH"} ${AGE_STEP:+--age_step "$AGE_STEP"} \
  ${EPOCHS:+--epochs "$EPOCHS"} ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} ${LR:+--lr "$LR"} \
  ${RANK_WEIGHT:+--rank_weight "$RANK_WEIGHT"} ${PAIR_WEIGHT:+--pair_weight "$PAIR_WEIGHT"} \
  ${AUGMENT:+--augment "$AUGMENT"} \
  ${REGISTRATION:+--registration "$REGISTRATION"} ${MASK:+--mask "$MASK"} "$@"
