#!/usr/bin/env bash
# What keeps a small cohort from being learnt by heart.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

row default
row blind_batches --stratify false
row batches_of_16 --batch_size 16 --ema 0.98
row no_flip --flip false
row no_shift --shift 0
row jitter --intensity_jitter 0.1
row affine --rotation 5 --scale 0.05
row noise --noise 0.3
row weight_decay --weight_decay 0.1
row no_average --ema 0
row plain_head --scaled_head false
