#!/usr/bin/env bash
# Trains a sorter for the ranking loss (--sorter) and says how well it ranks. Flags given here win:
#   bash script/train_sorter.sh --kind lstm --length 24
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

KIND=lstm        # lstm: 128 units in each direction; lstmla: 512, a step takes 13 times longer
LENGTH=32        # values sorted at once = the training batch size, all GPUs together
STEPS=           # empty: 1500 for every 8 values; on one CPU core 1 minute for 8, 11 for 32
BATCH_SIZE=64    # sequences per step
LR=5e-3          # highest; length 8, 1000 steps: error 0.50 places at 1e-3, 0.44 at 3e-3, 0.35 at 6e-3
SEED=0

"$PYTHON" "$ROOT/train_sorter.py" \
  --kind "$KIND" \
  --length "$LENGTH" \
  ${STEPS:+--steps "$STEPS"} \
  --batch_size "$BATCH_SIZE" \
  --lr "$LR" \
  --seed "$SEED" \
  "$@"
