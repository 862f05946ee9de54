"""Names of BIDS, and what is written for a derivative dataset."""

import json
from pathlib import Path

import pytest

from data_preprocessing.pipeline.inputs import (
    Source,
    describe_dataset,
    find_participant_tables,
)
from data_preprocessing.pipeline.one_scan import BIDS_KEYS
from prediction.items import select_participants
from utils.people.bids_names import OURS, parse_bids_name
from utils.people.matching import Label, Matcher
from utils.scans.leakage import find_person


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("sub-01_T1w", ("sub-01", None)),
        ("sub-01_ses-pre_acq-mprage_run-2_T1w", ("sub-01", "ses-pre")),
        ("sub-01+a_ses-2+_acq-x+y_T1w", ("sub-01+a", "ses-2+")),
        ("sub-01_bold", None),
        ("site_sub-01_T1w", None),
        ("sub-0_1_T1w", None),
        ("OAS1_0001_MR1", None),
    ],
)
def test_participant_and_session_of_a_name(name, who):
    found = parse_bids_name(name)
    assert (found and found[:2]) == who


def test_a_plus_in_a_label_is_part_of_the_label():
    # BIDS takes it since version 1.9. sub-01+a is another person than sub-01.
    rows = Matcher(Label(*person, None, row=1) for person in (("sub-01", 30), ("sub-01+a", 60)))
    assert rows.find(Path("sub-01+a_ses-1_T1w.nii.gz")).age == 60
    assert rows.find(Path("sub-01_ses-1_T1w.nii.gz")).age == 30
    assert find_person("sub-01+a_ses-1_T1w") == "sub-01+a"
    assert parse_bids_name("sub-1_space-a+b_T1w").derivative.endswith(f"sub-1{OURS}_T1w")


@pytest.mark.parametrize(
    ("name", "derivative"),
    [
        ("sub-01_T1w", "sub-01/anat/sub-01_space-MNI152NLin6Asym_res-2_desc-brain_T1w"),
        (
            "sub-01_ses-1_run-2_T1w",
            "sub-01/ses-1/anat/sub-01_ses-1_run-2_space-MNI152NLin6Asym_res-2_desc-brain_T1w",
        ),
        (
            "sub-01_space-MNI152NLin6Asym_res-2_desc-brain_T1w",
            "sub-01/anat/sub-01_space-MNI152NLin6Asym_res-2_desc-brain_T1w",
        ),
    ],
)
def test_the_name_of_a_brain_on_the_grid(name, derivative):
    assert parse_bids_name(name).derivative == derivative


def test_participants_are_asked_for_with_or_without_sub():
    names = ["sub-01_T1w", "sub-1_T1w", "sub-10_ses-1_T1w", "sub-10_ses-2_T1w", "other"]
    sources = [Source(name, Path(f"{name}.nii")) for name in names]
    assert select_participants(sources, ["sub-01", "10"]) == [sources[at] for at in (0, 2, 3)]
    # Of FreeSurfer or DICOM files: the folder's name, without the suffix of a file.
    folder = Source("sub-12_ses-1", Path("sub-12_ses-1/mri/orig.mgz"))
    assert select_participants([*sources, folder], ["12"]) == [folder]
    with pytest.raises(ValueError, match=r"no scan of sub-11, sub-2; found sub-01, sub-1, sub-10"):
        select_participants(sources, ["2", "11", "1"])
    with pytest.raises(ValueError, match="none has a name of BIDS"):
        select_participants(sources[-1:], ["1"])


def test_tables_of_participants_are_found_and_nothing_else(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "participants.tsv").write_text("participant_id\tage\n")
    (tmp_path / "more").mkdir()
    found = find_participant_tables([tmp_path / "more", tmp_path / "data", tmp_path / "a.nii"])
    assert found == [tmp_path / "data" / "participants.tsv"]


def test_derivatives_have_the_participants_of_the_dataset_around_them(tmp_path):
    inner = tmp_path / "derivatives" / "freesurfer" / "sub-01"
    inner.mkdir(parents=True)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\n")
    for given in (inner, inner.parent, inner.parent.parent):
        assert find_participant_tables([given]) == [tmp_path / "participants.tsv"]


def test_a_description_is_written_once_and_never_replaced(tmp_path):
    describe_dataset(tmp_path)
    content = json.loads((tmp_path / "dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"][0]["Name"]
    assert "predictions.*" in (tmp_path / ".bidsignore").read_text().splitlines()
    for name in ("dataset_description.json", ".bidsignore"):
        (tmp_path / name).write_text("mine")
    describe_dataset(tmp_path)
    assert (tmp_path / "dataset_description.json").read_text() == "mine"
    assert (tmp_path / ".bidsignore").read_text() == "mine"


def test_the_record_of_a_scan_has_what_bids_requires_of_a_derivative():
    # The keys that the BIDS validator 2 asks for; without them it reports an error.
    assert BIDS_KEYS["SkullStripped"] is True
    assert {"Resolution", "SpatialReference", "Description"} <= BIDS_KEYS.keys()
