"""Folds, runs that hold one out, and the table of out-of-fold ages."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import training_flags

import train_first_stage
from analysis.brain_pad import out_of_fold
from data_preprocessing import make_folds
from utils.networks import BEST_NAME
from utils.networks.checkpoint import load_checkpoint
from utils.scans.folds import hold_out, read_folds
from utils.scans.split import deal_to_folds


@pytest.fixture(scope="module")
def folds(cohort, tmp_path_factory):
    """Two folds of the 12 training and validation scans of the tiny cohort."""
    path = tmp_path_factory.mktemp("folds") / "folds.csv"
    folders = [str(cohort / "train"), str(cohort / "val")]
    make_folds.main(
        ["--scan_folders", *folders, "--labels", str(cohort / "labels.csv"), "--number", "2",
         "--output", str(path)]
    )  # fmt: skip
    return path


def fold_flags(cohort, folds, fold, output):
    flags = [*training_flags(cohort, output), "--folds", str(folds), "--fold", str(fold)]
    return [*flags, "--keep", "last"]


@pytest.fixture(scope="module")
def runs(cohort, folds, tmp_path_factory):
    """A first stage a fold."""
    folder = tmp_path_factory.mktemp("runs")
    for fold in (0, 1):
        train_first_stage.main([*fold_flags(cohort, folds, fold, folder / str(fold)), "--any_grid"])
    return folder


def collect(cohort, folds, output, *runs, more=()):
    return out_of_fold.main(
        [
            *("--runs", *map(str, runs), "--folds", str(folds), "--output", str(output)),
            *("--scan_folders", str(cohort / "train"), str(cohort / "val")),
            *("--labels", str(cohort / "labels.csv"), "--device", "cpu", *more),
        ]
    )


def test_people_are_dealt_balanced_and_whole():
    generator = np.random.default_rng(0)
    people = {f"p{i}": (float(generator.uniform(18, 90)), i % 2) for i in range(103)}
    dealt = deal_to_folds(people, folds=5, seed=1)
    sizes = np.bincount(list(dealt.values()))
    assert sizes.min() >= 20
    ages = np.array([people[person][0] for person in dealt])
    sexes = np.array([people[person][1] for person in dealt])
    fold = np.array(list(dealt.values()))
    for k in range(5):
        assert abs(ages[fold == k].mean() - ages.mean()) < 3
        assert abs(sexes[fold == k].mean() - 0.5) < 0.1
    assert deal_to_folds(people, folds=5, seed=1) == dealt
    assert deal_to_folds(people, folds=5, seed=2) != dealt
    with pytest.raises(ValueError, match="at least 2 and at most 103 people"):
        deal_to_folds(people, folds=104)


def test_every_scan_is_held_out_once_and_never_trained_on_then(cohort, folds, runs):
    table = read_folds(folds)
    assert len(table) == 12
    for fold in (0, 1):
        lines = (runs / str(fold) / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
        checkpoint = load_checkpoint(runs / str(fold) / BEST_NAME)
        assert checkpoint.summary["epoch"] == 2
        assert checkpoint.summary["scans"] == {"train": 6, "validation": 6}
        assert sum(checkpoint.summary["training_sexes"].values()) == 6


def test_out_of_fold_ages_are_those_of_each_folds_own_network(cohort, folds, runs, tmp_path):
    report = collect(cohort, folds, tmp_path / "ages.csv", runs, more=["--no-tta"])
    with (tmp_path / "ages.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = read_folds(folds)
    assert {row["participant_id"]: int(row["fold"]) for row in rows} == table
    for fold in (0, 1):
        # The run itself validated the same scans with the same weights.
        line = (runs / str(fold) / "metrics.jsonl").read_text().splitlines()[-1]
        errors = [abs(float(row["brain_pad"])) for row in rows if row["fold"] == str(fold)]
        assert np.mean(errors) == pytest.approx(json.loads(line)["validation/mae"], abs=0.02)
    assert report["predicted"]["mae"]["value"] == pytest.approx(
        np.mean([abs(float(row["brain_pad"])) for row in rows]), abs=0.01
    )


def test_two_seeds_give_the_mean_of_their_ages_and_a_paired_difference(
    cohort, folds, runs, tmp_path
):
    collect(cohort, folds, tmp_path / "one.csv", runs)
    report = collect(
        cohort, folds, tmp_path / "two.csv", runs, runs,
        more=["--reference", str(tmp_path / "one.csv")],
    )  # fmt: skip
    one, two = ((tmp_path / name).read_text() for name in ("one.csv", "two.csv"))
    assert one == two
    assert report[str(tmp_path / "one.csv")]["value"] == pytest.approx(0, abs=0.01)
    with pytest.raises(FileExistsError, match=r"two\.csv"):
        collect(cohort, folds, tmp_path / "two.csv", runs)


def test_ages_of_training_scans_are_no_out_of_fold_ages(cohort, folds, runs, tmp_path, capsys):
    swapped = tmp_path / "swapped.csv"  # as where folds are dealt anew and finished runs are kept
    rows = [line.rsplit(",", 1) for line in folds.read_text().splitlines()[1:]]
    lines = [f"{scan},{1 - int(fold)}" for scan, fold in rows]
    swapped.write_text("\n".join(["scan,fold", *lines]) + "\n")
    message = r"best_model.*: trained on 6 of the 6 scans that should be new to it: .*--folds"
    with pytest.raises(ValueError, match=message):
        collect(cohort, swapped, tmp_path / "ages.csv", runs)
    assert not (tmp_path / "ages.csv").exists()
    allowed = tmp_path / "allowed"
    for fold in ("0", "1"):
        content = torch.load(runs / fold / BEST_NAME, weights_only=True)
        content["summary"]["flags"]["allow_shared_persons"] = True
        (allowed / fold).mkdir(parents=True)
        torch.save(content, allowed / fold / BEST_NAME)
    collect(cohort, swapped, tmp_path / "ages.csv", allowed)
    assert capsys.readouterr().out.count("trained on 6 of the 6 scans") == 2


def test_a_reference_without_a_scan_and_networks_of_some_folds_for_retests_are_refused(
    cohort, folds, runs, tmp_path
):
    other = tmp_path / "other.csv"
    other.write_text("participant_id,predicted_age\ntrain-1,40\n")
    with pytest.raises(ValueError, match=r"other\.csv: no row for 11 scans"):
        collect(cohort, folds, tmp_path / "a.csv", runs, more=["--reference", str(other)])
    more = ["--only", "0", "--retest_folder", str(cohort / "test"), "--retest_output", "b.csv"]
    with pytest.raises(ValueError, match="networks that have seen them"):
        collect(cohort, folds, tmp_path / "b.csv", runs, more=more)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan,place\na,0\n", r"no column fold; found \['scan', 'place'\]"),
        ("scan,fold\na,0\nb,x\n", r"row 3: b: fold 'x', a whole number from 0 expected"),
        ("scan,fold\na.nii.gz,0\na,1\n", "row 3: a stands in row 2 already"),
    ],
)
def test_bad_tables_of_folds_are_named_by_row(text, message, tmp_path):
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_folds(tmp_path / "folds.csv")


def test_missing_folds_and_tables_are_refused(cohort, folds, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such table"):
        read_folds(tmp_path / "none.csv")
    flags = [*fold_flags(cohort, folds, 7, tmp_path / "out"), "--any_grid"]
    with pytest.raises(ValueError, match=r"--fold 7: one of the folds \[0, 1\] expected"):
        train_first_stage.main(flags)
    with pytest.raises(ValueError, match="--folds and --fold: give both"):
        train_first_stage.main([*training_flags(cohort, tmp_path / "out"), "--fold", "0"])
    with pytest.raises(ValueError, match="1 scans have no row in --folds: a"):
        hold_out([type("Scan", (), {"subject_id": "a"})()], {}, 0)
