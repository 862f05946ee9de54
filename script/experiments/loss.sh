#!/usr/bin/env bash
# The loss: squared error alone, and with the age differences and ranks of the paper.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

row default                                                  # 5.56 years
row all --rank_weight 10 --pair_weight 1                     # 5.53
row sodeep --rank_weight 10 --batch_size 8 --sorter shipped  # 5.67
row soft --rank_weight 10                                    # 5.18
row soft_100 --rank_weight 100                               # 5.69
