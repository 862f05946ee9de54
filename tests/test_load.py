"""The measurement of large folders runs, and its scans differ."""

import pytest

from tests.audit import load
from utils.files import sha256_of


@pytest.mark.slow
def test_every_step_is_measured(capsys):
    rows = load.main(["--counts", "3"])
    assert [step for _, step, _ in rows] == ["check", "start-up", "prediction", "report"]
    assert all(figures["seconds"] > 0 and figures["MiB"] > 10 for _, _, figures in rows)
    assert "| 3 | report |" in capsys.readouterr().out


def test_no_two_scans_are_alike(tmp_path):
    load.write_scans(tmp_path, load.SMALL, 40)
    scans = list((tmp_path / "scans").iterdir())
    assert len({sha256_of(scan) for scan in scans}) == len(scans) == 40
