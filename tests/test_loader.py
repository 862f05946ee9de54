"""Processes that read scans: shared memory that is full, scans that break, processes that end."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, training_flags

from utils.scans.cohort import open_cohort
from utils.scans.dataset import ScanDataset, evaluation_loader
from utils.scans.loader import ScanLoader
from utils.scans.volumes import InputRule

RULE = InputRule(any_grid=True, crop=False)
SECONDS = 150  # of a program, at most; a hang never ends


def in_small_shared_memory(size: str, command: list[str]) -> subprocess.CompletedProcess:
    """Runs a command with a /dev/shm of its own of this size; skips where the kernel forbids it."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    wrapped = ["unshare", "-rm", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*wrapped, mount], capture_output=True).returncode
    ):
        pytest.skip("no mounts without privileges here")
    return subprocess.run(
        [*wrapped, f'{mount} && exec "$@"', "sh", *command],
        capture_output=True, text=True, timeout=SECONDS, cwd=ROOT,
    )  # fmt: skip


def losses(folder) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/total"] for line in lines]


def run_main(code: str) -> subprocess.CompletedProcess:
    code = f"from utils.cli import run_entry\n{code}\nrun_entry(main)"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, cwd=ROOT
    )


class Breaking(torch.utils.data.Dataset):
    """Batches of one number, of which the second does what it is told in a reading process."""

    def __init__(self, act):
        self.act, self.scans = act, []

    def __len__(self):
        return 6

    def __getitem__(self, places):
        if places == [1]:
            self.act()
        return {"index": torch.tensor(places)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "note"),
    [("128k", "batches go through pipes"), ("8k", "processes cannot be started")],
)
def test_training_goes_on_the_same_where_shared_memory_is_full(small_cohort, tmp_path, size, note):
    def flags(output, workers):
        run = [*training_flags(small_cohort, tmp_path / output), "--any_grid", "--cache", "none"]
        return [sys.executable, "train_first_stage.py", *run, "--num_workers", workers]

    done = in_small_shared_memory(size, flags("full", "2"))
    alone = subprocess.run(flags("alone", "0"), cwd=ROOT, timeout=SECONDS, capture_output=True)
    assert (done.returncode, alone.returncode) == (0, 0), done.stderr
    assert done.stdout.count(note) == 1
    assert "No space left on device" in done.stdout and "--num_workers 0" in done.stdout
    assert "Traceback" not in done.stderr
    assert losses(tmp_path / "full") == losses(tmp_path / "alone")


def test_a_scan_that_breaks_amid_a_run_is_named_by_whichever_process_reads_it(
    small_cohort, tmp_path
):
    folder = shutil.copytree(small_cohort / "train", tmp_path / "scans")
    scans = open_cohort(folder, {}, RULE)
    loader = evaluation_loader(ScanDataset(scans, RULE), batch_size=2, num_workers=2)
    assert sum(len(batch["index"]) for batch in loader) == 4
    scans[3].path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=scans[3].path.name) as raised:
        list(loader)
    assert "Traceback" not in str(raised.value)


def test_a_reading_process_that_is_killed_ends_the_program_with_advice():
    done = run_main(
        "import os, signal, sys\n"
        "sys.path.insert(0, 'tests')\n"
        "from test_loader import Breaking, ScanLoader\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "def main(): list(ScanLoader(Breaking(kill), [[i] for i in range(6)], num_workers=2))"
    )
    assert done.returncode == 1
    assert "error: a process that reads scans has ended" in done.stderr
    assert "fewer --num_workers" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_that_cannot_be_passed_on_ends_the_pass_instead_of_it_waiting_for_ever():
    def fail():
        error = ValueError("bad")
        error.because = lambda: None  # cannot be pickled, as little as a file beyond `ulimit -n`
        raise error

    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(ScanLoader(Breaking(fail), [[i] for i in range(6)], num_workers=2))
    assert len(list(ScanLoader(Breaking(os.getpid), [[i] for i in range(6)], num_workers=2))) == 6
