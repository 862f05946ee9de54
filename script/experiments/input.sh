#!/usr/bin/env bash
# What the network sees: the sex, the whole grid, finer voxels.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

row default
row no_sex --use_sex false
row whole_grid --crop false
row halved --resolution 2 --width halved # twice as long
# Compact at 2 mm takes eight times as long: one fold.
ONLY=0 row two_millimetres --resolution 2
