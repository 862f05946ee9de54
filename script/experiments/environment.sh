# Sourced by the experiments beside it. They cross-validate first stages of the recipe `ours` with
# squared error alone and one seed on three of five folds (123 of 205 scans of OASIS-1): enough to
# screen, in minutes per row. Three seeds of the first row differ by 0.9 years (5.56, 4.99, 5.92).
# Rows that are finished are kept; each script ends with the table of every row, and the difference
# from its first row, scan by scan.
#   JOBS=2 bash script/experiments/loss.sh      two runs at a time
#   EPOCHS=64 ONLY="0 1 2 3 4" bash script/experiments/loss.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
export RUNS="${RUNS:-$ROOT/runs/experiments}" ONLY="${ONLY:-0 1 2}"
EPOCHS="${EPOCHS:-32}"
FLAGS=(--epochs "$EPOCHS" --rank_weight 0 --intensity brain) # the rule that the figures in the rows are of
MADE=(--registration affine --mask subject) # of OASIS-1, whose scans have no sidecars

# row NAME FLAGS...: one row; NAME is that of its folder. The first row is the reference of the others.
row() {
  local name="$1"
  shift
  echo "== $name: $*"
  NAME="$name" REFERENCE="${REFERENCE:-}" bash "$ROOT/script/cross_validate.sh" \
    "${FLAGS[@]}" "${MADE[@]}" "$@"
  REFERENCE="${REFERENCE:-$RUNS/$name.csv}"
}
