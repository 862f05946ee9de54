"""Recalibration to a scanner: what the line does, whose ages it takes, and predict.py with it."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import brain, write_scan

import predict
import test
from analysis.brain_pad import recalibrate
from analysis.brain_pad.calibration import complete_row, fit_to_scanner, read_calibration
from analysis.brain_pad.recalibration import (
    MINIMUM_SPREAD,
    UNSEEN_SITES,
    Recalibration,
    fit_local_bias,
    fit_local_limits,
    fit_recalibration,
    leave_one_out,
    measure_prior,
)
from model.scaledense import ScaleDense
from tests.audit import recalibration as audit
from utils.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from utils.results.tables import write_table
from utils.scans.leakage import SEEN_IN_TRAINING
from utils.scans.provenance import Provenance
from utils.scans.volumes import GRID_SHAPE, InputRule

MODEL = "net bede3eb9, other 1ded8bbb"


def site(people: int, *, offset=0.0, gain=0.0, error=8.0, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Ages of a site whose line is known: age = predicted - offset - gain * (predicted - 50)."""
    generator = np.random.default_rng(seed)
    predicted_age = generator.normal(50, 15, people)
    age = predicted_age - offset - gain * (predicted_age - 50)
    return age + generator.normal(0, error, people), predicted_age


def test_offset_and_gain_of_a_site_are_recovered_from_many_people():
    fitted = fit_recalibration(*site(20_000, offset=7.0, gain=0.3))
    assert fitted.offset + fitted.gain * (50 - fitted.centre) == pytest.approx(7.0, abs=0.2)
    assert fitted.gain == pytest.approx(0.3, abs=0.02)
    age, predicted_age = site(500, offset=7.0, gain=0.3, seed=1)
    assert (fitted.correct(predicted_age) - age).mean() == pytest.approx(0, abs=1)


def test_the_offset_is_the_mean_of_the_posterior_found_by_a_grid():
    age, predicted_age = site(6, offset=9.0)
    pad, prior = predicted_age - age, UNSEEN_SITES
    squares = ((pad - pad.mean()) ** 2).sum()
    spread = np.sqrt((prior.freedom * prior.error**2 + squares) / (prior.freedom + 5))
    grid = np.linspace(-80, 80, 40_001)
    logarithm = -((grid / prior.offset) ** 2 + (((pad[:, None] - grid) / spread) ** 2).sum(0)) / 2
    weight = np.exp(logarithm - logarithm.max())
    expected = (grid * weight).sum() / weight.sum()
    assert fit_recalibration(age, predicted_age).offset == pytest.approx(expected, abs=1e-3)


def test_few_people_move_ages_less_than_many_who_say_the_same():
    age, predicted_age = site(8, offset=9.0, gain=0.3, error=2.0)
    few = fit_recalibration(age, predicted_age)
    many = fit_recalibration(np.tile(age, 20), np.tile(predicted_age, 20))
    assert 0 < few.offset < many.offset < (predicted_age - age).mean()
    assert 0 < few.gain < many.gain


def test_a_gain_needs_people_of_different_ages():
    _, predicted_age = site(12, offset=5.0)
    fitted = fit_recalibration(np.full(12, 40.0), predicted_age)
    assert fitted.gain == 0
    assert np.ptp(predicted_age - fitted.correct(predicted_age)) == pytest.approx(0)
    narrow = np.linspace(40, 40 + MINIMUM_SPREAD, 12)
    assert fit_recalibration(narrow, predicted_age).gain == 0
    assert fit_recalibration(40 + 4 * (narrow - 40), predicted_age).gain != 0
    assert fit_local_bias(np.full(12, 40.0), predicted_age).slope == 1


def test_beyond_the_local_people_the_correction_stays_that_of_the_last_of_them():
    fitted = Recalibration(MODEL, 8, 4.0, 0.5, 40.0, (30.0, 60.0))
    ages = np.array([10.0, 30.0, 40.0, 60.0, 90.0])
    assert (ages - fitted.correct(ages)).tolist() == [-1.0, -1.0, 4.0, 14.0, 14.0]


def test_each_person_is_left_out_of_the_line_that_corrects_them():
    age, predicted_age = site(9, offset=6.0, gain=0.2)
    found = leave_one_out(age, predicted_age)
    for person in range(9):
        others = np.delete(age, person), np.delete(predicted_age, person)
        assert found[person] == pytest.approx(
            fit_recalibration(*others).correct(predicted_age[person])
        )


@pytest.mark.parametrize("people", [5, 8, 10, 20, 40])
def test_intervals_cover_as_promised_on_sites_like_those_of_the_prior(people):
    generator, covered = np.random.default_rng(people), {80: [], 90: [], 95: []}
    for draw in range(600):
        line = {
            "offset": generator.normal(0, UNSEEN_SITES.offset),
            "gain": generator.normal(0, UNSEEN_SITES.gain),
            "error": generator.choice([6.0, 10.0, 12.0]),
        }
        age, predicted_age = site(people + 40, seed=draw, **line)
        local, new = slice(people), slice(people, None)
        fitted = fit_recalibration(age[local], predicted_age[local])
        limits = fit_local_limits(leave_one_out(age[local], predicted_age[local]) - age[local])
        error = abs(fitted.correct(predicted_age[new]) - age[new])
        for percent in covered:
            covered[percent].append((error <= limits.years[percent][0]).mean())
    for percent, shares in covered.items():
        # Three standard errors of the mean over draws.
        slack = 3 * np.std(shares) / np.sqrt(len(shares))
        assert np.mean(shares) >= percent / 100 - slack, percent


def test_limits_are_conformal_from_the_number_of_people_that_the_level_needs():
    error = np.linspace(-1, 1, 8)  # far less than at other sites
    few, more = fit_local_limits(error), fit_local_limits(np.append(error, 0.5))
    assert few.years[80] == (1.0,)
    assert few.years[90][0] > 5
    assert more.years[90] == (1.0,)
    assert more.years[95][0] > 5


def test_the_prior_is_measured_without_what_chance_adds():
    sites = [site(400, offset=years, error=9.0, seed=at) for at, years in enumerate((-6, 8))]
    offset, error = measure_prior(sites)
    assert offset == pytest.approx(np.sqrt((36 + 64) / 2), abs=0.7)
    assert error == pytest.approx(9.0, abs=0.5)
    offset, _ = measure_prior([site(10, error=9.0, seed=seed) for seed in range(400)])
    assert offset < 1.5  # means of ten people scatter by 2.8 years


def rows(people: int, **changes) -> list[dict]:
    """Rows of predict.py: one scan per person, an age and an offset of 6 years."""
    age, predicted_age = site(people, offset=6.0)
    return [
        complete_row(
            {
                "participant_id": f"sub-{number:02d}", "scan": f"in/sub-{number:02d}.nii.gz",
                "age": float(age[number]), "predicted_age": float(predicted_age[number]),
                "qc_flag": "ok", "status": "ok", "model": MODEL,
            },
            None,
        )
        | changes
        for number in range(people)
    ]  # fmt: skip


def calibrate(folder: Path, *tables: list[dict], flags=()) -> dict:
    files = [
        str(write_table(folder / f"table_{number}.tsv", table))
        for number, table in enumerate(tables)
    ]
    return recalibrate.main([*files, "--output", str(folder / "calibration.json"), *flags])


def test_people_count_once_and_scans_that_cannot_be_used_are_counted(tmp_path, capsys):
    table = rows(14)
    table[0] |= {"qc_flag": "tilt"}
    table[1] |= {"age": None}
    table[2] |= {"predicted_age": None, "status": "failed", "qc_flag": None}
    table[3] |= {"message": f"{SEEN_IN_TRAINING}: not the error of a new scan"}
    again = [row | {"scan": f"again/{row['scan']}", "predicted_age": 0.0} for row in table[4:7]]
    # The second scan of sub-00 has no flag, and stands for this person.
    second = [table[0] | {"scan": "second.nii.gz", "qc_flag": "ok"}]
    report = calibrate(tmp_path, table, again + second)
    printed = capsys.readouterr().out
    assert "table_0.tsv, table_1.tsv: 11 people (scans left out: " in printed
    reasons = ("1 flagged", "1 without an age", "1 without a predicted age")
    for text in (*reasons, "1 of the networks' training", "3 further scans of the same people"):
        assert text in printed
    used = [*table[4:], *second]
    age, predicted_age = (
        np.array([round(row[name], 2) for row in used]) for name in ("age", "predicted_age")
    )
    calibration = read_calibration(tmp_path / "calibration.json")
    expected = fit_to_scanner(age, predicted_age, source=calibration.source, model=MODEL)
    assert calibration == expected
    assert calibration.source["scans"] == 11
    after = leave_one_out(age, predicted_age) - age
    assert report["before"]["mae"] == pytest.approx(abs(predicted_age - age).mean())
    assert report["after"]["mae"] == pytest.approx(abs(after).mean())
    assert report["after"]["mean_brain_pad"] == pytest.approx(after.mean())
    assert f"{report['after']['mae']:.2f}" in printed


def test_people_of_several_sites_are_noted(tmp_path, capsys):
    calibrate(tmp_path, [row | {"site": "AB"[at % 2]} for at, row in enumerate(rows(8))])
    assert "note: people of 2 sites (A, B), one scanner expected" in capsys.readouterr().out


def test_a_pattern_finds_people_whose_names_are_not_of_bids(tmp_path):
    table = [
        row | {"participant_id": f"p{at // 2}-{at % 2}", "scan": f"p{at}"}
        for at, row in enumerate(rows(12))
    ]
    calibrate(tmp_path, table, flags=["--subject_pattern", r"^(p\d+)-"])
    assert read_calibration(tmp_path / "calibration.json").source["scans"] == 6


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([rows(4)], r"table_0\.tsv: 4 people: at least 5 healthy people of known age expected"),
        ([rows(8, age=None)], r"0 people \(scans left out: 8 without an age\): at least 5"),
        ([rows(8, qc_flag="tilt")], r"8 flagged\): at least 5"),
        ([rows(8), rows(8, model="net 12345678")], "ages of different networks"),
        ([rows(8, model=None)], r"table_0\.tsv: rows without a model"),
        ([[{"participant_id": "a", "age": 3.0, "predicted_age": 4.0}]], "no column model"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_and_nothing_is_written(tables, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        calibrate(tmp_path, *tables)
    assert not (tmp_path / "calibration.json").exists()


def test_people_of_one_age_give_an_offset_alone_and_a_calibration_is_not_replaced(tmp_path, capsys):
    calibrate(tmp_path, rows(8, age=40.0))
    assert "no gain: the ages spread by an SD of 0.0 years, 5 needed" in capsys.readouterr().out
    assert read_calibration(tmp_path / "calibration.json").scanner.gain == 0
    with pytest.raises(FileExistsError, match=r"calibration\.json"):
        recalibrate.main(
            [str(tmp_path / "table_0.tsv"), "--output", str(tmp_path / "calibration.json")]
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [("gain", 3.0), ("gain", None), ("offset", float("nan")), ("people", 2), ("model", None),
     ("predicted_range", [60, 20]), ("more", 1)],
)  # fmt: skip
def test_damaged_calibrations_of_a_scanner_are_refused_by_name(name, value, tmp_path):
    calibrate(tmp_path, rows(8))
    path = tmp_path / "calibration.json"
    content = json.loads(path.read_text())
    content["scanner"][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"calibration\.json: not a calibration"):
        read_calibration(path)


def test_a_row_far_from_the_local_people_says_so_and_others_do_not(tmp_path):
    calibrate(tmp_path, rows(12))
    calibration = read_calibration(tmp_path / "calibration.json")
    low, high = calibration.scanner.predicted_range
    for years, far in ((low, False), (high + 60, True), (low - 60, True)):
        row = complete_row({"predicted_age": years, "message": "a note"}, calibration)
        assert ("far from the" in row["message"]) == far
        assert row["message"].startswith("a note")
        assert row["brain_pad_recalibrated"] is None


def test_the_audit_judges_a_site_on_the_people_not_drawn_by_the_prior_of_others(tmp_path, capsys):
    rows = []
    for name, offset in {"oslo": 12.0, "graz": -12.0, "lyon": 12.5}.items():
        age, predicted_age = site(60, offset=offset, seed=len(rows))
        rows += [
            {"participant_id": f"{name}-{at}", "sex": "F", "age": max(true, 0.0), "site": name}
            | {"predicted_age": predicted}
            for at, (true, predicted) in enumerate(
                zip(age.tolist(), predicted_age.tolist(), strict=True)
            )
        ]
    table = str(write_table(tmp_path / "held_out.csv", rows))
    found = audit.main([table, "--people", "5", "20", "--draws", "40"])
    assert [(row["site"], row["people"]) for row in found] == [
        (name, people) for name in ("graz", "lyon", "oslo") for people in (5, 20)
    ]
    assert len(re.findall(r"60 people, prior: offset SD 1[123]\.", capsys.readouterr().out)) == 3
    for row in found:
        assert abs(row["pad"]) == pytest.approx(12, abs=3)
        assert abs(row["pad_after"]) < 3
        assert row["mae_after"] < row["mae"] - 2
        assert row["inside_after"] > 82


def table_of(folder: Path) -> list[dict]:
    with (folder / "predictions.tsv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_predict_uses_the_calibration_of_a_scanner_and_keeps_the_raw_ages(tmp_path, capsys):
    torch.manual_seed(0)
    network, model = tmp_path / "net.pt", ScaleDense("compact", mean_age=50.0, age_spread=20.0)
    model.head[-1].weight.data *= 0.01  # ages of people, though not trained
    save_checkpoint(
        Checkpoint(
            model.eval(),
            InputRule(4, crop=True),
            provenance=Provenance("affine", "subject"),
        ),
        network,
    )
    scans, sheet = tmp_path / "scans", ["scan,age,sex"]
    for number in range(6):
        age = 25 + 9 * number
        write_scan(scans / f"sub-{number}.nii.gz", brain(GRID_SHAPE, age, number))
        sheet.append(f"sub-{number},{age},F")
    (tmp_path / "labels.csv").write_text("\n".join(sheet))
    labels = ("--labels", str(tmp_path / "labels.csv"), "--device", "cpu")
    test.main(
        ["--test_folder", str(scans), "--output_dir", str(tmp_path / "local"),
         "--model_name", str(network), "--num_workers", "0", *labels]
    )  # fmt: skip
    calibration = tmp_path / "calibration.json"
    recalibrate.main([str(tmp_path / "local" / "predictions.tsv"), "--output", str(calibration)])

    def predicted(output: str, model: Path, *flags: str) -> list[dict]:
        flags = (*labels, "--jobs", "1", "--model_name", str(model), *flags)
        assert predict.main([str(scans), "--output_dir", str(tmp_path / output), *flags]) == 0
        return table_of(tmp_path / output)

    # The file's name does not matter, its content does.
    moved = Path(shutil.copy(network, tmp_path / "moved.pt"))
    raw = predicted("raw", moved, "--no-report")
    found = predicted("found", moved, "--calibration", str(calibration))
    fitted = read_calibration(calibration)
    assert fitted.scanner.people == 6
    for before, after in zip(raw, found, strict=True):
        for name in ("age", "stage_one_age", "predicted_age", "brain_pad"):
            assert after[name] == before[name]
        corrected = fitted.scanner.correct(float(after["predicted_age"]))
        width = fitted.limits.years[90][0]
        expected = {
            "recalibrated_age": corrected,
            "brain_pad_recalibrated": corrected - float(after["age"]),
            "predicted_age_low": corrected - width,
            "predicted_age_high": corrected + width,
        }
        for name, years in expected.items():
            assert before[name] == "n/a"
            assert float(after[name]) == pytest.approx(years, abs=0.02), name
    page = (tmp_path / "found" / "report.html").read_text()
    assert "from 6 local people" in page
    assert "recalibrated to the scanner" in page
    loaded = load_checkpoint(network)
    loaded.model.head[-1].bias.data += 4.0
    other = tmp_path / "other.pt"
    save_checkpoint(
        Checkpoint(loaded.model, loaded.input_rule, provenance=loaded.provenance), other
    )
    with pytest.raises(
        ValueError, match=r"calibration\.json: made from ages of net .* not the net"
    ):
        predicted("refused", other, "--calibration", str(calibration))
    assert not (tmp_path / "refused" / "predictions.tsv").exists()
