# Sourced by the scripts beside it. Sets
#   ROOT    this repository
#   PYTHON  python of the virtual environment $ROOT/.venv where there is one, else python3;
#           a PYTHON or TSAN_VENV (another folder for the environment) set outside wins
# and has python import from ROOT, and not from the folder in which the script was called.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${TSAN_VENV:-$ROOT/.venv}"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x "$VENV/bin/python" ] || PYTHON="$VENV/bin/python"
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
  echo "error: $PYTHON is older than Python 3.10, or not there: set PYTHON to a newer one" >&2
  return 1
}
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1

# launch NPROC PROGRAM FLAGS...: one python, or NPROC of them on this machine that train as one.
# A task of a Slurm step with several (srun, one task a GPU) is one of them already: one python.
launch() {
  local nproc="$1"
  shift
  if [ "$nproc" -gt 1 ] && [ "${SLURM_STEP_NUM_TASKS:-1}" -le 1 ]; then
    if [ -z "${OMP_NUM_THREADS:-}" ]; then
      local threads=$(($(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) / nproc))
      export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
    fi
    "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$nproc" "$@"
  else
    "$PYTHON" "$@"
  fi
}

# make_environment REQUIREMENTS...: makes the virtual environment and installs what these files
# list, unless that has been done. A torch outside of the environment that $PYTHON can import is
# used, not replaced.
make_environment() {
  local wanted packages torch_folder
  wanted="$(cd "$ROOT" && cat "$@")"
  # Every line wanted is among those that were installed last.
  if [ -f "$VENV/installed.txt" ] && ! grep -qvxFf "$VENV/installed.txt" <<<"$wanted"; then
    PYTHON="$VENV/bin/python"
    return
  fi
  echo "installing packages into the virtual environment $VENV"
  packages="$wanted"
  torch_folder="$("$PYTHON" -c 'import torch; print(torch.__path__[0].rsplit("torch", 1)[0])' \
    2>/dev/null || true)"
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  if [ -n "$torch_folder" ] && [[ "$torch_folder" != "$VENV/"* ]]; then
    echo "using the torch of $torch_folder"
    packages="$(grep -v '^torch==' <<<"$wanted")"
    # Behind the environment's own packages in the search path.
    echo "$torch_folder" >"$("$VENV/bin/python" -c \
      'import site; print(site.getsitepackages()[0])')/torch_from_outside.pth"
  fi
  "$VENV/bin/python" -m pip install -q --disable-pip-version-check -r /dev/stdin <<<"$packages"
  echo "$wanted" >"$VENV/installed.txt"
  PYTHON="$VENV/bin/python"
}
