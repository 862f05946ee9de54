"""The measurement of large folders runs, and its scans differ."""

import sys
from pathlib import Path

import pytest

from tests.audit import load, load_steps
from utils.files import hash_file


@pytest.mark.slow
def test_every_step_is_measured(capsys, monkeypatch):
    in_own_process = load.in_own_process

    def measured(module: str, request: dict) -> dict[str, float]:
        """One step in its own process, and the others here, as each process takes long to start."""
        if request["step"] == "start-up":
            return in_own_process(module, request)
        monkeypatch.setattr(sys, "argv", [])  # put back after the test
        return load_steps.measured(request["step"], Path(request["folder"]))

    monkeypatch.setattr(load, "in_own_process", measured)
    rows = load.main(["--counts", "3"])
    assert [step for _, step, _ in rows] == list(load_steps.STEPS)
    assert all(figures["seconds"] > 0 and figures["MiB"] > 10 for _, _, figures in rows)
    assert "| 3 | report |" in capsys.readouterr().out


def test_no_two_scans_are_alike(tmp_path):
    load.write_scans(tmp_path, load.small_brain(), 40)
    scans = list((tmp_path / "scans").iterdir())
    assert len({hash_file(scan) for scan in scans}) == len(scans) == 40
