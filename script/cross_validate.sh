#!/usr/bin/env bash
# Cross-validates a first stage, or with FIRST_STAGES set a second one: one run per fold, then the table
# of out-of-fold ages and its errors. Finished runs are kept, an interrupted one is continued.
#   bash script/cross_validate.sh --rank_weight 10     flags go to every training
# NAME=other JOBS=2 bash script/cross_validate.sh: another folder below runs/cv, two runs at a time.
# In a flag @FOLD@ stands for the fold, for files of which each fold has its own.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${TSAN_DATA:-$ROOT/data}"          # holds train/ and val/, which are pooled, and the sheet
LABELS="$DATA/Dataset.xls"
FOLDS="${FOLDS:-$ROOT/docs/folds_oasis1.csv}" # python -m data_preprocessing.make_folds makes one
NAME="${NAME:-default}"
RUNS="${RUNS:-$ROOT/runs/cv}"
FIRST_STAGES="${FIRST_STAGES:-}"         # a folder of first stages, one per fold, as made by this script
ONLY="${ONLY:-0 1 2 3 4}"                # folds
REFERENCE="${REFERENCE:-}"               # table of another run, to be compared with scan by scan
JOBS="${JOBS:-1}"                        # runs at a time, each with its share of the cores
CHECKPOINT=ScaleDense_best_model.pth.tar

program=train_first_stage.py
[ -z "$FIRST_STAGES" ] || program=train_second_stage.py
threads=$(($(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) / JOBS))

# train FOLD FLAGS...: one run, unless it is finished.
train() {
  local fold="$1" output="$RUNS/$NAME/$1" extra=() flag flags=()
  shift
  if [ -f "$output/finished" ]; then
    echo "fold $fold: finished before, kept as it is: $output"
    return
  fi
  [ ! -d "$output" ] || extra+=(--resume)
  [ -z "$FIRST_STAGES" ] || extra+=(--first_stage_net "$FIRST_STAGES/$fold/$CHECKPOINT")
  for flag in "$@"; do flags+=("${flag//@FOLD@/$fold}"); done # a file of each fold
  "$PYTHON" "$ROOT/$program" --train_folder "$DATA/train" --val_folder "$DATA/val" \
    --labels "$LABELS" --folds "$FOLDS" --fold "$fold" --output_dir "$output" \
    --cache_dir "$RUNS/scan_cache" --threads "$((threads > 0 ? threads : 1))" --keep last \
    ${extra[@]+"${extra[@]}"} ${flags[@]+"${flags[@]}"} >>"$RUNS/$NAME.$fold.log" 2>&1 || {
    tail -n 2 "$RUNS/$NAME.$fold.log" >&2
    echo "error: fold $fold stopped, see $RUNS/$NAME.$fold.log" >&2
    return 1
  }
  mkdir -p "$output"
  touch "$output/finished"
  tail -n 1 "$RUNS/$NAME.$fold.log"
}

mkdir -p "$RUNS"
trap wait EXIT # where one run stops, those beside it end before the script, not behind its back
pids=()
for fold in $ONLY; do
  train "$fold" "$@" &
  pids+=($!)
  if [ "${#pids[@]}" -ge "$JOBS" ]; then
    wait "${pids[0]}" # a run that stopped stops the script
    pids=(${pids[@]:1})
  fi
done
for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid"; done
"$PYTHON" -m analysis.brain_pad.out_of_fold --runs "$RUNS/$NAME" --folds "$FOLDS" \
  --scan_folders "$DATA/train" "$DATA/val" --labels "$LABELS" \
  --output "$RUNS/$NAME.csv" --overwrite --only $ONLY ${REFERENCE:+--reference "$REFERENCE"}
