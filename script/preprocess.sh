#!/usr/bin/env bash
# Brings raw T1-weighted scans onto the network's grid: brains in MNI152 space, 2 mm, LAS.
#   bash script/preprocess.sh SCANS... --output_dir OUT
# SCANS: NIfTI or MGH files, folders, a BIDS dataset, folders of a DICOM series; heads or brains.
# Done already, a scan is skipped: run it again after an interruption or with more scans.
# docs/preprocess.md says what is done. Edit the block; flags on the command line win.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

BACKEND=builtin # builtin (pip packages), fsl (fsl_anat, as published), resample
REGISTRATION="" # deformable (when empty), affine, or empty and --like CHECKPOINT: as that says
CONTENTS=auto   # head, brain (extracted already), auto: seen from each image
JOBS=0          # scans at a time, 1.4 GiB each; 0: as many as cores and memory allow

"$PYTHON" -m data_preprocessing.preprocess \
  --backend "$BACKEND" ${REGISTRATION:+--registration "$REGISTRATION"} \
  --contents "$CONTENTS" --jobs "$JOBS" "$@"
