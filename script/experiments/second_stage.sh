#!/usr/bin/env bash
# The second stage: as published, and with each cure of its collapse. Its first stages are those of the
# other scripts' row "default", on all five folds; "seed_1" are the same of another seed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
SECOND_EPOCHS="${SECOND_EPOCHS:-2}"  # from a first stage's weights
FRESH_EPOCHS="${FRESH_EPOCHS:-32}"   # from fresh ones
BEST=ScaleDense_best_model.pth.tar

ONLY="0 1 2 3 4" row default
ONLY="0 1 2 3 4" row seed_1 --seed 1

export FIRST_STAGES="$RUNS/default"
REFERENCE=
FLAGS=(--epochs "$SECOND_EPOCHS" --validate_every "$SECOND_EPOCHS" --rank_weight 0
  --lr 1e-4 --warmup_lr 1e-4)
OTHER=(--warm_start_net "$RUNS/seed_1/@FOLD@/$BEST" --rough_share 0.5)
row second_published --recipe paper --width compact --batch_size 16 --schedule constant \
  --early_stop 0 --epochs "$FRESH_EPOCHS" --validate_every "$FRESH_EPOCHS" --rank_weight 10 --lr 1e-5
row second_fresh --warm_start false --rough_age_noise 0 --lr 2e-3 --warmup_lr 5e-4 \
  --epochs "$FRESH_EPOCHS" --validate_every "$FRESH_EPOCHS"
row mean_of_two_seeds "${OTHER[@]}" --rough_age_noise 0 --epochs 1 --validate_every 1 --lr 1e-5 \
  --warmup_lr 1e-5
row second_warm --rough_age_noise 0 --rough_share 0
row second_noise --rough_age_noise auto --rough_share 0
row second_other_seed "${OTHER[@]}" --rough_age_noise 0
row second_other_seed_noise "${OTHER[@]}" --rough_age_noise auto
for step in 1 2 10; do
  row "second_step_$step" "${OTHER[@]}" --rough_age_noise 0 --age_step "$step"
done
