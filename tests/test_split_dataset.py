"""Splitting a folder of scans into train, val and test."""

import csv
import os
import re

import numpy as np
import pytest
from conftest import UNDECODABLE, needs_any_name

from data_preprocessing import split_dataset
from utils.scans.leakage import find_person
from utils.scans.split import FRACTIONS, PARTS, split_by_person


def cohort(people, *, seed=0, most_scans=3):
    """Ages and persons of `people` people with 1 to `most_scans` scans each, a year apart."""
    rng = np.random.default_rng(seed)
    ages, person_of = {}, {}
    for person in range(people):
        age = rng.uniform(18, 90)
        for visit in range(rng.integers(1, most_scans + 1)):
            scan = f"sub-{person}_ses-{visit}_T1w"
            ages[scan], person_of[scan] = age + visit, f"sub-{person}"
    return ages, person_of


def split_cohort(people=100, *, seed=0, fractions=FRACTIONS, split_seed=0, most_scans=3):
    ages, person_of = cohort(people, seed=seed, most_scans=most_scans)
    folds = split_by_person(ages, person_of=person_of, fractions=fractions, seed=split_seed)
    return folds, ages, person_of


def write_scans(folder, names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(f"voxels of {name}".encode())


def write_cohort(tmp_path, people=20):
    """A folder of two scans a person, and a sheet of their ages; returns the flags for both."""
    names = [f"sub-{person:02d}_ses-{visit}.nii.gz" for person in range(people) for visit in (1, 2)]
    write_scans(tmp_path / "scans", names)
    rows = [f"{name},{20 + 3 * (index // 2)},{index % 2}" for index, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return ["--scan_folder", str(tmp_path / "scans"), "--labels", str(tmp_path / "labels.csv")]


@pytest.mark.parametrize("seed", range(5))
def test_every_scan_is_in_one_part_and_no_person_in_two(seed):
    parts, ages, person_of = split_cohort(seed=seed, split_seed=seed)
    assert list(parts) == list(PARTS)
    assert sorted(scan for scans in parts.values() for scan in scans) == sorted(ages)
    people = [{person_of[scan] for scan in scans} for scans in parts.values()]
    assert sum(map(len, people)) == len(set(person_of.values()))


def test_the_seed_alone_decides_the_split_and_not_the_order_of_scans():
    parts, ages, person_of = split_cohort(split_seed=3)
    backwards = dict(reversed(ages.items()))
    again = split_by_person(backwards, person_of=person_of, fractions=FRACTIONS, seed=3)
    assert again == parts != split_cohort(split_seed=2)[0]


@pytest.mark.parametrize("people", [7, 11, 20, 53, 100, 416])
@pytest.mark.parametrize(
    "fractions", [FRACTIONS, (0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)]
)
def test_each_part_has_its_fraction_within_one_person_in_every_stratum(people, fractions):
    parts, ages, _ = split_cohort(people, fractions=fractions, most_scans=1)
    part_of = {scan: part for part, scans in parts.items() for scan in scans}
    by_age = [part_of[scan] for scan in sorted(ages, key=ages.get)]
    length = round(1 / min(f for f in fractions if f))
    for part, fraction in zip(PARTS, fractions, strict=True):
        for stratum in map(list, np.array_split(by_age, max(1, people // length))):
            assert abs(stratum.count(part) - fraction * len(stratum)) < 1
        assert abs(len(parts[part]) - fraction * people) <= bool(fraction)


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_of_about_the_same_age(seed):
    parts, ages, _ = split_cohort(200, seed=seed, split_seed=seed)
    years = [[ages[scan] for scan in scans] for scans in parts.values()]
    # Dealt out blindly, means of 30 people aged 18 to 90 would differ by 5 years and more.
    assert np.ptp([np.mean(each) for each in years]) < 4
    assert np.ptp([np.std(each) for each in years]) < 3


@pytest.mark.parametrize(
    "fractions", [(0.7, 0.2), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)]
)
def test_fractions_that_are_not_shares_of_one_are_refused(fractions):
    with pytest.raises(ValueError, match="three shares of 1"):
        split_cohort(30, fractions=fractions)


def test_too_few_people_for_three_folds_are_refused():
    with pytest.raises(ValueError, match=r"3 people are too few .* test would stay empty"):
        split_cohort(3, most_scans=1)


def test_scans_without_person_or_age_are_refused_all_at_once():
    ages, person_of = cohort(10, most_scans=1)
    del person_of["sub-3_ses-0_T1w"]
    ages["sub-4_ses-0_T1w"] = float("nan")
    with pytest.raises(ValueError, match=r"sub-3_ses-0_T1w: no person(.|\n)*sub-4_.*age nan"):
        split_by_person(ages, person_of=person_of, fractions=FRACTIONS, seed=0)


@pytest.mark.parametrize(
    ("scan", "person"),
    [
        ("sub-1_ses-2_T1w", "sub-1"),
        ("sub-10_ses-2_T1w", "sub-10"),
        ("sub-A7", "sub-A7"),
        ("OAS1_0001_MR1", "OAS1_0001"),
        ("OAS1_0001_MR2", "OAS1_0001"),
        ("OAS2_0150_MR3", "OAS2_0150"),
        ("OAS30001_MR_d0129", "OAS30001"),
        ("OAS1_00012", "OAS1_00012"),
        ("IXI002-Guys-0828-T1", "IXI002-Guys-0828-T1"),
        ("my_sub-1_scan", "my_sub-1_scan"),
    ],
)
def test_the_person_is_read_from_bids_and_oasis_names_and_is_else_the_whole_name(scan, person):
    assert find_person(scan) == person


def test_a_pattern_gives_its_first_group_or_all_of_its_match():
    assert find_person("IXI002-Guys-0828", pattern=re.compile(r"IXI(\d+)")) == "002"
    assert find_person("IXI002-Guys-0828", pattern=re.compile(r"IXI\d+")) == "IXI002"
    with pytest.raises(ValueError, match="finds no person"):
        find_person("scan-1", pattern=re.compile(r"IXI\d+"))


def test_links_point_at_the_originals_which_stay_as_they_are(tmp_path):
    flags = write_cohort(tmp_path)
    originals = sorted((tmp_path / "scans").iterdir())
    before = [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in originals]
    split_dataset.main([*flags, "--output_dir", str(tmp_path / "folds"), "--write", "links"])
    assert [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in originals] == before
    assert sorted((tmp_path / "scans").iterdir()) == originals
    links = [link for fold in PARTS for link in (tmp_path / "folds" / fold).iterdir()]
    assert all(link.is_symlink() for link in links)
    assert sorted(link.resolve() for link in links) == [path.resolve() for path in originals]
    assert all(link.name == link.resolve().name for link in links)


@needs_any_name
@pytest.mark.parametrize("write", ["lists", "links"])
def test_names_that_are_not_utf8_stay_usable_in_lists_and_legible_in_the_table(tmp_path, write):
    flags = write_cohort(tmp_path)
    # The sheet has a row for the participant.
    name = f"sub-99_acq-{UNDECODABLE}_T1w.nii"
    (tmp_path / "scans" / name).touch()
    with (tmp_path / "labels.csv").open("a") as sheet:
        sheet.write("sub-99,50,0\n")
    folds = tmp_path / "folds"
    split_dataset.main([*flags, "--output_dir", str(folds), "--write", write])
    assert r"sub-99_acq-caf\udce9_T1w" in (folds / "split.tsv").read_text(encoding="utf-8")
    if write == "lists":
        listed = b"".join((folds / f"{fold}.txt").read_bytes() for fold in PARTS).splitlines()
        assert len(listed) == 41
        assert all(os.path.isfile(path) for path in listed)  # noqa: PTH113  bytes have no Path


def test_lists_name_the_originals_and_make_no_folders(tmp_path):
    flags = write_cohort(tmp_path)
    split_dataset.main([*flags, "--output_dir", str(tmp_path / "folds"), "--write", "lists"])
    written = sorted(path.name for path in (tmp_path / "folds").iterdir())
    assert written == ["split.tsv", "test.txt", "train.txt", "val.txt"]
    lists = [(tmp_path / "folds" / f"{fold}.txt").read_text() for fold in PARTS]
    listed = "".join(lists).splitlines()
    assert sorted(listed) == sorted(map(str, (tmp_path / "scans").iterdir()))


def test_the_table_says_scan_person_age_and_fold(tmp_path, capsys):
    flags = write_cohort(tmp_path)
    split_dataset.main([*flags, "--output_dir", str(tmp_path / "folds")])
    with (tmp_path / "folds" / "split.tsv").open(newline="") as file:
        rows = {row["scan"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert len(rows) == 40
    row = rows["sub-07_ses-2"]
    assert (row["person"], float(row["age"])) == ("sub-07", 41)
    assert (tmp_path / "folds" / row["fold"] / "sub-07_ses-2.nii.gz").exists()
    assert row["fold"] == rows["sub-07_ses-1"]["fold"]
    assert "train  28 scans of 14 people, age" in capsys.readouterr().out


def test_all_scans_without_an_age_are_listed_and_nothing_is_written(tmp_path):
    flags = write_cohort(tmp_path)
    (tmp_path / "scans" / "sub-98_ses-1.nii.gz").touch()
    (tmp_path / "scans" / "sub-99_ses-1.nii.gz").touch()
    with (tmp_path / "labels.csv").open("a") as sheet:
        sheet.write("sub-99_ses-1.nii.gz,n/a,1\n")
    with pytest.raises(ValueError) as error:
        split_dataset.main([*flags, "--output_dir", str(tmp_path / "folds")])
    assert re.search(r"sub-98_ses-1\.nii\.gz: no row in .*labels\.csv", str(error.value))
    assert re.search(r"sub-99_ses-1\.nii\.gz: no age in .*labels\.csv, row 41", str(error.value))
    assert not (tmp_path / "folds").exists()


def test_all_names_that_the_pattern_misses_are_listed(tmp_path):
    flags = write_cohort(tmp_path)
    flags += ["--output_dir", str(tmp_path / "folds"), "--subject_pattern", "sub-0."]
    with pytest.raises(ValueError, match=r"sub-10_ses-1: --subject_pattern(.|\n)*sub-19_ses-2"):
        split_dataset.main(flags)


def test_a_folder_with_files_in_it_is_refused_and_left_alone(tmp_path):
    flags = write_cohort(tmp_path)
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="folds is not empty"):
        split_dataset.main([*flags, "--output_dir", str(tmp_path / "folds")])
    assert [path.name for path in (tmp_path / "folds").iterdir()] == ["mine.txt"]
    with pytest.raises(FileExistsError, match=r"mine\.txt is not a folder"):
        split_dataset.main([*flags, "--output_dir", str(tmp_path / "folds" / "mine.txt")])
