#!/usr/bin/env bash
# The second stage: as published, with fresh weights trained as long as the first stage, and started
# at a mean of the rounded age and a fresh network. Its first stages are those of the other scripts'
# row "default". What else was tried, and the figures: docs/LOG.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

row default

export FIRST_STAGES="$RUNS/default"
REFERENCE=
FLAGS=(--epochs "$EPOCHS" --seed 10)
row second_published --recipe paper --width compact --batch_size 16 --schedule constant \
  --early_stop 0 --lr 1e-5
row second_at_random --rough_share 0
row second
row second_without_noise --rough_age_noise 0
for step in 1 2 10; do
  row "second_step_$step" --age_step "$step"
done
