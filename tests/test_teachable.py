"""Cohorts from which nothing about age can be learnt are refused before any scan is decoded."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, brain, training_flags, write_scan

import test
import train_first_stage
import train_second_stage
from data_preprocessing import make_folds, split_dataset
from utils.results import baseline
from utils.scans.volumes import GRID_AFFINE

NOTHING = "nothing about age can be learnt"
ONE_AGE, ONE_SCAN, ONE_PERSON = (
    "training: all 4 scans are of the age 50", "training: 1 scan",
    "training: all 3 scans are of one person, sub-a",
)  # fmt: skip
# Name and age of each training scan, and what the message says of them.
COHORTS = {
    "one age": ([(f"sub-{n}", 50) for n in "abcd"], ONE_AGE),
    "one scan": ([("sub-a", 50)], ONE_SCAN),
    "one person": ([(f"sub-a_ses-{n}", 50 + n) for n in (1, 2, 3)], ONE_PERSON),
}


def write_people(
    folder: Path, train: list[tuple], val: list[tuple], sexes="FM", voxels=None
) -> Path:
    """Scans with these names and ages, of which none can be decoded unless `voxels` are given."""
    rows = ["participant_id\tage\tsex"]
    for part, people in (("train", train), ("val", val)):
        for seed, (name, age) in enumerate(people):
            image = brain(TINY, age, seed + 10 * (part == "val"))
            path = write_scan(folder / part / f"{name}.nii.gz", image, GRID_AFFINE)
            if voxels is None:
                path.write_bytes(path.read_bytes()[:1000])  # the header is whole
            rows.append(f"{name}\t{age}\t{sexes[seed % len(sexes)]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("kind", COHORTS)
def test_training_on_a_cohort_that_teaches_nothing_stops_before_a_scan_is_decoded(
    trained, tmp_path, kind
):
    scans, message = COHORTS[kind]
    folder = write_people(tmp_path, scans, [("sub-x", 40), ("sub-y", 60)])
    flags = training_flags(folder, tmp_path / "run")
    with pytest.raises(ValueError, match=f"{message}: {NOTHING}"):
        train_first_stage.main([*flags, "--any_grid"])
    with pytest.raises(ValueError, match=f"{message}: {NOTHING}"):
        train_second_stage.main([*flags, "--first_stage_net", str(trained["first"])])
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "scan_cache").exists()


def test_folds_whose_training_part_teaches_nothing_are_refused_by_makers_and_users(tmp_path):
    ages = [50, 50, 50, 80]
    folder = write_people(tmp_path, list(zip(("a", "b", "c", "d"), ages, strict=True)), [("e", 50)])
    table = tmp_path / "folds.csv"
    flags = ["--scan_folders", str(folder / "train"), str(folder / "val")]
    flags += ["--labels", str(folder / "labels.csv")]
    message = r"the scans outside of fold \d: all \d scans are of the age 50"
    with pytest.raises(ValueError, match=message):
        make_folds.main([*flags, "--number", "2", "--output", str(table)])
    assert not table.exists()
    with pytest.raises(ValueError, match="--number 6: at least 2 and at most 5 people"):
        make_folds.main([*flags, "--number", "6", "--output", str(table)])

    table.write_text("scan,fold\na,0\nb,0\nc,0\nd,1\ne,0\n")
    fold = ["--any_grid", "--folds", str(table), "--fold", "1"]
    with pytest.raises(ValueError, match=f"training: all 4 scans are of the age 50: {NOTHING}"):
        train_first_stage.main([*training_flags(folder, tmp_path / "run"), *fold])


def test_the_baseline_refuses_what_training_refuses(grid_cohort, tmp_path):
    folder = shutil.copytree(grid_cohort, tmp_path / "cohort")
    sheet = folder / "labels.csv"
    rows = [line.split(",") for line in sheet.read_text().split()]
    sheet.write_text("".join(f"{name},50,{sex}\n" for name, _, sex in rows))
    flags = ["--train_folders", str(folder / "train"), "--labels", str(sheet)]
    with pytest.raises(ValueError, match=f"training: all 3 scans are of the age 50: {NOTHING}"):
        baseline.main([*flags, "--test_folder", str(folder / "test")])
    table = tmp_path / "folds.csv"
    table.write_text("scan,fold\n" + "".join(f"train-{n},{n % 2}\n" for n in (1, 2, 3)))
    with pytest.raises(ValueError, match=NOTHING):
        baseline.main([*flags, "--folds", str(table)])


def test_a_split_of_one_age_is_made_and_noted(tmp_path, capsys):
    folder = write_people(tmp_path, [(f"sub-{n}", 50) for n in "abcdefgh"], [])
    flags = ["--scan_folder", str(folder / "train"), "--labels", str(folder / "labels.csv")]
    split_dataset.main([*flags, "--output_dir", str(tmp_path / "split")])
    assert f"note: train: all 6 scans are of the age 50: {NOTHING}" in capsys.readouterr().out
    assert len(list((tmp_path / "split" / "train").iterdir())) == 6


@pytest.mark.parametrize(
    ("train", "val", "sexes", "note"),
    [
        ([40, 60], [50], "FM", "note: one validation scan"),
        ([40, 60], [50, 50], "FM", "note: all validation scans are of the age 50: a network"),
        ([40, 60], [70, 80], "FM", r"note: no validation scan has an age of the training scans"),
        ([40, 60], [45, 55], "F", "note: all training scans are of women: the ages of men"),
        ([40, 60], [45, 55], "FM", None),
    ],
)
def test_what_a_cohort_cannot_teach_or_judge_is_noted_before_a_scan_is_decoded(
    tmp_path, capsys, train, val, sexes, note
):
    parts = [[(f"{part}-{n}", age) for n, age in enumerate(ages)]
             for part, ages in (("train", train), ("val", val))]  # fmt: skip
    folder = write_people(tmp_path, *parts, sexes)
    with pytest.raises(ValueError, match=r"train-0\.nii\.gz"):  # it cannot be decoded
        train_first_stage.main([*training_flags(folder, tmp_path / "run"), "--any_grid"])
    notes = [line for line in capsys.readouterr().out.splitlines()
             if line.startswith("note: ") and "preprocessed" not in line]  # fmt: skip
    assert len(notes) == (note is not None)
    assert all(line.startswith(note) for line in notes)


@pytest.mark.parametrize("ages", [[50], [50, 50, 50]], ids=["one scan", "one age"])
def test_figures_of_one_scan_or_one_age_have_a_mae_and_no_correlation(
    trained, tmp_path, capsys, ages
):
    people = [(f"sub-{n}", age) for n, age in enumerate(ages)]
    folder = write_people(tmp_path, people, [], voxels=True)
    report = test.main(
        [
            *("--test_folder", str(folder / "train"), "--labels", str(folder / "labels.csv")),
            *("--output_dir", str(tmp_path / "out"), "--model_name", str(trained["first"])),
            *("--device", "cpu"),
        ]
    )
    for predictor in ("predicted_age", "mean_training_age"):
        figures = report[predictor]["overall"]
        assert np.isfinite(figures["mae"]["value"])
        assert figures["pearson"]["value"] is figures["r2"]["value"] is None
    assert "nan" not in (capsys.readouterr().out + (tmp_path / "out/metrics.json").read_text())
