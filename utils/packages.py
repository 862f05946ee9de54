"""Packages that are not installed: which file lists them, and the one command that installs it."""

import os
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements.txt"
PREPROCESSING = ROOT / "requirements-preprocessing.txt"
PACKAGES = {"sklearn": "scikit-learn", "picsl_greedy": "picsl-greedy"}  # of modules named otherwise


def install_command(*files: Path) -> str:
    """The command that installs what these requirements files list.

    It is for the Python that runs, or makes the virtual environment that script/*.sh look for where
    that is none: systems do not let pip install into their own Python.
    """
    python, make = sys.executable, ""
    if sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ:
        folder = os.environ.get("TSAN_VENV") or str(ROOT / ".venv")
        make = shlex.join([python, "-m", "venv", folder]) + " && "
        python = f"{folder}/bin/python"
    listed = [word for file in files for word in ("-r", str(file))]
    return make + shlex.join([python, "-m", "pip", "install", *listed])


def explain_missing(error: ModuleNotFoundError) -> str | None:
    """What to do about a package that requirements files list; None for any other module."""
    module = (error.name or "").partition(".")[0]
    package = PACKAGES.get(module, module).lower()
    for files in ((REQUIREMENTS,), (REQUIREMENTS, PREPROCESSING)):
        listed = re.findall(r"^[\w.-]+", files[-1].read_text(encoding="utf-8").lower(), re.M)
        if package in listed:
            return (
                f"{error}: {sys.executable} does not have what {files[-1].name} lists. "
                f"This installs it (README.md tells more):\n  {install_command(*files)}"
            )
    return None


def report_uncaught(kind: type[BaseException], error: BaseException, trace) -> None:
    """A `sys.excepthook` that explains a missing package, and shows tracebacks of all else."""
    text = explain_missing(error) if isinstance(error, ModuleNotFoundError) else None
    if text:
        print(f"error: {text}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
