#!/usr/bin/env bash
# The second stage: as published, and with each cure of its collapse. Its first stages are those of the
# other scripts' row "default" (5.47 years on five folds); "seed_1" are the same of another seed
# (5.14). The figures are of five folds: ONLY="0 1 2 3 4".
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
SECOND_EPOCHS="${SECOND_EPOCHS:-2}"  # from a first stage's weights
FRESH_EPOCHS="${FRESH_EPOCHS:-32}"   # from fresh ones
BEST=ScaleDense_best_model.pth.tar

ONLY="0 1 2 3 4" row default
ONLY="0 1 2 3 4" row seed_1 --seed 1

export FIRST_STAGES="$RUNS/default"
REFERENCE=
FLAGS=(--epochs "$SECOND_EPOCHS" --rank_weight 0 --lr 1e-4)
OTHER=(--warm_start_net "$RUNS/seed_1/@FOLD@/$BEST" --rough_share 0.5)
row second_published --recipe paper --width compact --batch_size 16 --schedule constant \
  --early_stop 0 --epochs "$FRESH_EPOCHS" --rank_weight 10 --lr 1e-5              # 5.61 years
row second_fresh --warm_start false --rough_age_noise 0 --lr 2e-3 --epochs "$FRESH_EPOCHS"
row mean_of_two_seeds "${OTHER[@]}" --rough_age_noise 0 --epochs 1 --lr 1e-5      # 5.24
row second_warm --rough_age_noise 0 --rough_share 0                               # 5.45
row second_noise --rough_age_noise auto --rough_share 0                           # 5.41
row second_other_seed "${OTHER[@]}" --rough_age_noise 0                           # 5.28
row second_other_seed_noise "${OTHER[@]}" --rough_age_noise auto                  # 5.21
for step in 1 2 10; do                                                            # 5.25, 5.25, 5.30
  row "second_step_$step" "${OTHER[@]}" --rough_age_noise 0 --age_step "$step"
done
