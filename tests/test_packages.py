"""Programs and scripts in a Python that has no packages, or is too old, say what to do."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import openpyxl
import pytest
from conftest import ROOT
from test_house import PROGRAMS

from utils.packages import PREPROCESSING, REQUIREMENTS, explain_missing, install_command

INSTALLS = f"-m pip install -r {REQUIREMENTS}"
# What makes an environment itself, is sourced, or is for a scheduler.
OTHER_SCRIPTS = {"quickstart", "run_tests", "environment", "preprocess_array"}
SCRIPTS = sorted(p for p in (ROOT / "script").glob("*.sh") if p.stem not in OTHER_SCRIPTS)
ARGUMENTS = {
    "predict.sh": ("scans", "--output_dir", "out"),
    "preprocess.sh": ("scans", "--output_dir", "out"),
    "prepare_oasis1.sh": ("discs", "table.csv", "out"),
}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def run(command: list, folder: Path, **variables) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_without_any_package_names_the_one_command(bare_python, tmp_path, script):
    runs = {"PYTHON": str(bare_python), "RUNS": str(tmp_path / "runs")}
    done = run(["bash", script, *ARGUMENTS.get(script.name, ())], tmp_path, **runs)
    assert done.returncode != 0
    assert f"{bare_python} {INSTALLS}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_program_without_any_package_shows_no_traceback(bare_python, tmp_path, program):
    name = program.removesuffix(".__main__")
    start = [ROOT / f"{name}.py"] if "." not in program and name != "benchmark" else ["-m", name]
    done = run([bare_python, *start, "--help"], tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or INSTALLS in done.stderr


def test_a_sheet_whose_reader_is_not_installed_is_not_called_unreadable(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from utils.cli import run_entry\n"
        "from utils.people.sheets import read_rows\n"
        "sys.modules['openpyxl'] = None\n"  # import then raises ModuleNotFoundError
        "run_entry(lambda: read_rows(Path('people.xlsx')))"
    )

    openpyxl.Workbook().save(tmp_path / "people.xlsx")
    done = run([sys.executable, "-c", code], tmp_path)
    assert (done.returncode, "not a readable" in done.stderr) == (1, False)
    assert "requirements.txt" in done.stderr and "Traceback" not in done.stderr


def test_packages_of_either_list_are_known_and_modules_of_ours_are_not():
    def explained(name: str) -> str | None:
        return explain_missing(ModuleNotFoundError(f"No module named {name!r}", name=name))

    for name in ("torch", "sklearn.svm", "jinja2", "xlrd"):
        assert explained(name).endswith(install_command(REQUIREMENTS))
    for name in ("deepbet", "SimpleITK", "picsl_greedy", "dcm2niix"):
        assert explained(name).endswith(install_command(REQUIREMENTS, PREPROCESSING))
    assert explained("utils.nothing") is None
    assert explained("unheard_of") is None


def test_outside_a_virtual_environment_the_command_makes_the_one_that_scripts_use(monkeypatch):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.delenv("TSAN_VENV", raising=False)
    make, install = install_command(REQUIREMENTS).split(" && ")
    assert make == f"{sys.executable} -m venv {ROOT / '.venv'}"
    assert install == f"{ROOT / '.venv/bin/python'} {INSTALLS}"


def test_a_script_with_no_python_or_an_old_one_says_so(tmp_path):
    old = tmp_path / "old python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in (str(old), str(tmp_path / "nowhere")):
        done = run(["bash", ROOT / "script/baseline.sh"], tmp_path, PYTHON=python)
        assert done.returncode == 1
        assert done.stderr == (
            f"error: {python} is older than Python 3.10, or not there: set PYTHON to a newer one\n"
        )
