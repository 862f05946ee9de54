#!/usr/bin/env bash
# From a fresh clone to tested ages in five to ten minutes on two cores, without a GPU or any data:
# makes a virtual environment, a SYNTHETIC cohort, trains both stages, tests them.
# Run again, it goes on where it was.   bash script/quickstart.sh [FOLDER]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

OUTPUT="${1:-$ROOT/runs/quickstart}" # holds synthetic_cohort/, first_stage/ and second_stage/
SCANS=120                            # synthetic people
RECIPE=quickstart                    # of utils/training/recipes.py: few scans, few epochs, 4 mm

CHECKPOINT=ScaleDense_best_model.pth.tar
DATA="$OUTPUT/synthetic_cohort"
COMMON=(--train_folder "$DATA/train" --val_folder "$DATA/val" --labels "$DATA/Dataset.xls" --recipe "$RECIPE")

# train PROGRAM FOLDER FLAGS...: trains, or continues an interrupted training.
train() {
  local program="$1" folder="$2" resume=()
  shift 2
  [ ! -d "$folder" ] || resume=(--resume)
  "$PYTHON" "$ROOT/$program" "${COMMON[@]}" --output_dir "$folder" "$@" ${resume[@]+"${resume[@]}"}
}

SECONDS=0
make_environment requirements.txt
echo "1/4 synthetic cohort: $DATA"
if [ ! -f "$DATA/Dataset.xls" ]; then
  "$PYTHON" -m data_preprocessing.make_demo_cohort --output_dir "$DATA" --scans "$SCANS"
fi
echo "2/4 first stage"
train train_first_stage.py "$OUTPUT/first_stage"
echo "3/4 second stage"
train train_second_stage.py "$OUTPUT/second_stage" \
  --first_stage_net "$OUTPUT/first_stage/$CHECKPOINT"
echo "4/4 test on scans that neither stage has seen"
"$PYTHON" "$ROOT/test.py" --test_folder "$DATA/test" --labels "$DATA/Dataset.xls" \
  --output_dir "$OUTPUT/second_stage" --model_name "$CHECKPOINT" --overwrite
echo "SYNTHETIC scans: these errors say nothing about real brains. $((SECONDS / 60)) min" \
  "$((SECONDS % 60)) s. Pictures: $OUTPUT/second_stage/scatter.png;" \
  "curves: tensorboard --logdir $OUTPUT"
