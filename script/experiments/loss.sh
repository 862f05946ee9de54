#!/usr/bin/env bash
# The loss: squared error alone, and with the age differences and ranks of the paper.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

row default
row all --rank_weight 10 --pair_weight 1
row sodeep --rank_weight 10 --ranks sodeep
row soft --rank_weight 10
row soft_100 --rank_weight 100
row pair --rank_weight 10 --pair_weight 1 --tau 1000 # ranks so soft that the pairs are left
