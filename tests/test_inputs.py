import os
from pathlib import Path

import pytest

from data_preprocessing.pipeline.inputs import find_sources


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a scan")


def sources_of(*inputs):
    return find_sources(inputs, output_dir=Path("results"))


def names(*inputs):
    return [source.name for source in sources_of(*inputs)]


def test_files_are_named_for_themselves_and_found_at_any_depth(tmp_path):
    touch(tmp_path / "b.nii", tmp_path / "deep" / "er" / "a.nii.gz", tmp_path / "c.mgz")
    assert names(tmp_path) == ["a", "b", "c"]
    assert names(tmp_path / "b.nii", tmp_path) == ["a", "b", "c"]  # each once


def test_scans_of_one_name_get_the_folders_that_tell_them_apart(tmp_path):
    scans = [tmp_path / person / "scans" / "T1.mgz" for person in ("anna", "bob")]
    touch(*scans, tmp_path / "carl.nii.gz")
    assert names(tmp_path) == ["anna_scans_T1", "bob_scans_T1", "carl"]
    assert names(*scans[:1]) == ["T1"]


def test_names_that_differ_in_case_or_blanks_alone_do_not_collide(tmp_path):
    touch(tmp_path / "x" / "T1.nii", tmp_path / "y" / "t1.nii")
    found = names(tmp_path)
    assert len({name.lower() for name in found}) == 2
    touch(tmp_path / "z" / "a b.nii", tmp_path / "z" / "a_b.nii")
    with pytest.raises(ValueError, match="cannot be told apart"):
        names(tmp_path / "z")


def test_twins_of_one_folder_are_refused(tmp_path):
    touch(tmp_path / "x" / "a.nii", tmp_path / "x" / "a.nii.gz")
    with pytest.raises(ValueError, match=r"a\.nii.*a\.nii\.gz.*rename"):
        names(tmp_path / "x")
    for name in (b"\xe9.nii", b"\xe8.nii"):  # not UTF-8: both become _
        touch(tmp_path / "y" / os.fsdecode(name))
    with pytest.raises(ValueError, match="cannot be told apart"):
        names(tmp_path / "y")


def test_only_raw_t1_of_a_bids_dataset_are_taken_with_subject_and_session(tmp_path):
    touch(
        tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz",
        tmp_path / "sub-1" / "anat" / "sub-1_T2w.nii.gz",
        tmp_path / "sub-1" / "func" / "sub-1_task-rest_bold.nii.gz",
        tmp_path / "sub-2" / "ses-b" / "anat" / "sub-2_ses-b_run-1_T1w.nii",
        tmp_path / "sub-2" / "ses-a" / "anat" / "sub-2_ses-a_T1w.nii.gz",
        tmp_path / "derivatives" / "sub-1" / "anat" / "sub-1_T1w.nii.gz",
    )
    assert names(tmp_path) == ["sub-1_T1w", "sub-2_ses-a_T1w", "sub-2_ses-b_run-1_T1w"]


def test_every_unusable_input_is_named_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "notes.txt")
    given = [tmp_path / "empty", tmp_path / "notes.txt", tmp_path / "missing.nii"]
    with pytest.raises(ValueError, match=r"(?s)empty: nothing.*notes\.txt: .*missing\.nii: no"):
        sources_of(*given)


def test_a_source_is_known_by_its_content(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "b.nii")
    first, second = sources_of(tmp_path)
    assert first.sha256() == second.sha256()
    second.path.write_bytes(b"another")
    assert first.sha256() != second.sha256()


def test_results_inside_the_inputs_are_not_taken_for_scans(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "out" / "a.nii.gz", tmp_path / "out" / "x" / "warp.nii")
    found = find_sources([tmp_path], output_dir=tmp_path / "out")
    assert [source.path for source in found] == [tmp_path / "a.nii"]


def test_folder_of_the_scans_is_refused_for_the_results(tmp_path):
    touch(tmp_path / "a.nii")
    for given in (tmp_path, tmp_path / "a.nii"):
        with pytest.raises(ValueError, match=r"a\.nii: lies in --output_dir itself"):
            find_sources([given], output_dir=tmp_path)


def test_one_file_in_two_spellings_is_one_scan(tmp_path, monkeypatch):
    touch(tmp_path / "x" / "a.nii")
    monkeypatch.chdir(tmp_path / "x")
    assert names("a.nii", "../x/a.nii", tmp_path / "x" / "a.nii") == ["a"]


def test_link_that_leads_nowhere_is_a_scan_that_will_fail(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "annex")
    assert names(tmp_path) == names(tmp_path / "a.nii.gz") == ["a"]


def test_folders_named_for_subjects_need_not_be_bids(tmp_path):
    touch(tmp_path / "sub-1" / "T1.nii.gz", tmp_path / "sub-2" / "T1.nii.gz")
    assert names(tmp_path) == ["sub-1_T1", "sub-2_T1"]
    (tmp_path / "dataset_description.json").write_text("{}")
    with pytest.raises(ValueError, match="BIDS dataset without"):
        names(tmp_path)


def test_an_output_of_fsl_anat_is_one_scan_named_for_its_folder(tmp_path):
    for person in ("sub-1", "sub-2"):
        touch(
            *(tmp_path / f"{person}.anat" / name for name in ("T1.nii.gz", "T1_to_MNI_lin.nii.gz"))
        )
    touch(tmp_path / "sub-2.anat" / "T1_biascorr_brain.nii.gz")
    assert [(source.name, source.path.name) for source in sources_of(tmp_path)] == [
        ("sub-1", "T1.nii.gz"),
        ("sub-2", "T1_biascorr_brain.nii.gz"),
    ]
    assert names(tmp_path / "sub-2.anat") == ["sub-2"]
    (tmp_path / "sub-3.anat").mkdir()
    # A scan that will fail by its name; the others go on.
    assert names(tmp_path) == ["sub-1", "sub-2", "sub-3"]
