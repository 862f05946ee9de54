"""Folders of other programs: one scan per person, and a word on everything left out."""

from pathlib import Path

import pytest

from data_preprocessing.pipeline.inputs import find_sources
from utils.scans.layouts import judge_name


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a scan")


def found(*inputs):
    """Path below its folder by name, of every scan that the inputs mean."""
    sources = find_sources(inputs, output_dir=Path("results"))
    folder = inputs[0]
    return {source.name: str(source.path.relative_to(folder)) for source in sources}


FREESURFER = ("orig.mgz", "T1.mgz", "nu.mgz", "rawavg.mgz", "orig/001.mgz", "norm.mgz",
              "brain.mgz", "brainmask.mgz", "aseg.mgz", "aparc+aseg.mgz", "ribbon.mgz")  # fmt: skip


def recon_all(folder, *people, names=FREESURFER):
    for person in people:
        touch(folder / person, *(f"mri/{name}" for name in names))
        touch(folder / person, "surf/lh.thickness.fwhm10.fsaverage.mgh", "stats/aseg.stats")


def test_freesurfer_gives_one_scan_per_subject_and_no_average(tmp_path, capsys):
    recon_all(tmp_path, "sub-01", "OAS1_0002", "fsaverage", "fsaverage5")
    assert found(tmp_path) == {
        "OAS1_0002": "OAS1_0002/mri/orig.mgz",
        "sub-01": "sub-01/mri/orig.mgz",
    }
    said = capsys.readouterr().out
    assert "note: FreeSurfer: one scan per subject is taken, mri/orig.mgz" in said
    assert "averages, bases, and copies (.long.) of subjects beside them: 2, the first" in said
    for inner in ("sub-01", "sub-01/mri"):
        assert list(found(tmp_path / inner)) == ["sub-01"]
    assert list(found(tmp_path / "sub-01" / "mri" / "brain.mgz")) == ["sub-01"]


@pytest.mark.parametrize("at", range(1, 8))
def test_freesurfer_without_its_best_file_gives_the_next_best(tmp_path, at):
    recon_all(tmp_path, "bert", names=FREESURFER[at:])
    assert found(tmp_path) == {"bert": f"bert/mri/{FREESURFER[at]}"}


def test_bases_and_longitudinal_copies_are_no_further_scans(tmp_path, capsys):
    recon_all(tmp_path, "s1_tp1", "s1_tp2", "s1", "s1_tp1.long.s1", "s1_tp2.long.s1", "s2.long.s2b")
    assert list(found(tmp_path)) == ["s1_tp1", "s1_tp2", "s2.long.s2b"]
    assert "subjects beside them: 3, the first" in capsys.readouterr().out


def test_scans_beside_a_freesurfer_folder_are_scans_too(tmp_path):
    recon_all(tmp_path, "anna")
    touch(tmp_path / "anna", "later.nii.gz")
    assert list(found(tmp_path)) == ["anna", "later"]


MNI6 = "space-MNI152NLin6Asym_res-2"


def fmriprep(folder, person, *spaces, session=""):
    who = f"{person}_{session}" if session else person
    place = f"{person}/{session}/anat" if session else f"{person}/anat"
    for space in spaces:
        for end in ("desc-preproc_T1w", "desc-brain_mask", "dseg", "label-GM_probseg"):
            touch(folder / place, "_".join(filter(None, (who, space, end))) + ".nii.gz")
    (folder / "dataset_description.json").write_text("{}")


def test_fmriprep_gives_one_t1w_per_person_and_session(tmp_path, capsys):
    spaces = ("", "space-MNI152NLin2009cAsym", MNI6)
    fmriprep(tmp_path, "sub-01", *spaces)
    fmriprep(tmp_path, "sub-02", *spaces, session="ses-1")
    fmriprep(tmp_path, "sub-02", *spaces, session="ses-2")
    fmriprep(tmp_path, "sub-03", *spaces[1:])
    assert list(found(tmp_path)) == [
        "sub-01_desc-preproc_T1w",
        "sub-02_ses-1_desc-preproc_T1w",
        "sub-02_ses-2_desc-preproc_T1w",
        f"sub-03_{MNI6}_desc-preproc_T1w",
    ]
    said = capsys.readouterr().out
    assert "one T1w per person and session is taken, the one in its own space, else" in said
    assert "MNI152NLin6Asym res-2: 7, the first" in said


def test_a_person_in_other_spaces_alone_is_left_out_and_said(tmp_path, capsys):
    fmriprep(tmp_path, "sub-01", "space-MNI152NLin2009cAsym", "space-MNI152NLin6Asym_res-1")
    with pytest.raises(ValueError, match=r"without a sub-.*none in their own space.*: 2, the"):
        found(tmp_path)
    fmriprep(tmp_path, "sub-02", "")
    assert list(found(tmp_path)) == ["sub-02_desc-preproc_T1w"]
    assert "none in their own space and none in MNI152NLin6Asym res-2: 2, the first" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("space", ["space-ACPC", "space-T1w", "space-individual"])
def test_a_name_of_the_scans_own_space_is_no_other_space(tmp_path, space):
    fmriprep(tmp_path, "sub-01", space, "space-MNI152NLin2009cAsym")
    assert list(found(tmp_path)) == [f"sub-01_{space}_desc-preproc_T1w"]


def test_all_derivatives_of_a_dataset_keep_their_rules(tmp_path):
    fmriprep(tmp_path / "fmriprep", "sub-01", "", MNI6)
    recon_all(tmp_path / "freesurfer", "sub-01", "fsaverage")
    (tmp_path / "freesurfer" / "dataset_description.json").write_text("{}")
    touch(tmp_path / "mriqc" / "sub-01" / "anat", "sub-01_desc-background_mask.nii.gz")
    assert list(found(tmp_path)) == ["sub-01", "sub-01_desc-preproc_T1w"]
    assert list(found(tmp_path / "freesurfer")) == ["sub-01"]


def test_parts_of_a_complex_scan_are_left_out_and_counted(tmp_path, capsys):
    anat = tmp_path / "sub-01" / "anat"
    touch(anat, *(f"sub-01_part-{part}_T1w.nii.gz" for part in ("mag", "phase", "real", "imag")))
    touch(tmp_path / "sub-02" / "anat", "sub-02_run-1_part-phase_T1w.nii.gz", "sub-02_T1w.nii")
    for folder in (tmp_path, anat, tmp_path / "sub-01"):
        assert "sub-01_part-mag_T1w" in found(folder)
    assert list(found(tmp_path)) == ["sub-01_part-mag_T1w", "sub-02_T1w"]
    assert "imaginary parts and inversions of a scan (part-, inv-): 4" in capsys.readouterr().out


def test_runs_and_acquisitions_of_a_session_stay_and_are_said(tmp_path, capsys):
    touch(tmp_path / "sub-01" / "anat", "sub-01_run-1_T1w.nii", "sub-01_run-2_T1w.nii")
    touch(tmp_path / "sub-02" / "anat", "sub-02_T1w.nii")
    assert list(found(tmp_path)) == ["sub-01_run-1_T1w", "sub-01_run-2_T1w", "sub-02_T1w"]
    assert "note: several T1w of one session (runs, acquisitions)" in capsys.readouterr().out


def test_people_of_a_dataset_without_a_t1w_are_said(tmp_path, capsys):
    touch(tmp_path / "sub-01" / "anat", "sub-01_T1w.nii")
    touch(tmp_path / "sub-02" / "anat", "sub-02_T2w.nii")
    assert list(found(tmp_path)) == ["sub-01_T1w"]
    assert f"without an anat/*_T1w.nii.gz: 1, the first {tmp_path / 'sub-02'}" in (
        capsys.readouterr().out
    )


def test_datasets_below_a_folder_give_their_t1_alone(tmp_path):
    for dataset in ("ds1", "ds2"):
        touch(tmp_path / dataset / "sub-01" / "anat", "sub-01_T1w.nii", "sub-01_T2w.nii")
        touch(tmp_path / dataset / "sub-01" / "func", "sub-01_task-rest_bold.nii")
        touch(tmp_path / dataset / "derivatives" / "x", "sub-01_T1w.nii")
    assert list(found(tmp_path)) == ["ds1_sub-01_anat_sub-01_T1w", "ds2_sub-01_anat_sub-01_T1w"]


def test_hcp_gives_one_scan_per_subject(tmp_path, capsys):
    touch(
        tmp_path / "100307",
        *(f"T1w/T1w_acpc_dc{end}.nii.gz" for end in ("", "_restore", "_restore_brain")),
        "T1w/T2w_acpc_dc_restore.nii.gz", "T1w/100307/mri/orig.mgz", "T1w/ribbon.nii.gz",
        "MNINonLinear/T1w_restore.nii.gz", "unprocessed/3T/T1w_MPR1/100307_3T_T1w_MPR1.nii.gz",
    )  # fmt: skip
    assert found(tmp_path) == {"100307": "100307/T1w/T1w_acpc_dc_restore.nii.gz"}
    assert list(found(tmp_path / "100307" / "T1w")) == ["100307"]
    assert "note: HCP: one scan per subject" in capsys.readouterr().out


def test_what_spm_and_cat12_made_of_a_scan_is_no_further_scan(tmp_path, capsys):
    touch(tmp_path, "anna.nii", *(f"{made}anna.nii" for made in ("c1", "c2", "m", "wm", "y_")))
    touch(tmp_path / "mri", *(f"{made}anna.nii" for made in ("p0", "mwp1", "mwp2", "wm", "mi")))
    touch(tmp_path, "maria.nii", "wendy.nii", "c1.nii")  # people
    assert list(found(tmp_path)) == ["anna", "c1", "maria", "wendy"]
    said = capsys.readouterr().out
    assert "made of a scan beside it, by their names (SPM: m, c1 in front" in said
    assert "give those by name that are people: 8, the first" in said
    assert list(found(tmp_path / "manna.nii")) == ["manna"]


def test_what_fsl_and_dcm2niix_made_of_a_scan_is_no_further_scan(tmp_path, capsys):
    made = ("_brain", "_brain_pve_0", "_brain_pveseg", "_Crop_1", "_to_MNI_lin", "_real", "_N4")
    touch(tmp_path / "s1", "T1.nii.gz", *(f"T1{end}.nii.gz" for end in made))
    touch(tmp_path / "s2", "T1_brain.nii.gz", "T1_2.nii.gz")  # made of what is not there
    touch(tmp_path / "s3", "anna.nii", "anna_first.nii", "anna_2.nii", "anna_T2.nii")
    assert list(found(tmp_path)) == [
        "T1", "T1_2", "T1_brain", "anna", "anna_2", "anna_T2", "anna_first",
    ]  # fmt: skip
    assert "give those by name that are people: 7, the first" in capsys.readouterr().out


def test_fsl_anat_beside_its_scan_as_it_writes_it_is_no_further_scan(tmp_path, capsys):
    for person in ("s1", "s2"):
        touch(tmp_path / person, "T1.nii.gz", "T1.anat/T1_biascorr_brain.nii.gz")
    touch(tmp_path, "s3/T1.anat/T1_biascorr_brain.nii.gz")
    assert found(tmp_path) == {
        "s1_T1": "s1/T1.nii.gz",
        "s2_T1": "s2/T1.nii.gz",
        "s3_T1": "s3/T1.anat/T1_biascorr_brain.nii.gz",
    }
    assert "give those by name that are people: 2, the first" in capsys.readouterr().out


def test_a_study_with_folders_named_as_those_of_freesurfer_keeps_its_scans(tmp_path):
    folders = ("mri", "stats", "tmp", "label", "surf", "scripts", "T1w")
    touch(tmp_path, *(f"{name}/in_{name}.nii" for name in folders))
    assert len(found(tmp_path)) == len(folders)


def test_scans_beside_a_dataset_and_in_folders_of_bids_are_not_left_out_silently(tmp_path, capsys):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii", "controls/c1.nii", "x.nii", "logs/a.txt")
    touch(tmp_path, "derivatives/sub-01_T1w.nii", "sub-01/ses-1/mri/x.nii", "out/r.nii")
    out = tmp_path / "out"
    assert len(find_sources([tmp_path], output_dir=out)) == 1
    assert f"for other things: 2, the first {tmp_path / 'controls'}" in capsys.readouterr().out
    touch(tmp_path / "plain", "a.nii", "code/b.nii", "derivatives/c.nii", "phenotype/d.tsv")
    assert list(found(tmp_path / "plain")) == ["a"]
    assert f"for other things: 2, the first {tmp_path / 'plain' / 'code'}" in (
        capsys.readouterr().out
    )


def test_images_of_formats_that_are_not_read_are_said(tmp_path, capsys):
    touch(tmp_path, "a.nii", "b.IMG", "b.hdr", "c.nrrd", "d.mnc", "e.nii.bz2")
    assert list(found(tmp_path)) == ["a"]
    assert "images of other formats; convert those that are wanted to NIfTI: 4" in (
        capsys.readouterr().out
    )


def test_the_folder_in_which_one_is_can_be_given(tmp_path, monkeypatch):
    touch(tmp_path, "anna.nii")
    monkeypatch.chdir(tmp_path)
    assert find_sources(["."], output_dir=Path("/results"))[0].path == tmp_path / "anna.nii"


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_T2w", "sub-01_FLAIR", "sub-01_desc-brain_mask", "sub-01_dseg", "sub-01_T1map",
        "sub-01_label-GM_probseg", "sub-01_acq-x_UNIT1", "sub-01_mod-T1w_defacemask",
        "sub-01_task-rest_bold", "T1_brain_mask", "T1_seg", "sub-01_inv-2_MP2RAGE", "aparc+aseg",
        "xBrainSegmentationPosteriors01", "xBrainExtractionMask", "mwp1T1", "smwc2T1", "T2_FLAIR",
        "sub-01_hemi-L_ribbon", "sub-01_part-phase_T1w", "sub-01_space-T1w_desc-aseg_dseg",
    ],
)  # fmt: skip
def test_names_of_other_images_are_known(name):
    assert judge_name(Path(f"{name}.nii.gz"))


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_T1w", "sub-01_part-mag_T1w", "anna_T1", "anna_T2", "T1_brain", "T1_unwarped",
        "IXI533-Guys-1067-T1", "OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc", "brain", "masked",
        "sub-01_rec-norm_T1w", "ExtractedBrain0N4", "mask01_T1", "sub-01+a_T1w", "wm1",
    ],
)  # fmt: skip
def test_names_that_may_be_scans_are_kept(name):
    assert judge_name(Path(f"{name}.nii.gz")) is None


def test_a_file_that_is_named_is_taken_and_its_name_is_doubted(tmp_path, capsys):
    touch(tmp_path, "sub-01_T2w.nii.gz")
    assert list(found(tmp_path / "sub-01_T2w.nii.gz")) == ["sub-01_T2w"]
    assert "note: taken because they were named, though" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"nothing to preprocess .*contrasts by their names: 1"):
        found(tmp_path)


def test_links_to_folders_are_not_followed_and_said(tmp_path, capsys):
    touch(tmp_path / "store", "x.nii")
    touch(tmp_path / "given", "y.nii")
    (tmp_path / "given" / "linked").symlink_to(tmp_path / "store")
    assert list(found(tmp_path / "given")) == ["y"]
    assert "links to folders; give those by name that are wanted: 1, the first" in (
        capsys.readouterr().out
    )
