"""Full disks, and settings that a program inherits from a notebook: real runs in a subprocess."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, training_flags

from utils.files import replacing

SECONDS = 150  # of a program, at most


@pytest.fixture
def tiny_disk(tmp_path):
    """Runs commands in turn, each with a disk of its size at `tmp_path/disk`, kept between them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    steps = f'mount -t tmpfs -o size=200k tmpfs "{disk}"'
    wrapped = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*wrapped, steps]).returncode:
        pytest.skip("no mounts without privileges here")

    def run(script: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*wrapped, f"{steps}; {script}"],
            cwd=ROOT, capture_output=True, text=True, timeout=2 * SECONDS,
        )  # fmt: skip

    run.disk = disk
    return run


@pytest.mark.slow
def test_training_on_a_full_disk_names_it_and_goes_on_when_there_is_room(tiny_disk, small_cohort):
    flags = " ".join([*training_flags(small_cohort, tiny_disk.disk / "run"), "--any_grid"])
    train = f"{sys.executable} train_first_stage.py {flags} --cache none --resume"
    done = tiny_disk(
        f'head -c 250k /dev/zero > "{tiny_disk.disk}/filler"; {train}; echo first $?;'
        f'rm "{tiny_disk.disk}/filler"; mount -o remount,size=90m "{tiny_disk.disk}";'
        f'{train}; echo second $?; find "{tiny_disk.disk}" -name ".part*"'
    )
    assert "first 1\n" in done.stdout and done.stdout.endswith("second 0\n")
    assert f"error: {tiny_disk.disk / 'run'}" in done.stderr
    assert "make room, and run again" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_a_full_disk_has_no_room_for_is_named_and_leaves_nothing(tiny_disk):
    code = (
        "import sys; from utils.cli import run_entry; from utils.files import write_json;"
        "run_entry(lambda: write_json(sys.argv[1], {'text': 300_000 * 'x'}))"
    )
    target = tiny_disk.disk / "result.json"
    done = tiny_disk(f'{sys.executable} -c "{code}" "{target}"; echo $?; ls -A "{target.parent}"')
    assert done.stdout == "1\n"
    assert done.stderr.startswith(f"error: {target}: no room left on its disk (No space left")


def test_other_errors_of_a_file_keep_their_kind(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a") as temporary:
        temporary.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://no_such_notebook.backend", "Qt5Agg", "nonsense"])
def test_no_backend_of_a_notebook_stops_training_and_its_pictures(small_cohort, tmp_path, backend):
    flags = [*training_flags(small_cohort, tmp_path / "run"), "--any_grid", "--cache", "none"]
    done = subprocess.run(
        [sys.executable, "train_first_stage.py", *flags],
        env=os.environ | {"MPLBACKEND": backend},
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


CHECK = ["-m", "data_preprocessing.check_dataset", "--jobs", "2"]


def check(cohort, output, after: str) -> subprocess.CompletedProcess:
    flags = ["--folders", f"{cohort}/train", "--labels", f"{cohort}/labels.csv"]
    command = " ".join([sys.executable, *CHECK, *flags, "--output", str(output)])
    return subprocess.run(
        ["sh", "-c", f"{command} {after}"],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip


def test_a_program_runs_with_closed_streams(grid_cohort, tmp_path):
    for number, closed in enumerate((">&-", "<&-", "<&- >&-")):
        done = check(grid_cohort, tmp_path / f"{number}.tsv", after=closed)
        assert "Traceback" not in done.stderr
        assert (tmp_path / f"{number}.tsv").is_file()


def test_processes_that_joblib_loses_end_the_program_with_advice():
    code = (
        "import os; from joblib import Parallel, delayed; from utils.cli import run_entry;"
        "run_entry(lambda: Parallel(2)(delayed(os._exit)(9) for _ in range(4)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 1
    assert "error: a process that reads scans has ended (A worker process" in done.stderr
    assert "--jobs" in done.stderr and "Traceback" not in done.stderr
