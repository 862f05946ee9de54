"""A run goes on after its files have moved, and only with the files that it began with."""

import csv
import re
import shutil
from pathlib import Path

import nibabel
import openpyxl
import pytest
import torch
from conftest import brain, forget_inputs, training_flags, write_cohort, write_scan

import train_first_stage
import train_second_stage
from utils.networks import BEST_NAME
from utils.training.resume import LAST_NAME


def move(cohort: Path, folder: Path) -> Path:
    """The same scans elsewhere, stored without compression, and the labels as a spreadsheet."""
    for name in ("train", "val"):
        (folder / name).mkdir(parents=True)
        for scan in (cohort / name).iterdir():
            nibabel.save(nibabel.load(scan), folder / name / scan.name.removesuffix(".gz"))
    book = openpyxl.Workbook()
    book.active.append(["participant_id", "age", "sex"])
    for name, age, sex in csv.reader((cohort / "labels.csv").open()):
        book.active.append([name.removesuffix(".nii.gz"), float(age), "FM"[int(sex)]])
    book.save(folder / "labels.xlsx")
    return folder


def flags_of(cohort: Path, output: Path, *flags: str, sheet: str = "labels.csv") -> list[str]:
    own = ["--batch_size", "2", "--epochs", "2", "--schedule", "constant"]
    return [*training_flags(cohort, output), "--labels", str(cohort / sheet), *own, *flags]


def require_equal_weights(one: Path, two: Path) -> None:
    for name in (BEST_NAME, LAST_NAME):
        first, second = (
            torch.load(folder / name, weights_only=True)["state_dict"] for folder in (one, two)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def folds(small_cohort, tmp_path) -> Path:
    table = tmp_path / "folds.csv"
    rows = [f"train-{n},{n % 2}" for n in (1, 2, 3, 4)] + ["val-1,0", "val-2,1"]
    table.write_text("\n".join(["scan,fold", *rows]) + "\n")
    return table


@pytest.mark.parametrize(
    "stage", ["first", "folds", pytest.param("second", marks=pytest.mark.slow)]
)
def test_a_run_goes_on_bit_for_bit_after_scans_labels_networks_and_its_folder_moved(
    small_cohort, trained, folds, tmp_path, stage
):
    main = train_second_stage.main if stage == "second" else train_first_stage.main
    network, own, moved_own = trained["first"], ["--any_grid"], ["--any_grid"]
    if stage == "second":
        for_all = ["--allow_shared_persons", "--first_stage_net"]
        own, moved_own = [*for_all, str(network)], [*for_all, str(tmp_path / "moved" / "net.pt")]
    if stage == "folds":
        own += ["--folds", str(folds), "--fold", "1"]
        moved_own += ["--folds", str(tmp_path / "moved" / "table.csv"), "--fold", "1"]
    main(flags_of(small_cohort, tmp_path / "whole", *own))

    main(flags_of(small_cohort, tmp_path / "job-1" / "run", *own, "--epochs", "1"))
    moved = move(small_cohort, tmp_path / "moved")
    shutil.copyfile(network, moved / "net.pt")
    shutil.copyfile(folds, moved / "table.csv")
    (tmp_path / "job-1" / "run").rename(tmp_path / "renamed")
    main(flags_of(moved, tmp_path / "renamed", *moved_own, "--resume", sheet="labels.xlsx"))
    require_equal_weights(tmp_path / "whole", tmp_path / "renamed")


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A cohort, and beside it in `run` a run on it of one epoch."""
    folder = tmp_path_factory.mktemp("begun")
    write_cohort(folder, {"train": 4, "val": 2})
    train_first_stage.main(flags_of(folder, folder / "run", "--any_grid", "--epochs", "1"))
    return folder


def change_image(folder: Path) -> None:
    write_scan(folder / "train" / "train-2.nii.gz", brain((32, 36, 32), 50, seed=99))


def change_age(scan: str):
    def change(folder: Path) -> None:
        sheet = folder / "labels.csv"
        sheet.write_text(re.sub(rf"{scan}.nii.gz,[\d.]+", f"{scan}.nii.gz,33.3", sheet.read_text()))

    return change


def add_scan(folder: Path) -> None:
    write_scan(folder / "train" / "train-9.nii.gz", brain((32, 36, 32), 50, seed=98))
    with (folder / "labels.csv").open("a") as sheet:
        sheet.write("train-9.nii.gz,50,0\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_image, "training scans: train-2 has another image"),
        (add_scan, "training scans: train-9 is new"),
        (lambda folder: (folder / "train" / "train-3.nii.gz").unlink(),
         "training scans: train-3 is missing"),
        (lambda folder: (folder / "val" / "val-2.nii.gz").unlink(),
         "validation scans: val-2 is missing"),
        (change_age("train-1"),
         r"training scans: train-1: age was \d\d\.\d, is 33\.3"),
        (change_age("val-1"),
         r"validation scans: val-1: age was \d\d\.\d, is 33\.3"),
        (lambda folder: [
            (folder / "train" / f"train-{a}.nii.gz").rename(folder / "train" / f"train-{b}.nii.gz")
            for a, b in ((1, 0), (4, 1), (0, 4))
         ], "training scans: train-1 has another image, train-4 has another image"),
    ],
    ids=["image", "new", "missing", "missing in validation", "age", "age in validation", "swapped"],
)  # fmt: skip
def test_a_run_on_other_scans_or_labels_is_refused_and_the_difference_named(
    begun, tmp_path, change, message
):
    folder = shutil.copytree(begun, tmp_path / "cohort")
    change(folder)
    before = (folder / "run" / LAST_NAME).read_bytes()
    with pytest.raises(ValueError, match=rf"another run .* to resume \({message}"):
        train_first_stage.main(flags_of(folder, folder / "run", "--any_grid", "--resume"))
    assert (folder / "run" / LAST_NAME).read_bytes() == before


def test_another_network_to_start_from_is_refused(begun, trained, tmp_path):
    start = shutil.copyfile(begun / "run" / BEST_NAME, tmp_path / "start.pt")
    flags = ["--any_grid", "--allow_shared_persons", "--init_from", str(start)]
    train_first_stage.main(flags_of(begun, tmp_path / "run", *flags, "--epochs", "1"))
    shutil.copyfile(trained["first"], start)
    with pytest.raises(ValueError, match=r"--init_from is another network than it was"):
        train_first_stage.main(flags_of(begun, tmp_path / "run", *flags, "--resume"))


def test_a_run_begun_before_contents_were_kept_goes_on_from_the_same_paths_alone(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "cohort")
    train_first_stage.main(flags_of(folder, tmp_path / "old", "--any_grid", "--epochs", "1"))
    forget_inputs(tmp_path / "old")
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"--train_folder was .*cohort.*, is .*elsewhere"):
        train_first_stage.main(flags_of(elsewhere, tmp_path / "old", "--any_grid", "--resume"))
    train_first_stage.main(flags_of(folder, tmp_path / "old", "--any_grid", "--resume"))
    assert len((tmp_path / "old" / "metrics.jsonl").read_text().splitlines()) == 2
