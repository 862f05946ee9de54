"""Whether a scan is like the training scans, from the features of a network to the flag."""

import csv

import numpy as np
import pytest
import torch
from conftest import TINY, brain, write_scan
from scipy.stats import binom

from analysis.brain_pad import out_of_fold
from analysis.brain_pad.calibration import (
    add_flag,
    complete_row,
    fit_calibration,
    is_unlike,
    read_calibration,
    write_calibration,
)
from analysis.brain_pad.recalibrate import read_local_people
from prediction.run import flag_scanners
from utils.networks import likeness, share
from utils.networks.checkpoint import load_checkpoint, load_ensemble
from utils.networks.execution import choose_execution
from utils.networks.likeness import Likeness
from utils.networks.predictor import Predictor
from utils.results.tables import read_predictions, write_table
from utils.scans.cohort import open_cohort


@pytest.fixture(autouse=True)
def few_scans(monkeypatch):
    """The tiny cohort has eight training scans."""
    monkeypatch.setattr(likeness, "COMPONENTS", 3)
    monkeypatch.setattr(likeness, "FEWEST", 4)


def test_only_what_lies_outside_the_components_counts():
    basis = torch.eye(6)[:2]
    found = Likeness(torch.full((6,), 5.0), basis, scale=2.0)
    inside = torch.tensor([[9.0, -40.0, 5.0, 5.0, 5.0, 5.0]])
    outside = torch.tensor([[9.0, -40.0, 5.0, 8.0, 5.0, 9.0]])
    assert found(inside).item() == 0
    assert found(outside).item() == pytest.approx(5 / 2)


@pytest.fixture(scope="module")
def given(cohort, trained, tmp_path_factory):
    """Both stages as they are given to others, having looked at their training scans."""
    folder = tmp_path_factory.mktemp("given")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "COMPONENTS", 3)
        patch.setattr(likeness, "FEWEST", 4)
        for stage in ("first", "second"):
            share.main(
                [
                    *("ship", str(trained[stage]), str(folder / f"{stage}.pt"), "--cohort", "C"),
                    *("--licence", "L", "--scans", str(cohort / "val"), str(cohort / "train")),
                ]
            )
    return folder


def unlikeness(checkpoint, *folders) -> np.ndarray:
    predictor = Predictor(checkpoint, choose_execution("cpu"))
    scans = open_cohort(list(map(str, folders)), None, checkpoint.input_rule)
    return predictor.ages(scans)["unlikeness"]


def test_a_network_tells_its_training_scans_from_scans_of_another_kind(cohort, given, tmp_path):
    generator = np.random.default_rng(0)
    for number in range(4):
        voxels = brain(TINY, number) * generator.uniform(0, 3, TINY).astype(np.float32)
        write_scan(tmp_path / f"other-{number}.nii.gz", voxels)
    known = unlikeness(load_checkpoint(given / "first.pt"), cohort / "train")
    other = unlikeness(load_checkpoint(given / "first.pt"), tmp_path)
    assert np.median(known) == pytest.approx(1, rel=0.3)
    assert other.min() > known.max()
    # A cascade looks with its first stage; of several networks the mean counts.
    assert unlikeness(load_checkpoint(given / "second.pt"), tmp_path) == pytest.approx(other, 1e-3)
    both = load_ensemble([given / "first.pt", given / "first.pt"])
    assert unlikeness(both, tmp_path) == pytest.approx(other, 1e-3)


def test_ages_are_the_same_whether_a_network_is_watched_or_not(cohort, given):
    watched = load_checkpoint(given / "second.pt")
    plain = load_checkpoint(given / "second.pt")
    del plain.summary["likeness"]
    scans = open_cohort([str(cohort / "test")], None, plain.input_rule)
    ages = [Predictor(each, choose_execution("cpu")).ages(scans) for each in (watched, plain)]
    assert set(ages[0]) - set(ages[1]) == {"unlikeness"}
    for name in ages[1]:
        np.testing.assert_array_equal(ages[0][name], ages[1][name])


def test_an_ensemble_with_a_network_that_has_not_looked_knows_nothing(given, trained, cohort):
    both = load_ensemble([given / "first.pt", trained["first"]])
    scans = open_cohort([str(cohort / "test")], None, both.input_rule)
    assert "unlikeness" not in Predictor(both, choose_execution("cpu")).ages(scans)


def test_training_scans_that_are_missing_are_counted(cohort, trained, tmp_path):
    flags = ["ship", str(trained["first"]), str(tmp_path / "x.pt"), "--cohort", "C"]
    flags += ["--licence", "L", "--scans", str(cohort / "val")]
    with pytest.raises(ValueError, match="0 of its 8 training scans are among those given"):
        share.main(flags)
    assert not (tmp_path / "x.pt").exists()


def test_out_of_fold_tables_have_the_unlikeness_of_unseen_scans(cohort, trained, tmp_path):
    """Folds as the run of the tiny cohort had them: its validation scans are fold 0."""
    names = {
        f: sorted(p.name[:-7] for p in (cohort / f).glob("*.nii.gz")) for f in ("train", "val")
    }
    rows = [f"{name},{int(folder == 'train')}" for folder, all in names.items() for name in all]
    (tmp_path / "folds.csv").write_text("\n".join(["scan,fold", *rows]))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "0").symlink_to(trained["first"].parent)
    out_of_fold.main(
        [
            *("--runs", str(tmp_path / "runs"), "--folds", str(tmp_path / "folds.csv")),
            *("--scan_folders", str(cohort / "train"), str(cohort / "val"), "--unlikeness"),
            *("--labels", str(cohort / "labels.csv"), "--output", str(tmp_path / "ages.csv")),
            *("--only", "0"),
        ]
    )
    with (tmp_path / "ages.csv").open() as file:
        found = [float(row["unlikeness"]) for row in csv.DictReader(file)]
    assert len(found) == len(names["val"])
    assert min(found) > 0


def table_of(path, unlikeness) -> None:
    generator = np.random.default_rng(2)
    ages = generator.uniform(20, 80, len(unlikeness)).round(1)
    rows = [
        {"participant_id": f"P{at:03d}", "sex": "F", "age": age, "unlikeness": float(value)}
        | {"predicted_age": float(age + generator.normal(0, 5))}
        for at, (age, value) in enumerate(zip(ages, unlikeness, strict=True))
    ]
    write_table(path, rows)


def test_the_limit_is_what_95_of_100_unseen_scans_keep_to(tmp_path):
    values = np.random.default_rng(1).permutation(np.arange(1, 100) / 50)
    table_of(tmp_path / "ages.csv", values)
    calibration = fit_calibration(read_predictions(tmp_path / "ages.csv"))
    assert calibration.unlike_limit == pytest.approx(95 / 50)
    write_calibration(tmp_path / "c.json", calibration)
    assert read_calibration(tmp_path / "c.json") == calibration
    row = {"age": None, "predicted_age": 50.0, "qc_flag": "ok", "message": None}
    done = [complete_row(row | {"unlikeness": at}, calibration) for at in (1.89, 1.91, None)]
    assert [each["qc_flag"] for each in done] == ["ok", "unlike_training", "ok"]
    assert "unlike the training scans" in done[1]["message"]


def test_a_table_without_unlikeness_gives_no_limit(tmp_path):
    table_of(tmp_path / "ages.csv", [1.0] * 39 + [np.nan])
    calibration = fit_calibration(read_predictions(tmp_path / "ages.csv"))
    assert calibration.unlike_limit is None
    assert not is_unlike({"unlikeness": 99.0}, calibration)
    write_calibration(tmp_path / "c.json", calibration)
    assert read_calibration(tmp_path / "c.json") == calibration


def rows_of(**sites) -> list[dict]:
    """Rows of a table: by site so many scans within the limit of 2, and so many beyond."""
    return [
        {"site": site, "unlikeness": value, "qc_flag": "ok", "message": None}
        for site, (within, beyond) in sites.items()
        for value in [1.0] * within + [3.0] * beyond
    ]


@pytest.fixture
def limit_2(tmp_path):
    table_of(tmp_path / "two.csv", [1.0] * 36 + [2.0] * 3)
    return fit_calibration(read_predictions(tmp_path / "two.csv"))


def test_all_scans_of_a_scanner_are_flagged_where_chance_does_not_explain_it(limit_2, capsys):
    assert limit_2.unlike_limit == 2
    rows = rows_of(oslo=(20, 3), graz=(5, 5), lyon=(1, 3))
    flag_scanners(rows, limit_2)
    flagged = {site: [r["qc_flag"] for r in rows if r["site"] == site] for site in ("oslo", "graz")}
    assert set(flagged["oslo"]) == {"ok"}
    assert set(flagged["graz"]) == {"unlike_training"}
    assert {row["qc_flag"] for row in rows if row["site"] == "lyon"} == {"ok"}  # four scans
    assert "5 of 10 scans of graz are unlike" in capsys.readouterr().out
    assert binom.sf(2, 23, 0.05) > 0.001 > binom.sf(4, 10, 0.05)  # so many, or more, by chance


def test_without_sites_all_scans_of_the_call_are_one_scanner(limit_2):
    rows = [row | {"site": None} for row in rows_of(graz=(5, 5))]
    flag_scanners(rows, limit_2)
    assert {row["qc_flag"] for row in rows} == {"unlike_training"}
    flag_scanners(rows, None)  # no calibration: nothing to tell it by


def test_a_flag_stands_behind_others_and_once():
    row = {"qc_flag": "cut", "message": "a"}
    add_flag(row, "unlike_training", "b")
    add_flag(row, "unlike_training", "c")
    assert row == {"qc_flag": "cut,unlike_training", "message": "a; b; c"}


def test_recalibration_takes_people_whose_scanner_is_unlike(tmp_path):
    flags = ["unlike_training"] * 5 + ["cut", "cut,unlike_training"]
    rows = [
        {"participant_id": f"P{at}", "age": 50.0 + at, "predicted_age": 60.0 + at}
        | {"qc_flag": flag, "model": "net bede3eb9"}
        for at, flag in enumerate(flags)
    ]
    write_table(tmp_path / "ages.tsv", rows)
    local = read_local_people([tmp_path / "ages.tsv"])
    assert len(local.people) == 5
    assert local.left_out == {"flagged": 2}
