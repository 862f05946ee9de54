#!/usr/bin/env bash
# Fits ages to your scanner, from five or more local healthy people of known age. Takes seconds.
#   bash script/predict.sh LOCAL_SCANS... --output_dir local --labels SHEET
#   bash script/recalibrate.sh local/predictions.tsv --output calibration.json
#   bash script/predict.sh SCANS... --output_dir ages --calibration calibration.json
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

"$PYTHON" -m analysis.brain_pad.recalibrate "$@"
