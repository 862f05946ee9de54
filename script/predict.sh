#!/usr/bin/env bash
# Brain ages of your scans: preprocesses what needs it, predicts with the shipped networks, writes
# predictions.tsv and report.html.   bash script/predict.sh SCANS... --output_dir OUT
# SCANS: NIfTI or MGH files, folders, BIDS datasets, fsl_anat outputs, folders of a DICOM series; heads,
# brains, or brains on the network's grid. Run again, finished scans are skipped.
# Edit the block; flags on the command line win.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

LABELS=()     # sheets with ages and sexes; empty: participants.tsv of BIDS datasets, if there are any
CONTENTS=auto # head, brain, grid (preprocessed already), auto: seen from each image
CHECKPOINT=   # a network of your own; empty: those in pretrained/
JOBS=0        # scans prepared at a time, 1.4 GiB each; 0: as many as cores and memory allow

"$PYTHON" "$ROOT/predict.py" \
  ${LABELS[@]+--labels "${LABELS[@]}"} --contents "$CONTENTS" \
  ${CHECKPOINT:+--model_name "$CHECKPOINT"} --jobs "$JOBS" "$@"
