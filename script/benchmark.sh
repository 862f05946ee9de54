#!/usr/bin/env bash
# Measures the authors' approach, stated plainly, against ours: inference, training, loader, memory.
# Run nothing else meanwhile. To see in a minute whether it runs: bash script/benchmark.sh --quick
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

WIDTH=compact # compact, released, or both: "compact released"
REPEATS=5     # rounds of every form, in alternating order
SCANS=48      # files that the loaders read
OUTPUT="$ROOT/runs/benchmark/performance.json" # all figures of all rounds

# shellcheck disable=SC2086  # WIDTH may be two words
"$PYTHON" -m benchmark --width $WIDTH --repeats "$REPEATS" --scans "$SCANS" \
  --json "$OUTPUT" --overwrite "$@"
