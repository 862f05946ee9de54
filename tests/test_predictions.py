"""The table of predictions: columns, intervals, corrections, unknown values."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from analysis.brain_pad.bias_correction import BiasCorrection
from analysis.brain_pad.calibration import Calibration, apply_calibration, complete_row
from analysis.brain_pad.conformal import Limits
from utils.results.tables import COLUMNS, write_table

CALIBRATION = Calibration(
    {"file": "a", "sha256": "b", "scans": 50},
    BiasCorrection(0.9, 4.0, (20.0, 90.0)),
    Limits((50.0,), {80: (5.0, 7.0), 90: (8.0, 12.0), 95: (9.0, 14.0)}),
    None,
)
PREDICTED = {"participant_id": "sub-1", "predicted_age": 61.25, "stage_one_age": 60.0}


def test_intervals_and_corrections_of_a_row_are_those_of_the_analysis_and_right():
    ages, predicted = np.array([30.0, 70.0]), np.array([41.0, 66.5])
    scans = pd.DataFrame({"age": ages, "predicted_age": predicted})
    reference = apply_calibration(CALIBRATION, scans)
    for index, width in enumerate((8, 12)):
        row = complete_row({"age": ages[index], "predicted_age": predicted[index]}, CALIBRATION)
        assert row["predicted_age_low"] == predicted[index] - width
        assert row["predicted_age_high"] == predicted[index] + width
        assert row["brain_pad"] == predicted[index] - ages[index]
        assert row["predicted_age_cole"] == pytest.approx((predicted[index] - 4) / 0.9)
        assert row["brain_pad_beheshti"] == pytest.approx(predicted[index] - 0.9 * ages[index] - 4)
        for name in reference.columns.intersection(list(COLUMNS)):
            assert row[name] == pytest.approx(reference[name].iloc[index]), name


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


@pytest.mark.parametrize(("suffix", "delimiter"), [("tsv", "\t"), ("csv", ",")])
def test_every_column_is_written_and_described(tmp_path, suffix, delimiter):
    rows = [
        complete_row(PREDICTED | {"age": 59.0, "status": "ok", "message": "a\tb\nc"}, CALIBRATION),
        complete_row({"participant_id": "é,x", "status": "failed", "message": "gone"}, None),
    ]
    table = write_table(tmp_path / f"ages.{suffix}", rows)
    with table.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file, delimiter=delimiter))
    assert list(read[0]) == list(COLUMNS)
    assert read[0]["age"] == "59"
    assert read[0]["predicted_age"] == "61.25"
    assert read[0]["message"] == "a b c"
    assert read[1]["participant_id"] == "é,x"
    assert read[1]["predicted_age"] == "n/a"
    assert json.loads((tmp_path / "ages.json").read_text()).keys() == COLUMNS.keys()
    with pytest.raises(FileExistsError):
        write_table(table, rows)


def test_a_table_has_and_describes_the_columns_that_are_known(tmp_path):
    table = write_table(tmp_path / "ages.csv", [{"fold": 3, "participant_id": "a", "age": None}])
    assert table.read_text() == "participant_id,age,fold\na,n/a,3\n"
    described = json.loads((tmp_path / "ages.json").read_text())
    assert list(described) == ["participant_id", "age", "fold"]
    with pytest.raises(ValueError, match=r"ages\.txt: a table of ages, \.tsv or \.csv expected"):
        write_table(tmp_path / "ages.txt", [{"age": 3.0}])
