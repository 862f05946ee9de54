"""The table of predictions: columns, intervals, corrections, unknown values."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from analysis.brain_pad.bias_correction import BiasCorrection
from analysis.brain_pad.calibration import Calibration, apply_calibration
from analysis.brain_pad.conformal import Limits
from analysis.report.predictions import COLUMNS, complete_row, write_table

CALIBRATION = Calibration(
    {"file": "a", "sha256": "b", "scans": 50},
    BiasCorrection(0.9, 4.0, (20.0, 90.0)),
    Limits((50.0,), {80: (5.0, 7.0), 90: (8.0, 12.0), 95: (9.0, 14.0)}),
    None,
)
PREDICTED = {"participant_id": "sub-1", "predicted_age": 61.25, "stage_one_age": 60.0}


def test_intervals_and_corrections_are_those_of_the_analysis():
    ages, predicted = np.array([30.0, 70.0]), np.array([41.0, 66.5])
    scans = pd.DataFrame({"age": ages, "predicted_age": predicted, "brain_pad": predicted - ages})
    reference = apply_calibration(CALIBRATION, scans)
    for index in range(2):
        row = complete_row({"age": ages[index], "predicted_age": predicted[index]}, CALIBRATION)
        for ours, theirs in (
            ("brain_pad", "brain_pad"),
            ("predicted_age_low", "age_low_90"),
            ("predicted_age_high", "age_high_90"),
            ("predicted_age_cole", "predicted_age_cole"),
            ("brain_pad_cole", "brain_pad_cole"),
            ("brain_pad_beheshti", "brain_pad_beheshti"),
        ):
            assert row[ours] == pytest.approx(reference[theirs].iloc[index]), ours


def test_what_is_not_known_stays_unknown():
    row = complete_row(PREDICTED, CALIBRATION)
    assert row["predicted_age_low"] == pytest.approx(49.25)
    unknown = ("age", "brain_pad", "brain_pad_cole", "brain_pad_beheshti")
    assert all(row[name] is None for name in unknown)
    row = complete_row(PREDICTED | {"age": 60.0}, None)
    assert row["brain_pad"] == 1.25
    assert row["predicted_age_cole"] is None
    row = complete_row({"participant_id": "a", "age": 60.0, "status": "failed"}, CALIBRATION)
    assert row["brain_pad"] is None


@pytest.mark.parametrize("as_csv", [False, True])
def test_every_column_is_written_and_described(tmp_path, as_csv):
    rows = [
        complete_row(PREDICTED | {"age": 59.0, "status": "ok", "message": "a\tb\nc"}, CALIBRATION),
        complete_row({"participant_id": "é,x", "status": "failed", "message": "gone"}, None),
    ]
    table = write_table(rows, tmp_path, as_csv=as_csv, overwrite=False)
    with table.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file, delimiter="\t"))
    assert list(read[0]) == list(COLUMNS)
    assert read[0]["age"] == "59"
    assert read[0]["predicted_age"] == "61.25"
    assert read[0]["message"] == "a b c"
    assert read[1]["participant_id"] == "é,x"
    assert read[1]["predicted_age"] == "n/a"
    assert json.loads((tmp_path / "predictions.json").read_text()).keys() == COLUMNS.keys()
    assert (tmp_path / "predictions.csv").exists() == as_csv
    if as_csv:
        with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
            again = list(csv.DictReader(file))
        assert [row | {"message": ""} for row in again] == [row | {"message": ""} for row in read]
    with pytest.raises(FileExistsError):
        write_table(rows, tmp_path, as_csv=as_csv, overwrite=False)
