import json

import numpy as np
import pandas as pd
import pytest

from analysis.brain_pad.bias_correction import fit_bias_correction
from analysis.brain_pad.calibration import (
    apply_calibration,
    fit_calibration,
    read_calibration,
    write_calibration,
)
from utils.files import hash_file
from utils.results.tables import read_predictions


@pytest.fixture
def ages():
    generator = np.random.default_rng(0)
    age = generator.uniform(20, 90, 80)
    return age, 0.7 * age + 15 + generator.normal(0, 5, 80)


@pytest.fixture
def table(ages, tmp_path):
    age, predicted_age = ages
    names = [f"sub-{index}" for index in range(len(age))]
    rows = pd.DataFrame(
        {"participant_id": names, "age": age, "sex": "F", "predicted_age": predicted_age, "fold": 0}
    )
    rows.to_csv(tmp_path / "out_of_fold.csv", index=False)
    return tmp_path / "out_of_fold.csv"


def test_line_is_the_least_squares_one_and_lines_are_recovered_exactly(ages):
    age, predicted_age = ages
    fitted = fit_bias_correction(age, predicted_age)
    assert (fitted.slope, fitted.intercept) == pytest.approx(np.polyfit(age, predicted_age, 1))
    assert fitted.age_range == (age.min(), age.max())
    exact = fit_bias_correction(age, 0.5 * age + 20)
    assert exact.cole(0.5 * age + 20) == pytest.approx(age)
    assert exact.beheshti(0.5 * age + 20, age) == pytest.approx(age)


def test_corrections_remove_slope_and_mean_of_brain_pad_where_they_were_fitted(ages):
    age, predicted_age = ages
    fitted = fit_bias_correction(age, predicted_age)
    for corrected in (fitted.cole(predicted_age), fitted.beheshti(predicted_age, age)):
        assert np.polyfit(age, corrected - age, 1) == pytest.approx([0, 0], abs=1e-9)
    assert np.polyfit(age, predicted_age - age, 1)[0] < -0.2


def test_beheshtis_brain_pad_is_the_residual_of_brain_pad_on_age_and_slope_times_coles(ages):
    age, predicted_age = ages
    fitted = fit_bias_correction(age, predicted_age)
    brain_pad = predicted_age - age
    slope, intercept = np.polyfit(age, brain_pad, 1)
    beheshti = fitted.beheshti(predicted_age, age) - age
    assert beheshti == pytest.approx(brain_pad - (slope * age + intercept))
    assert beheshti == pytest.approx(fitted.slope * (fitted.cole(predicted_age) - age))


def test_ages_beyond_the_fitted_ones_are_flagged_and_corrected_all_the_same(table):
    calibration = fit_calibration(read_predictions(table))
    scans = pd.DataFrame({"age": [5.0, 50.0, 99.0], "predicted_age": [10.0, 52.0, 90.0]})
    applied = apply_calibration(calibration, scans)
    assert applied["outside_fitted_ages"].tolist() == [True, False, True]
    assert np.isfinite(applied[["brain_pad_cole", "brain_pad_beheshti"]]).all().all()


@pytest.mark.parametrize(
    ("age", "predicted_age", "message"),
    [
        (np.arange(19.0), np.arange(19.0), "19 scans: at least 20"),
        (np.full(30, 50.0), np.arange(30.0), "all scans are 50 years old"),
        (np.arange(30.0), np.full(30, 45.0), "at least 0.1 expected"),
        (np.arange(30.0), -np.arange(30.0), "at least 0.1 expected"),
    ],
)
def test_what_cannot_be_fitted_is_said(age, predicted_age, message):
    with pytest.raises(ValueError, match=message):
        fit_bias_correction(age, predicted_age)


@pytest.mark.parametrize("scans", [40, 80])
def test_calibration_is_the_same_after_writing_and_reading(scans, table, tmp_path):
    some = tmp_path / "some.csv"
    some.write_text("".join(table.read_text().splitlines(keepends=True)[: scans + 1]))
    calibration = fit_calibration(read_predictions(some))
    path = tmp_path / "brain_pad.json"
    write_calibration(path, calibration)
    assert read_calibration(path) == calibration
    assert (calibration.source["sha256"], calibration.source["scans"]) == (hash_file(some), scans)
    # 40 scans are too few for three groups.
    assert (calibration.limits_by_predicted_age is None) == (scans == 40)
    with pytest.raises(FileExistsError):
        write_calibration(path, calibration)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "other"),
        (["bias", "slope"], 0.01),
        (["bias", "slope"], "0.7"),
        (["bias", "intercept"], float("nan")),
        (["bias", "slope"], float("inf")),
        (["bias", "age_range"], [90, 20]),
        (["limits", "years"], {"80": [3.0]}),
        (["limits", "years", "90"], [1.0]),
        (["limits", "years", "90"], [1.0, 2.0]),
        (["limits", "years"], {"90": [-1.0]}),
        (["limits_by_predicted_age", "edges"], [60, 40]),
        (["source"], {}),
    ],
)
def test_damaged_calibrations_are_refused_by_name(path, value, table, tmp_path):
    write_calibration(tmp_path / "good.json", fit_calibration(read_predictions(table)))
    content = json.loads((tmp_path / "good.json").read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bad\.json: not a calibration"):
        read_calibration(bad)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}'])
def test_other_files_are_no_calibrations(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="not a calibration"):
        read_calibration(tmp_path / "other.json")
