"""Public cohorts: from their tables and folders to label sheets and folders of scans."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import ROOT, UNDECODABLE, needs_any_name

from data_preprocessing import datasets
from data_preprocessing.public import tables as public_tables
from data_preprocessing.public.releases import RELEASES, recognise
from data_preprocessing.public.unoriented import (
    QUASIRAW_SHAPE,
    T88_SHAPE,
    read_oasis2_raw,
    read_quasiraw,
    read_t88,
)
from utils.files import write_xls
from utils.people.labels import read_labels
from utils.scans.leakage import find_person

DATA = Path(os.environ.get("TSAN_DATA", ""))
needs_data = pytest.mark.skipif("TSAN_DATA" not in os.environ, reason="TSAN_DATA is not set")
T88 = "disc1/{0}/PROCESSED/MPRAGE/T88_111/{0}_mpr_n{1}_anon_111_t88_masked_gfc.img"
OASIS1_ROWS = """ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay
OAS1_0001_MR1,F,R,74,2,3,29,0,1344,0.743,1.306,N/A
OAS1_0003_MR1,F,R,73,4,3,27,0.5,1454,0.708,1.207,N/A
OAS1_0004_MR1,M,R,28,,,,,1588,0.803,1.105,N/A
OAS1_0061_MR1,F,R,20,,,,,1341,0.851,1.309,N/A
OAS1_0061_MR2,F,R,20,,,,,1330,0.849,1.320,15
OAS1_0099_MR1,M,R,40,,,,,1500,0.8,1.1,N/A
"""
ADNIMERGE = """RID,PTID,VISCODE,SITE,EXAMDATE,DX_bl,AGE,PTGENDER,DX,EXAMDATE_bl
295,002_S_0295,m24,2,2008-05-20,CN,84.8,Male,MCI,2006-04-18
295,002_S_0295,bl,2,2006-04-18,CN,84.8,Male,CN,2006-04-18
413,002_S_0413,bl,2,2006-05-02,CN,76.3,Female,CN,2006-05-02
"""
IDA = """"Image Data ID","Subject","Group","Sex","Age","Visit","Modality","Description","Acq Date"
"I13722","002_S_0295","CN","M","85","1","MRI","MP-RAGE","4/18/2006"
"I118671","002_S_0295","CN","M","87","9","MRI","MPR; GradWarp","5/19/2008"
"I13893","002_S_0413","CN","F","76","1","MRI","MP-RAGE","5/02/2006"
"""
ADNI_SCANS = (
    "002_S_0295/MP-RAGE/2006-04-18_08_20_30.0/I13722/"
    "ADNI_002_S_0295_MR_MP-RAGE_br_raw_20060418193713091_1_S13408_I13722.nii",
    "002_S_0295/MPR__GradWarp__B1_Correction__N3__Scaled_2/2008-05-19_10_05_56.0/S50000/"
    "ADNI_002_S_0295_MR_MPR__GradWarp__B1_Correction__N3__Scaled_2_Br_20081001114556321_"
    "S13408_I118671.nii",
)


def write_table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def predict_ages(sheet):
    """Age, sex, group and site by name, of participants.tsv."""
    return {
        name: tuple(row[column] for column in ("age", "sex", "group", "site"))
        for name, row in sheet.items()
    }


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"voxels")


def write_analyze(path, voxels, *, sizes=(1, 1, 1)):
    """Analyze 7.5 as in the release: big-endian, 16 bit, a fourth axis, a meaningless origin."""
    header = nibabel.AnalyzeHeader(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    image = nibabel.AnalyzeImage(voxels.astype(">i2")[..., None], None, header)
    image.header.set_zooms((*sizes, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    # Blanks, where SPM would read the origin.
    raw = bytearray(path.with_suffix(".hdr").read_bytes())
    raw[253:263] = b" " * 10
    path.with_suffix(".hdr").write_bytes(bytes(raw))


def read_tsv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def run(dataset, *tables, tmp_path):
    """Runs the program on tmp_path/scans; rows of participants.tsv by name, and left_out.tsv."""
    out = tmp_path / "out"
    folders = ["--scan_folder", str(tmp_path / "scans"), "--output_dir", str(out)]
    datasets.main([dataset, "--tables", *map(str, tables), *folders])
    sheet = {row["participant_id"]: row for row in read_tsv(out / "participants.tsv")}
    by_reader = read_labels(out / "participants.tsv").rows
    published = read_labels(out / "Dataset.xls").rows
    for name, row in sheet.items():
        sex = {"F": 0, "M": 1, "n/a": None}[row["sex"]]
        assert (by_reader[name].age, by_reader[name].sex) == (float(row["age"]), sex)
        assert (published[name].age, published[name].sex) == (float(row["age"]), sex)
    return sheet, read_tsv(out / "left_out.tsv")


def reasons(left_out, what):
    return {Path(row["where"]).name: row["reason"] for row in left_out if row["what"] == what}


@pytest.mark.parametrize("name", RELEASES)
def test_the_example_of_every_release_is_recognised_under_any_folder(name):
    release = RELEASES[name]
    for path in (Path("/data") / release.example, Path(release.example)):
        (scan,) = recognise([path], release, days={})
        assert release.name(scan)


@pytest.mark.parametrize("name", ["oasis1", "oasis2", "oasis3", "adni", "bids"])
def test_splitting_knows_the_person_in_the_names_of_datasets_with_several_sessions(name):
    release = RELEASES[name]
    (scan,) = recognise([Path(release.example)], release, days={})
    person = find_person(release.name(scan))
    assert scan.person.replace("_", "") in person.replace("_", "")
    assert person != release.name(scan)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("oasis1", "OAS1_0001_MR1/FSL_SEG/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc_fseg.img"),
        ("oasis1", "OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.img"),
        ("oasis2", "OAS2_0002_MR1/RAW/3906-3.nifti.img"),
        ("oasis3", "sub-OAS30001_ses-d0129_acq-TSE_T2w.nii.gz"),
        ("adni", "ADNI_002_S_0295_MR_MPR____N3__Mask_Br_20070717184209073_S13408_I60000.nii"),
        ("adni", "ADNI_002_S_0295_MR_Axial_FLAIR_br_raw_20110609_1_S1_I239487.nii"),
        ("pac2019", "gm/sub0_gm.nii.gz"),
        ("ixi", "IXI002-Guys-0828-T2.nii.gz"),
        ("ixi", "wIXI002-Guys-0828-T1.nii.gz"),
        ("openbhb", "sub-1_preproc-cat12vbm_desc-gm_T1w.npy"),
        ("bids", "sub-01_FLAIR.nii.gz"),
    ],
)
def test_what_is_no_t1_scan_of_the_release_is_not_taken_for_one(name, path):
    assert not recognise([Path("/data") / path], RELEASES[name], days={})


def oasis1_discs(folder):
    voxels = np.zeros(T88_SHAPE, np.int16)
    voxels[20:150, 30:180, 20:140] = 1000
    sessions = {"OAS1_0001_MR1": 4, "OAS1_0003_MR1": 3, "OAS1_0004_MR1": 6, "OAS1_0061_MR1": 4}
    for session, runs in (sessions | {"OAS1_0061_MR2": 5, "OAS1_0500_MR1": 4}).items():
        write_analyze(folder / T88.format(session, runs), voxels)


def test_oasis1_is_parted_into_healthy_retest_and_dementia(tmp_path):
    oasis1_discs(tmp_path / "scans")
    touch(tmp_path / "scans", "disc1/OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.img")
    table = write_table(tmp_path / "oasis_cross-sectional.csv", OASIS1_ROWS)
    sheet, left_out = run("oasis1", table, tmp_path=tmp_path)
    for group, names in {
        "healthy": ("0001_MR1", "0004_MR1", "0061_MR1"),
        "retest": ("0061_MR2",),
        "dementia": ("0003_MR1",),
    }.items():
        found = sorted(path.name for path in (tmp_path / "out" / group).iterdir())
        assert found == [f"OAS1_{name}.nii.gz" for name in names]
    assert sheet["OAS1_0061_MR2"]["person"] == sheet["OAS1_0061_MR1"]["person"] == "OAS1_0061"
    assert predict_ages(sheet)["OAS1_0004_MR1"] == ("28.0", "M", "healthy", "n/a")
    assert list(reasons(left_out, "row").values()) == ["no scan"]
    assert "OAS1_0099_MR1" in str(left_out)
    assert list(reasons(left_out, "scan").values()) == ["no row in the tables"]
    assert list(reasons(left_out, "file")) == ["OAS1_0001_MR1_mpr-1_anon.img"]
    image = nibabel.load(tmp_path / "out" / "healthy" / "OAS1_0001_MR1.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")


def test_t88_voxels_are_kept_and_named_from_right_to_left_back_to_front_bottom_to_top(tmp_path):
    voxels = np.zeros(T88_SHAPE, np.int16)
    voxels[170, 10, 5] = 300
    write_analyze(tmp_path / "a.img", voxels)
    image = read_t88(tmp_path / "a.img")
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels)
    assert np.asarray(image.dataobj).dtype.isnative
    # The highest first index is furthest left, the lowest second furthest back.
    assert (image.affine @ (170, 10, 5, 1))[:3].tolist() == [-83, -113, -67]
    assert (image.affine @ (87, 123, 72, 1))[:3].tolist() == [0, 0, 0]


def test_oasis2_raw_axes_run_to_front_top_and_left(tmp_path):
    voxels = np.arange(6 * 4 * 8).reshape(6, 4, 8)
    write_analyze(tmp_path / "mpr-1.nifti.img", voxels, sizes=(1, 1, 1.25))
    image = read_oasis2_raw(tmp_path / "mpr-1.nifti.img")
    assert nibabel.aff2axcodes(image.affine) == ("A", "S", "L")
    np.testing.assert_allclose(image.header.get_zooms(), (1, 1, 1.25))
    np.testing.assert_allclose(image.affine @ (2.5, 1.5, 3.5, 1), (0, 0, 0, 1), atol=1e-9)


def test_quasiraw_arrays_lie_on_the_fsl_1_mm_grid(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 1, *QUASIRAW_SHAPE)))
    image = read_quasiraw(tmp_path / "a.npy")
    assert image.shape == QUASIRAW_SHAPE
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
    # The corner of FSL's 2 mm grid.
    assert (image.affine @ (0, 0, 0, 1))[:3].tolist() == [90, -126, -72]


@pytest.mark.parametrize("read", [read_t88, read_oasis2_raw, read_quasiraw])
def test_a_volume_that_cannot_be_read_is_named(read, tmp_path):
    touch(tmp_path, "broken.img", "broken.hdr")
    with pytest.raises(ValueError, match=r"broken\.img"):
        read(tmp_path / "broken.img")


def test_an_unreadable_scan_is_left_out_and_the_others_are_not(tmp_path):
    oasis1_discs(tmp_path / "scans")
    broken = tmp_path / "scans" / T88.format("OAS1_0004_MR1", 6)
    broken.write_bytes(broken.read_bytes()[:1000])
    table = write_table(tmp_path / "t.csv", OASIS1_ROWS)
    sheet, left_out = run("oasis1", table, tmp_path=tmp_path)
    assert "OAS1_0004_MR1" not in sheet
    assert len(sheet) == 4
    assert "unreadable" in reasons(left_out, "scan")[broken.name]


def test_oasis2_takes_the_age_of_the_session_and_its_first_run(tmp_path):
    table = write_table(
        tmp_path / "oasis_longitudinal.csv",
        "\ufeffSubject ID;MRI ID;Group;Visit;MR Delay;M/F;Hand;Age;CDR\n"
        "OAS2_0001;OAS2_0001_MR1;Converted;1;0;M;R;87;0\n"
        "OAS2_0001;OAS2_0001_MR2;Converted;2;457;M;R;88;0,5\n",
    )
    for session in ("MR1", "MR2"):
        for at in (1, 2):
            path = f"OAS2_RAW_PART1/OAS2_0001_{session}/RAW/mpr-{at}.nifti.img"
            write_analyze(tmp_path / "scans" / path, np.full((4, 4, 3), at))
    sheet, left_out = run("oasis2", table, tmp_path=tmp_path)
    assert {name: row["age"] for name, row in sheet.items()} == {
        "OAS2_0001_MR1": "87.0",
        "OAS2_0001_MR2": "88.0",
    }
    assert sheet["OAS2_0001_MR2"]["group"] == "Converted, CDR 0.5"
    assert [row["reason"][:14] for row in left_out] == ["a further scan"] * 2
    image = nibabel.load(tmp_path / "out" / "scans" / "OAS2_0001_MR2.nii.gz")
    assert np.asarray(image.dataobj).max() == 1


OASIS3_SCANS = (
    "OAS30001_MR_d0129/anat2/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz",
    "OAS30001_MR_d0129/anat3/sub-OAS30001_ses-d0129_run-02_T1w.nii.gz",
    "OAS30001_MR_d3132/anat4/sub-OAS30001_sess-d3132_T1w.nii.gz",
    "OAS30002_MR_d0653/anat2/sub-OAS30002_ses-d0653_T1w.nii.gz",
)
OASIS3_TABLES = {
    "OASIS3_demographics.csv": "OASISID,Subject_accession,AgeatEntry,AgeatDeath,GENDER,EDUC\n"
    "OAS30001,OASIS_1,65.1945,,2,12\nOAS30002,OASIS_2,67.2521,.,1,18\n",
    "OASIS3_UDSb4_cdr.csv": "OASISID,OASIS_session_label,days_to_visit,age at visit,MMSE,CDRTOT\n"
    "OAS30001,OAS30001_UDSb4_d0000,0,65.19,28,0.0\n"
    "OAS30001,OAS30001_UDSb4_d3025,3025,73.5,25,0.5\n",
}
OLD_OASIS3_TABLES = {
    "subjects.csv": "Subject,M/F,Hand\nOAS30001,F,R\nOAS30002,M,R\n",
    "ADRC Clinical Data.csv": "ADRC_ADRCCLINICALDATA ID,Subject,Date,Age,mmse,ageAtEntry,cdr,dx1\n"
    "OAS30001_ClinicalData_d0000,OAS30001,,,28.0,65.1945,0.0,Cognitively normal\n"
    "OAS30001_ClinicalData_d3025,OAS30001,,,25.0,65.194,0.5,AD Dementia\n"
    "OAS30002_ClinicalData_d0000,OAS30002,,,29.0,67.2521,,.\n",
}


@pytest.mark.parametrize("texts", [OASIS3_TABLES, OLD_OASIS3_TABLES], ids=["current", "first"])
def test_oasis3_ages_are_at_the_scan_and_groups_of_the_nearest_visit(texts, tmp_path):
    paths = [write_table(tmp_path / name, text) for name, text in texts.items()]
    touch(tmp_path / "scans", *OASIS3_SCANS)
    sheet, left_out = run("oasis3", *paths, tmp_path=tmp_path)
    assert list(sheet) == ["OAS30001_MR_d0129", "OAS30001_MR_d3132", "OAS30002_MR_d0653"]
    late = sheet["OAS30001_MR_d3132"]
    assert float(late["age"]) == pytest.approx(65.1945 + 3132 / 365.25, abs=1e-3)
    assert (late["sex"], late["group"], late["session"]) == ("F", "CDR 0.5", "d3132")
    assert sheet["OAS30001_MR_d0129"]["group"] == "CDR 0"
    assert (sheet["OAS30002_MR_d0653"]["sex"], sheet["OAS30002_MR_d0653"]["group"]) == ("M", "n/a")
    assert list(reasons(left_out, "scan")) == ["sub-OAS30001_ses-d0129_run-02_T1w.nii.gz"]
    link = tmp_path / "out" / "scans" / "OAS30001_MR_d3132.nii.gz"
    assert link.readlink() == tmp_path / "scans" / OASIS3_SCANS[2]


@pytest.mark.parametrize(
    ("listing", "moved"), [(False, False), (True, False), (True, True)], ids=str
)
def test_adni_ages_are_at_the_scan_not_at_baseline(listing, moved, tmp_path, capsys):
    tables = [write_table(tmp_path / "ADNIMERGE.csv", ADNIMERGE)]
    tables += [write_table(tmp_path / "ida.csv", IDA)] * listing
    touch(tmp_path / "scans", *(Path(name).name if moved else name for name in ADNI_SCANS))
    sheet, left_out = run("adni", *tables, tmp_path=tmp_path)
    later = f"{84.8 + 762 / 365.25:.3f}"
    assert predict_ages(sheet) == {
        "sub-ADNI002S0295_ses-20060418_I13722": ("84.8", "M", "CN", "2"),
        "sub-ADNI002S0295_ses-20080519_I118671": (later, "M", "MCI", "2"),
    }
    assert "002_S_0413" in str(left_out)
    assert "note" not in capsys.readouterr().out


def test_adni_scans_without_their_folders_or_a_listing_have_no_date(tmp_path):
    touch(tmp_path / "scans", *(Path(name).name for name in ADNI_SCANS))
    # The number in the file name is the date of archiving.
    with pytest.raises(ValueError, match="left out: 2 x scan: no scan date"):
        run("adni", write_table(tmp_path / "ADNIMERGE.csv", ADNIMERGE), tmp_path=tmp_path)


def test_adni_listing_alone_gives_rounded_ages_and_says_so(tmp_path, capsys):
    touch(tmp_path / "scans", *ADNI_SCANS)
    sheet, _ = run("adni", write_table(tmp_path / "ida.csv", IDA), tmp_path=tmp_path)
    assert [row["age"] for row in sheet.values()] == ["85.0", "87.0"]
    assert "rounded" in capsys.readouterr().out


def test_adni_without_any_baseline_date_gives_no_age(tmp_path):
    text = "PTID,VISCODE,EXAMDATE,AGE,PTGENDER\n002_S_0295,m24,5/20/2008,84.8,Male\n"
    touch(tmp_path / "scans", *ADNI_SCANS)
    with pytest.raises(ValueError, match="2 x scan: the tables cannot be trusted on it"):
        run("adni", write_table(tmp_path / "ADNIMERGE.csv", text), tmp_path=tmp_path)


def test_ixi_duplicates_blanks_and_contradictions_are_told_apart(tmp_path):
    header = ["IXI_ID", "SEX_ID (1=m, 2=f)", "HEIGHT", "ETHNIC_ID", "DOB", "STUDY_DATE", "AGE"]
    rows = [
        [2, 2, 164, 1, "1970", "2005", 35.800136892539356],
        [12, 1, 175, 1, "", "", 38.78],
        [12, 0, 0, 0, "", "", ""],  # a copy with zeros
        [341, 1, 170, 1, "", "2006", ""],  # no date of birth
        [219, 1, 170, 1, "", "", 31.2],
        [219, 1, 170, 1, "", "", 62.9],
        [328, 1, 170, 1, "", "", 40.0],
        [328, 2, 170, 1, "", "", 40.0],
        [700, 1, 170, 1, "", "", 50.0],
    ]
    table = write_xls(tmp_path / "IXI.xls", [header, *rows])
    numbers = ("002-Guys-0828", "012-HH-1211", "341-Guys-0936", "219-Guys-0894", "328-Guys-0889",
               "116-Guys-0739")  # fmt: skip
    touch(tmp_path / "scans", *(f"IXI{number}-T1.nii.gz" for number in numbers))
    sheet, left_out = run("ixi", table, tmp_path=tmp_path)
    assert predict_ages(sheet) == {
        "IXI002-Guys-0828-T1": ("35.8", "F", "n/a", "Guys"),
        "IXI012-HH-1211-T1": ("38.78", "M", "n/a", "HH"),
    }
    found = reasons(left_out, "scan")
    assert found["IXI341-Guys-0936-T1.nii.gz"] == "no age in the tables"
    assert found["IXI116-Guys-0739-T1.nii.gz"] == "no row in the tables"
    assert "age 31.2" in found["IXI219-Guys-0894-T1.nii.gz"]
    assert "62.9" in found["IXI219-Guys-0894-T1.nii.gz"]
    assert "sex M" in found["IXI328-Guys-0889-T1.nii.gz"]
    assert [row["where"][-3:] for row in left_out if row["what"] == "row"] == ["700"]


ONE_SESSION = {
    "pac2019": (
        "subject_ID,age,gender,site\nsub1,20.5,f,4\nsub10,71,m,0\n",
        ("raw/sub10.nii.gz", "raw/sub1.nii"),
        {"sub1": ("20.5", "F", "n/a", "4"), "sub10": ("71.0", "M", "n/a", "0")},
    ),
    "camcan": (
        "participant_id,age,hand,gender_code,tiv_cubicmm\n"
        "sub-CC110033,24,100,1,1500000\nsub-CC110037,18.75,NaN,2,NaN\n",
        ("sub-CC110033/anat/sub-CC110033_T1w.nii.gz", "sub-CC110037_T1w.nii.gz"),
        {
            "sub-CC110033_T1w": ("24.0", "M", "n/a", "n/a"),
            "sub-CC110037_T1w": ("18.75", "F", "n/a", "n/a"),
        },
    ),
    "camcan standard": (
        "CCID,Age,Sex,Hand\nCC110033,24,MALE,100\n",
        ("sub-CC110033_T1w.nii.gz",),
        {"sub-CC110033_T1w": ("24.0", "M", "n/a", "n/a")},
    ),
    "openbhb": (
        "participant_id,study,sex,age,site,diagnosis,siteXacq,split\n"
        "100053248969,1,female,21.3,7,control,7,train\n17,2,male,64,1,control,1,train\n",
        ("sub-100053248969_preproc-quasiraw_T1w.npy", "sub-17/anat/sub-17_ses-1_T1w.nii.gz"),
        {
            "sub-100053248969_preproc-quasiraw_T1w": ("21.3", "F", "control", "7"),
            "sub-17_ses-1_T1w": ("64.0", "M", "control", "1"),
        },
    ),
}


@pytest.mark.parametrize("name", ONE_SESSION)
def test_ages_sexes_groups_and_sites_are_those_of_the_table(name, tmp_path):
    text, scans, expected = ONE_SESSION[name]
    touch(tmp_path / "scans", *scans, "gm/sub1_gm.nii.gz")
    if name == "openbhb":  # its arrays are read, scans of other suffixes are linked
        np.save(tmp_path / "scans" / scans[0], np.ones((1, 1, *QUASIRAW_SHAPE), np.uint8))
    table = write_table(tmp_path / "participants.csv", text)
    sheet, left_out = run(name.split()[0], table, tmp_path=tmp_path)
    assert predict_ages(sheet) == expected
    assert [row["what"] for row in left_out] == ["file"]
    for path in (tmp_path / "out" / "scans").iterdir():
        assert path.is_symlink() == ("quasiraw" not in path.name)


def test_bids_leaves_later_sessions_out_where_the_table_has_one_age(tmp_path, capsys):
    text = "participant_id\tage\tsex\tname\nsub-01\t30\tf\tZoë\nsub-02\t89+\tm\t\nsub-03\t-1\tm\t\n"
    text += "sub-04\t50\tm\t\n"
    names = ("sub-01_ses-1", "sub-01_ses-1_run-2", "sub-01_ses-2", "sub-02_ses-1", "sub-03_ses-1")
    touch(tmp_path / "scans", *(f"{name}_T1w.nii.gz" for name in names), "._sub-04_T1w.nii.gz")
    sheet, left_out = run("bids", write_table(tmp_path / "p.tsv", text), tmp_path=tmp_path)
    assert list(sheet) == ["sub-01_ses-1_T1w"]
    assert sheet["sub-01_ses-1_T1w"]["sex"] == "F"
    assert {name[:18]: reason[:24] for name, reason in reasons(left_out, "scan").items()} == {
        "sub-01_ses-1_run-2": "a further scan of the sa",
        "sub-01_ses-2_T1w.n": "the tables cannot be tru",
        "sub-02_ses-1_T1w.n": "no age in the tables",
        "sub-03_ses-1_T1w.n": "no age in the tables",
    }
    assert reasons(left_out, "row") == {"p.tsv, row 5: sub-04": "no scan"}
    assert "p.tsv, row 4: sub-03: age '-1'" in capsys.readouterr().out


def test_bids_takes_sessions_units_and_levels_as_its_tables_say(tmp_path):
    names = [f"sub-{n}_ses-{s}_T1w.nii.gz" for n in (1, 2) for s in (1, 2)]
    touch(tmp_path / "scans", *names)
    (tmp_path / "participants.json").write_text(
        '{"age": {"Units": "months"}, "sex": {"Levels": {"1": "male", "2": "female"}}}'
    )
    rows = ("participant_id\tsession_id\tage\tsex\tgroup", "sub-1\tses-1\t24\t1\tx",
            "sub-1\tses-2\t96\t1\tx", "sub-2\tses-1\t36\t2\ty")  # fmt: skip
    table = write_table(tmp_path / "participants.tsv", "\n".join(rows) + "\n")
    sheet, left_out = run("bids", table, tmp_path=tmp_path)
    assert {name: (row["age"], row["sex"], row["group"]) for name, row in sheet.items()} == {
        "sub-1_ses-1_T1w": ("2.0", "M", "x"),
        "sub-1_ses-2_T1w": ("8.0", "M", "x"),
        "sub-2_ses-1_T1w": ("3.0", "F", "y"),
    }
    (reason,) = reasons(left_out, "scan").values()
    assert "no row of session 2" in reason


def test_bids_codes_of_sexes_are_the_users(tmp_path, capsys):
    touch(tmp_path / "scans", "sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz")
    table = write_table(
        tmp_path / "p.tsv", "participant_id\tage\tsex\nsub-1\t50\t1\nsub-2\t60\t2\n"
    )
    sheet, _ = run("bids", table, tmp_path=tmp_path)
    assert [row["sex"] for row in sheet.values()] == ["n/a", "n/a"]
    assert "--sex_codes 1=male 2=female" in capsys.readouterr().out
    folders = ["--scan_folder", str(tmp_path / "scans"), "--output_dir", str(tmp_path / "b")]
    codes = ["--sex_codes", "1=female", "2=male"]
    datasets.main(["bids", "--tables", str(table), *folders, *codes])
    assert [row["sex"] for row in read_tsv(tmp_path / "b" / "participants.tsv")] == ["F", "M"]


def test_bids_labels_with_a_plus_find_their_own_row(tmp_path):
    text = "participant_id\tage\tsex\nsub-01\t30\tF\nsub-01+a\t60\tM\n"
    touch(tmp_path / "scans", "sub-01_T1w.nii.gz", "sub-01+a_T1w.nii.gz")
    sheet, _ = run("bids", write_table(tmp_path / "p.tsv", text), tmp_path=tmp_path)
    assert {name: float(row["age"]) for name, row in sheet.items()} == {
        "sub-01_T1w": 30,
        "sub-01+a_T1w": 60,
    }


@pytest.mark.parametrize(
    ("dataset", "texts", "problems"),
    [
        (
            "oasis1",
            ["ID,M/F,Age,CDR\nOAS1_0001_MR1,X,74,0\nOAS1_0002_MR1,F,old,0\n"
             "OAS1_0003_MR1,F,70,mild\n"],
            ["row 2: sex 'X'", "row 3: age 'old'", "row 4: cdr 'mild'"],
        ),
        # Everybody would be healthy.
        (
            "oasis1",
            ["ID,M/F,Age\nOAS1_0001_MR1,F,74\n"],
            ["0.csv: as oasis_cross-sectional.csv it lacks cdr (cdr); columns found: ID, M/F, Age"],
        ),
        (
            "adni",
            ["PTID,AGE,PTGENDER,VISCODE\nx,1,Male,bl\n",
             "Subject,Sex,Age,Image Data ID\nx,F,3,I1\n"],
            ["0.csv: as ADNIMERGE.csv it lacks examined (examdate)",
             "1.csv: as the .csv of an IDA download it lacks scanned"],
        ),
        (
            "adni",
            [ADNIMERGE.replace("2006-05-02,CN,76.3", "2 May 2006,CN,76.3")],
            ["row 4: examined '2 May 2006', expected a date"],
        ),
    ],
)  # fmt: skip
def test_all_problems_of_all_tables_are_reported_at_once(dataset, texts, problems, tmp_path):
    tables = [write_table(tmp_path / f"{at}.csv", text) for at, text in enumerate(texts)]
    with pytest.raises(ValueError) as caught:
        RELEASES[dataset].read(tables)
    for problem in problems:
        assert problem in str(caught.value)


def test_a_folder_without_any_scan_of_the_release_says_what_was_expected(tmp_path):
    touch(tmp_path / "scans", "a.nii")
    table = write_table(tmp_path / "t.csv", OASIS1_ROWS)
    with pytest.raises(ValueError, match="among 1 volumes; expected files such as disc1/OAS1_0001"):
        run("oasis1", table, tmp_path=tmp_path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="no such folder of scans"):
        datasets.find_volumes(tmp_path / "none")


def test_a_folder_that_holds_anything_is_not_written_to(tmp_path):
    touch(tmp_path / "out", "mine.txt")
    with pytest.raises(FileExistsError, match="is not empty"):
        run("ixi", tmp_path / "IXI.xls", tmp_path=tmp_path)


def test_ages_and_groups_without_dates_are_those_of_the_table():
    subject = public_tables.Subject("a, row 2", age=70.0, group="CN", visits=[(5, "MCI")])
    assert subject.age_at(None) == subject.age_at(10) == 70.0
    assert (subject.group_at(None), subject.group_at(5)) == ("CN", "MCI")
    assert subject.group_at(5 + public_tables.NEAREST_VISIT + 1) == "CN"


@needs_any_name
def test_names_that_are_not_utf8_are_left_out_and_such_folders_are_not(tmp_path):
    good, bad = f"{UNDECODABLE}/sub-1_T1w.nii.gz", f"sub-2_acq-{UNDECODABLE}_T1w.nii.gz"
    touch(tmp_path / "scans", good, bad, f"{UNDECODABLE}.nii")
    table = write_table(
        tmp_path / "participants.tsv", "participant_id\tage\tsex\nsub-1\t30\tF\nsub-2\t40\tM\n"
    )
    sheet, left_out = run("bids", table, tmp_path=tmp_path)
    assert list(sheet) == ["sub-1_T1w"]
    assert (tmp_path / "out" / "scans" / "sub-1_T1w.nii.gz").is_file()
    assert r"scans/caf\udce9/sub-1_T1w" in sheet["sub-1_T1w"]["source"]
    assert "not UTF-8" in reasons(left_out, "scan")[r"sub-2_acq-caf\udce9_T1w.nii.gz"]
    assert list(reasons(left_out, "file")) == [r"caf\udce9.nii"]


def interrupted_python(folder, program):
    """A python that fails in the midst of `program`, after some of its output."""
    path = folder / f"python_{program}"
    path.write_text(
        f"""#!/bin/bash
if [ "$1 $2" != "-m data_preprocessing.{program}" ]; then exec "{sys.executable}" "$@"; fi
while [ "$1" != --output_dir ]; do shift; done
mkdir -p "$2/healthy" "$2/train"
touch "$2/healthy/OAS1_0001_MR1.nii.gz"
exit 1
"""
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_prepare_oasis1_ends_with_the_folders_used_here_and_goes_on_where_it_was(tmp_path):
    """The real scripts, except for the registration."""
    project, out = tmp_path / "project", tmp_path / "o"
    (project / "script").mkdir(parents=True)
    for name in ("prepare_oasis1.sh", "environment.sh"):
        shutil.copy(ROOT / "script" / name, project / "script")
    for name in ("data_preprocessing", "utils", "model"):
        (project / name).symlink_to(ROOT / name)
    # Stands in for registration: INPUT --output_dir OUT ..., and notes its arguments.
    write_table(
        project / "script" / "preprocess.sh",
        'mkdir -p "$3" && cp -n "$1"/* "$3"/\necho "$@" >> "$CALLS"\n',
    )
    rows = [f"OAS1_{n:04d}_MR1,F,R,{20 + n},,,,,,,,N/A" for n in range(1, 8)]
    rows += ["OAS1_0001_MR2,F,R,21,,,,,,,,9", "OAS1_0020_MR1,M,R,80,,,,1,,,,N/A"]
    table = write_table(tmp_path / "t.csv", "\n".join([OASIS1_ROWS.split("\n")[0], *rows]))
    for row in rows:
        write_analyze(tmp_path / "discs" / T88.format(row[:13], 4), np.ones(T88_SHAPE, np.int16))
    command = ["bash", "prepare_oasis1.sh", "../../discs", str(table), str(out)]
    variables = {**os.environ, "CALLS": str(tmp_path / "calls")}
    pythons = [interrupted_python(tmp_path, at) for at in ("datasets", "split_dataset")]
    ends = [
        subprocess.run(command, cwd=project / "script", env=variables | {"PYTHON": python})
        for python in (*pythons, sys.executable, sys.executable)
    ]
    assert [end.returncode for end in ends] == [1, 1, 0, 0]
    assert not list(out.glob("*.part"))
    names = ("train", "val", "test", "retest", "dementia")
    found = {name: {scan.name[:13] for scan in (out / name).glob("*.nii.gz")} for name in names}
    assert [len(found[name]) for name in names] == [5, 1, 1, 1, 1]
    labels = read_labels(out / "Dataset.xls").rows
    assert labels.keys() == read_labels(out / "participants.tsv").rows.keys()
    assert labels.keys() == set().union(*found.values())
    assert all(path.is_file() for path in (out / "train").iterdir())
    assert all(Path(row["source"]).is_file() for row in read_tsv(out / "participants.tsv"))
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 9  # three groups, not in the first run
    assert all("--registration affine --mask subject --contents brain" in call for call in calls)


@needs_data
def test_oasis1_groups_agree_with_those_of_the_prepared_folders():
    listing = RELEASES["oasis1"].read([DATA / "participants.tsv"])
    rows = read_tsv(DATA / "participants.tsv")
    assert len(listing.subjects) == len(rows)
    for row in rows:
        subject = listing.subjects[row["scan_id"]]
        assert subject.group == {"retest": "retest", "dementia": "dementia"}.get(
            row["split"], "healthy"
        )
        assert (subject.age, subject.sex) == (float(row["age"]), row["sex"])


@needs_data
@pytest.mark.parametrize(
    ("dataset", "folder", "count"), [("bids", "native_brain", 10), ("ixi", "whole_head", 4)]
)
def test_tables_of_real_heads_are_paired_with_their_scans(dataset, folder, count, tmp_path):
    heads = DATA.resolve().parent / "heads" / folder
    (tmp_path / "scans").symlink_to(heads)
    sheet, left_out = run(dataset, heads / "participants.tsv", tmp_path=tmp_path)
    assert (len(sheet), left_out) == (count, [])
