"""Checkpoints that are damaged, and files that are replaced: the short form of its benchmark."""

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import training_flags

import train_first_stage
from model.scaledense import ScaleDense
from utils.cli import run_entry
from utils.files import replacing
from utils.networks.checkpoint import (
    Checkpoint,
    UnreadableCheckpoint,
    load_checkpoint,
    save_checkpoint,
)
from utils.scans.volumes import InputRule
from utils.training import run


def saved(path):
    save_checkpoint(Checkpoint(ScaleDense(), InputRule(any_grid=True), summary={}), path)
    return path.read_bytes()


def test_a_flipped_bit_is_refused_or_changes_no_weight(tmp_path):
    path, generator, refused = tmp_path / "a.pt", random.Random(0), 0
    content = saved(path)
    expected = load_checkpoint(path).model.state_dict()
    for _ in range(10):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        try:
            found = load_checkpoint(path).model.state_dict()
        except UnreadableCheckpoint:
            refused += 1
        else:
            assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert refused > 5


def test_the_file_that_is_replaced_is_kept_and_only_after_the_new_one_is_whole(tmp_path):
    path, before = tmp_path / "a", tmp_path / "before"
    path.write_text("1")
    with (
        pytest.raises(OSError, match="full"),
        replacing(path, overwrite=True, keep_as=before) as temporary,
    ):
        temporary.write_text("half")
        raise OSError("full")
    assert (path.read_text(), before.exists()) == ("1", False)
    with replacing(path, overwrite=True, keep_as=before) as temporary:
        temporary.write_text("2")
    assert (path.read_text(), before.read_text()) == ("2", "1")


@pytest.mark.parametrize("moment", ["open_cohorts", "open_datasets", "build_training"])
def test_sigterm_ends_a_run_that_has_not_begun_to_train_too(
    cohort, tmp_path, monkeypatch, capsys, moment
):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, moment, lambda *_: signal.raise_signal(signal.SIGTERM))
    flags = [*training_flags(cohort, tmp_path / "run"), "--any_grid"]
    with pytest.raises(SystemExit) as exited:
        run_entry(lambda: train_first_stage.main(flags))
    assert exited.value.code == 143
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_a_run_that_is_interrupted_in_each_way_ends_as_if_it_had_not_been():
    """In a process of its own, which forks the trainings. Any fault makes its exit code 1."""
    command = ["tests.audit.interruptions", "--first_alone", "--kills", "1", "--epochs", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"\| (\d+) of \1 \|", done.stdout)) == 6, done.stdout
