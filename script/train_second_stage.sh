#!/usr/bin/env bash
# Trains the second stage of TSAN on top of a first stage, which stays as it is.
# Edit the block; further flags on the command line win. The published settings: --recipe paper.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}" # holds train/, val/, test/ and the label sheet
LABELS="$DATA/Dataset.xls"
FIRST_STAGE="$ROOT/runs/first_stage/ScaleDense_best_model.pth.tar" # ours or the authors'
OTHER=                           # a first stage of another seed, from which the second starts ("stage two"):
                                 # their mean; empty: from FIRST_STAGE, which it then hardly changes
OUTPUT="$ROOT/runs/second_stage" # new or empty; --resume continues the run in it
REGISTRATION=                    # of the scans: affine or deformable; empty: as their sidecars say
MASK=                            # of the scans: template or subject; empty: as their sidecars say
WIDTH=                           # empty: that of the first stage; another needs --no-warm_start
AGE_STEP=5                       # years between rounded ages, as published
EPOCHS=1         # "mean of two seeds" of docs/RESULTS.md; more training made it worse
BATCH_SIZE=8     # scans
LR=1e-5          # AdamW, from a first stage's weights; published: SGD 1e-5, from fresh ones
RANK_WEIGHT=10   # lambda, as published; the shipped networks have 0
PAIR_WEIGHT=0    # beta; published: 1
SEED=0
NPROC="${NPROC:-1}" # processes of this machine, one a GPU; BATCH_SIZE is of all together
RECIPE=ours # paper: the published settings instead of width to weights above; or --recipe paper

VALUES=(${WIDTH:+--width "$WIDTH"} --epochs "$EPOCHS" --batch_size "$BATCH_SIZE" --lr "$LR"
  --rank_weight "$RANK_WEIGHT" --pair_weight "$PAIR_WEIGHT")
[ -z "$OTHER" ] || VALUES+=(--warm_start_net "$OTHER" --rough_share 0.5 --rough_age_noise 0)
case "$RECIPE $*" in
  paper* | *"--recipe paper"* | *--recipe=paper*) VALUES=(--recipe paper) ;;
esac

launch "$NPROC" "$ROOT/train_second_stage.py" \
  --train_folder "$DATA/train" --val_folder "$DATA/val" --labels "$LABELS" \
  --first_stage_net "$FIRST_STAGE" --output_dir "$OUTPUT" --age_step "$AGE_STEP" \
  --seed "$SEED" "${VALUES[@]}" \
  ${REGISTRATION:+--registration "$REGISTRATION"} ${MASK:+--mask "$MASK"} "$@"
