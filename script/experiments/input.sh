#!/usr/bin/env bash
# What the network sees: the sex, the whole grid, 2 mm.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

row default                 # 5.56 years
row no_sex --use_sex false  # 5.46
row whole_grid --crop false
# Compact at 2 mm takes eight times as long, so one fold: 5.08 on all five.
ONLY=0 row two_millimetres --resolution 2
