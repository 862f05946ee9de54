"""The check of a data set before training: what it finds, and that nothing hides anything."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, UNDECODABLE, brain, needs_any_name, write_scan, write_sidecars

from data_preprocessing import check_dataset
from utils.files import hash_file
from utils.scans.provenance import sidecar_path, write_sidecar
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

RAS_AFFINE = np.array([[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], float)
NAMES = {"train": ("a", "b", "c"), "val": ("d",), "test": ("e",)}
RECIPE = {"registration": "affine", "mask": "template", "backend": "builtin"}
SHEET = {"a": "20,0", "b": "50,1", "c": "80,0", "d": "40,1", "e": "60,0"}


def volume(seed: int) -> np.ndarray:
    return brain(GRID_SHAPE, 50, seed)


@pytest.fixture(scope="module")
def volumes() -> list[np.ndarray]:
    return [volume(seed) for seed in range(5)]


@pytest.fixture
def data(tmp_path, volumes) -> Path:
    """A sound data set of five scans; uncompressed, which is quick."""
    places = [(folder, name) for folder, names in NAMES.items() for name in names]
    for (folder, name), voxels in zip(places, volumes, strict=True):
        write_scan(tmp_path / folder / f"{name}.nii", voxels)
    write_sheet(tmp_path, **SHEET)
    return tmp_path


def write_sheet(data: Path, **rows: str) -> None:
    (data / "labels.csv").write_text("".join(f"{name},{row}\n" for name, row in rows.items()))


def check(data: Path, *flags: str) -> tuple[list[dict], str]:
    """The report's rows, and the error that ends the check, if any."""
    report, message = data / "report.tsv", ""
    folders = [str(data / name) for name in NAMES]
    given = ["--folders", *folders, "--labels", str(data / "labels.csv"), "--jobs", "1"]
    try:
        check_dataset.main([*given, "--output", str(report), "--overwrite", *flags])
    except ValueError as error:
        if not report.exists():
            raise
        message = str(error)
    rows = read_report(report)
    assert bool(message) == any(row["severity"] == "error" for row in rows)
    return rows, message


def read_report(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def found(rows: list[dict]) -> list[tuple[str, str, str]]:
    return [(row["severity"], row["scan"], row["problem"]) for row in rows]


def test_a_sound_data_set_passes_with_an_empty_table(data, capsys):
    rows, message = check(data)
    assert (rows, message) == ([], "")
    assert (data / "report.tsv").read_text().split() == [
        "severity", "folder", "scan", "problem", "what_to_do"]  # fmt: skip
    assert "5 scans in 3 folders: 0 errors, 0 notes" in capsys.readouterr().out


def clipped(voxels):
    return np.minimum(voxels, np.percentile(voxels[voxels > 0], 95))


def in_a_head(voxels):
    return voxels + 20 * (np.indices(GRID_SHAPE)[0] < 20).astype(np.float32)


def with_nan(voxels):
    voxels = voxels.copy()
    voxels[40, 50, 40] = np.nan
    return voxels


def half(voxels):
    return np.where(np.indices(GRID_SHAPE)[2] < 40, voxels, 0)


@pytest.mark.parametrize(
    ("change", "severity", "problem"),
    [
        (with_nan, "error", "1 voxels are NaN or infinite"),
        (np.zeros_like, "error", "no brain: voxels above 0 with differing values expected"),
        (np.ones_like, "error", "no brain: .* found 902629 voxels above 0"),
        (in_a_head, "error", "4.% of the grid is above 0, at most 36% expected: skull"),
        (half, "error", "1.% of the grid is above 0, at least 18% expected: .*small"),
        (lambda voxels: voxels - 100, "error", "at least 18% expected: .*z-scored already"),
        (clipped, "note", r"5\.0% of the brain has the highest value, .* clipped"),
        (lambda voxels: voxels[1:], "error", r"not on the FSL MNI152 2 mm grid: .*\(90, 109, 91\)"),
    ],
)
def test_what_is_wrong_with_the_voxels_of_one_scan_is_found(
    data, volumes, change, severity, problem
):
    path = write_scan(data / "train" / "b.nii", change(volumes[1]))
    rows, _ = check(data)
    assert [(row["severity"], row["scan"]) for row in rows] == [(severity, "b.nii")]
    assert re.search(problem, rows[0]["problem"])
    assert str(path) not in rows[0]["problem"]
    assert rows[0]["folder"] == str(data / "train")
    assert rows[0]["what_to_do"]


def test_the_twin_in_ras_order_is_noted_and_other_affines_are_errors(data, volumes):
    write_scan(data / "train" / "a.nii", volumes[0][::-1], RAS_AFFINE)
    shifted = GRID_AFFINE.copy()
    shifted[0, 3] += 4
    write_scan(data / "train" / "b.nii", volumes[1], shifted)
    rows, message = check(data)
    assert [(row["severity"], row["scan"]) for row in rows] == [
        ("error", "b.nii"), ("note", "a.nii")]  # fmt: skip
    assert rows[1]["problem"] == "stored RAS; read as LAS"
    assert message.startswith(f"{data / 'train' / 'b.nii'}: not on the FSL MNI152 2 mm grid")


def test_unreadable_scans_are_named_and_the_others_are_checked_all_the_same(data, volumes):
    (data / "train" / "a.nii").write_bytes(b"no image")
    content = (data / "train" / "b.nii").read_bytes()
    (data / "train" / "b.nii").write_bytes(content[: len(content) // 2])
    write_scan(data / "train" / "c.nii", with_nan(volumes[2]))
    (data / "val" / "d.nii").unlink()
    write_sheet(data, **(SHEET | {"e": "old,3"}))
    rows, message = check(data)
    errors = {(row["scan"] or row["folder"]): row["problem"] for row in rows}
    assert "not a readable scan" in errors["a.nii"]
    assert "voxels cannot be read" in errors["b.nii"]
    assert "NaN" in errors["c.nii"]
    assert errors[str(data / "val")] == "no .nii.gz or .nii file in it"
    for part in ("a.nii", "b.nii", "c.nii", "age 'old'", "sex '3'"):
        assert part in message


def test_rows_are_checked_one_by_one(data):
    rows_of = SHEET | {"a": "n/a,0", "b": "200,1", "e": "89+,x", "far": "30,1", "none": "x,1"}
    del rows_of["c"]
    write_sheet(data, **rows_of)
    rows, _ = check(data, "--sex_codes", "0=female", "1=male")
    findings = found(rows)
    assert {
        ("error", "a.nii", "row 1 gives no age"),
        ("error", "c.nii", "no row named c in the label sheet"),
        # A note, as test.py predicts scans of unknown age.
        ("note", "e.nii", "row 4 gives no age"),
        ("note", "far", "row 5: no scan named far in the folders"),
    } < set(findings)
    of_sheet = [text for severity, scan, text in findings if (severity, scan) == ("error", "")]
    expected = (
        "the age in row 2 is too high for years and no unit is stated",
        "row 2: b: age '200', expected years",
        "row 4: e: sex 'x'",
        "row 6: none: age 'x'",
    )
    for part, problem in zip(expected, of_sheet, strict=True):
        assert part in problem


def test_a_missing_sex_is_a_note_where_training_does_not_need_it(data):
    write_sheet(data, **(SHEET | {"a": "20,n/a"}))
    assert found(check(data)[0]) == [("error", "a.nii", "row 1 gives no sex")]
    rows, message = check(data, "--no-use_sex")
    assert (found(rows), message) == ([("note", "a.nii", "row 1 gives no sex")], "")


@pytest.mark.parametrize("text", [None, "", "id,years\na,3\n"])
def test_an_unusable_sheet_is_one_error_beside_those_of_the_scans(data, volumes, text):
    (data / "labels.csv").unlink()
    if text is not None:
        (data / "labels.csv").write_text(text)
    write_scan(data / "train" / "a.nii", with_nan(volumes[0]))
    rows, _ = check(data)
    assert [(row["severity"], row["scan"]) for row in rows] == [("error", ""), ("error", "a.nii")]
    assert "labels.csv" in rows[0]["problem"]


def test_repeated_names_people_and_voxels_are_found_in_and_across_folders(data, volumes):
    write_sheet(data, **SHEET, **{"sub-1_ses-1": "30,0", "sub-1_ses-2": "31,0"})
    write_scan(data / "train" / "sub-1_ses-1.nii", volume(11))
    write_scan(data / "val" / "sub-1_ses-2.nii", volume(12))
    write_scan(data / "train" / "a.nii.gz", volume(13))
    write_scan(data / "test" / "b.nii", volumes[1][::-1], RAS_AFFINE)
    rows, _ = check(data)
    train = data / "train"
    assert set(found(rows)) == {
        ("note", "b.nii", "stored RAS; read as LAS"),
        ("error", "a.nii.gz", f"the same name as {train / 'a.nii'}"),
        ("error", "b.nii", f"the same name as {train / 'b.nii'}"),
        ("error", "b.nii", f"the same voxels as {train / 'b.nii'}"),
        ("error", "sub-1_ses-2.nii", f"sub-1 is in {train} too (sub-1_ses-1.nii)"),
    }


def test_people_are_found_by_a_pattern_and_names_that_it_misses_are_errors(data):
    problem = "e: --subject_pattern '[abcd]' finds no person in it"
    assert found(check(data, "--subject_pattern", "[abcd]")[0]) == [("error", "e.nii", problem)]
    assert len(check(data, "--subject_pattern", "^()")[0]) == 5
    assert check(data, "--subject_pattern", "[abc]?.?$")[0] == []


def test_ages_outside_those_of_training_are_noted(data):
    write_sheet(data, **(SHEET | {"d": "19.5,1", "e": "81,0"}))
    rows, message = check(data)
    assert found(rows) == [
        ("note", "d.nii", "age 19.5, training ages 20 to 80 years"),
        ("note", "e.nii", "age 81, training ages 20 to 80 years"),
    ]
    assert message == ""


def test_mixed_preprocessing_is_an_error_of_the_scans_that_are_fewer(data):
    for folder in NAMES:
        write_sidecars(data / folder, "affine")
    assert check(data)[0] == []
    write_sidecars(data / "val", "affine", backend="fsl")
    sidecar_path(data / "test" / "e.nii").unlink()
    usual = "3 of 5 scans: registration affine, mask template, backend builtin"
    assert found(check(data)[0]) == [
        ("error", "d.nii", f"registration affine, mask template, backend fsl; {usual}"),
        ("error", "e.nii", f"no sidecar that says how it was made; {usual}"),
    ]


def test_flags_of_quality_control_and_damaged_sidecars_are_errors(data):
    for folder in NAMES:
        write_sidecars(data / folder, "affine")
    for name, flags in (("a", {"correlation": "correlation 0.41 below 0.6"}), ("b", {})):
        content = {"recipe": RECIPE, "qc": {"flags": flags}}
        write_sidecar(data / "train" / f"{name}.nii", content, overwrite=True)
    sidecar_path(data / "val" / "d.nii").write_text('{"format": "tsan')
    rows, _ = check(data)
    assert [(row["severity"], row["scan"]) for row in rows] == [
        ("error", "a.nii"), ("error", "d.nii")]  # fmt: skip
    assert rows[0]["problem"] == "flagged by preprocessing: correlation 0.41 below 0.6"
    assert "not readable as JSON" in rows[1]["problem"]


def test_a_scan_that_is_not_the_one_its_sidecar_describes_is_an_error(data, volumes):
    for folder, names in NAMES.items():
        for name in names:
            scan = data / folder / f"{name}.nii"
            write_sidecar(scan, {"recipe": RECIPE, "output_sha256": hash_file(scan)})
    assert check(data)[0] == []
    write_scan(data / "train" / "b.nii", volumes[1] * 2)
    ((severity, scan, problem),) = found(check(data)[0])
    assert (severity, scan) == ("error", "b.nii")
    assert problem.startswith("changed since it was preprocessed")


@needs_any_name
def test_a_name_that_is_not_utf8_does_not_destroy_the_report(data, volumes):
    write_scan(data / "train" / f"{UNDECODABLE}.nii", with_nan(volumes[0]))
    rows, _ = check(data)
    assert {row["scan"] for row in rows} == {r"caf\udce9.nii"}
    assert len(rows) == 2  # no row in the sheet, and NaN


def test_the_report_is_overwritten_only_on_request(data):
    (data / "report.tsv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"report\.tsv would be overwritten"):
        check(data, "--no-overwrite")
    assert (data / "report.tsv").read_text() == "mine"


def test_a_folder_given_twice_is_refused(data):
    with pytest.raises(ValueError, match="each folder once expected"):
        check(data, "--folders", str(data / "train"), f"{data}/val/../train")


@pytest.mark.slow
def test_processes_find_the_same_and_errors_are_the_exit_code(data, volumes):
    write_scan(data / "val" / "d.nii", with_nan(volumes[3]))
    expected, _ = check(data)
    report = data / "other.tsv"
    command = ["data_preprocessing.check_dataset", "--folders", *(str(data / n) for n in NAMES)]
    command += ["--labels", str(data / "labels.csv"), "--output", str(report), "--jobs", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {data}/val/d.nii: 1 voxels are NaN")
    assert read_report(report) == expected
