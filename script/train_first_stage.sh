#!/usr/bin/env bash
# Trains the first stage of TSAN. Edit the block; further flags on the command line win:
#   bash script/train_first_stage.sh --epochs 80
# The published settings instead of ours: --recipe paper. All flags: --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}" # holds train/, val/, test/ and the label sheet
LABELS="$DATA/Dataset.xls"      # file name, age in years, sex (0 female, 1 male)
OUTPUT="$ROOT/runs/first_stage" # new or empty; --resume continues the run in it
REGISTRATION=                   # of the scans: affine or deformable; empty: as their sidecars say
MASK=                           # of the scans: template or subject; empty: as their sidecars say
# What follows was measured on OASIS-1: the rows named are those of docs/RESULTS.md.
WIDTH=compact   # the paper's figure, "32 epochs"; released: the authors' code (GPU), no better
RESOLUTION=4    # mm; 2 is for a GPU: 5.08 years, three seeds at 4 mm 5.14 to 5.67, "one GPU"
CROP=true       # to the template's brain: fewer voxels; not measured for itself
EPOCHS=32       # "32 epochs"
BATCH_SIZE=8    # scans; "batches of 8"
LR=2e-3         # AdamW; "head x 10, lr 2e-3"
RANK_WEIGHT=10  # lambda, as published; the shipped networks have 0: no difference shown, "One flag at a time"
PAIR_WEIGHT=0   # beta; published: 1, as above
SEED=0
NPROC="${NPROC:-1}" # processes of this machine, one a GPU; BATCH_SIZE is of all together
RECIPE=ours # paper: the published settings instead of width to weights above; or --recipe paper

VALUES=(--width "$WIDTH" --crop "$CROP" --epochs "$EPOCHS" --batch_size "$BATCH_SIZE" --lr "$LR"
  --rank_weight "$RANK_WEIGHT" --pair_weight "$PAIR_WEIGHT")
case "$RECIPE $*" in
  paper* | *"--recipe paper"* | *--recipe=paper*) VALUES=(--recipe paper) ;;
esac

launch "$NPROC" "$ROOT/train_first_stage.py" \
  --train_folder "$DATA/train" --val_folder "$DATA/val" --labels "$LABELS" \
  --output_dir "$OUTPUT" --resolution "$RESOLUTION" --seed "$SEED" "${VALUES[@]}" \
  ${REGISTRATION:+--registration "$REGISTRATION"} ${MASK:+--mask "$MASK"} "$@"
