"""Folders of DICOM files: recognised by content, converted, and labelled by their header."""

import warnings

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_series import write_series
from pydicom.uid import generate_uid

from data_preprocessing.pipeline.dicom import convert_dicom, is_dicom, read_dicom_label
from data_preprocessing.pipeline.inputs import find_sources
from prediction.people import find_label, read_people


def block(shape=(40, 30, 20), voxel=(2.0, 3.0, 4.0), seed=0):
    """An axial volume with a corner marked, so that a flip is seen."""
    voxels = np.random.default_rng(seed).integers(1, 200, shape).astype(np.float32)
    voxels[:5, :5, :5] = 1000
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = -40, -45, -30
    return nibabel.Nifti1Image(voxels, affine)


def sources_of(folder):
    return find_sources([folder], output_dir=folder / "results")


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.engines
@pytest.mark.parametrize("form", ["whole", "meta", "explicit", "implicit"])
def test_a_series_comes_out_where_it_was_with_and_without_preamble(tmp_path, workspace, form):
    image = block()
    write_series(image, tmp_path / "study" / "person", form=form)
    (source,) = sources_of(tmp_path / "study")
    assert source.name == "person"
    assert source.is_dicom
    converted = nibabel.as_closest_canonical(nibabel.load(convert_dicom(source.path, workspace)))
    np.testing.assert_allclose(converted.affine, image.affine, atol=1e-4)
    np.testing.assert_allclose(converted.get_fdata(), 4 * np.asarray(image.dataobj), atol=0.6)


@pytest.mark.engines
def test_texts_and_pictures_before_the_slices_do_not_hide_a_series(tmp_path, workspace):
    folder = tmp_path / "study"
    write_series(block(), folder / "IMAGES")
    for name, content in (
        ("0_readme.txt", b"made on Monday\n" * 20),
        ("1_report.pdf", b"%PDF-1.4\n" + bytes(500)),
        ("2_screen.jpg", b"\xff\xd8\xff\xe0" + bytes(500)),
        ("3_short", b"\x08"),
    ):
        (folder / name).write_bytes(content)
        (folder / "IMAGES" / name).write_bytes(content)
    # Lists the files of a medium and has the mark of DICOM, but no image.
    listing = bytes(128) + b"DICM" + b"\2\0\2\0UI\x14\0" + b"1.2.840.10008.1.3.10"
    for place in (folder, folder / "IMAGES"):
        (place / "DICOMDIR").write_bytes(listing)
    assert [source.path for source in sources_of(folder)] == [folder / "IMAGES"]
    assert nibabel.load(convert_dicom(folder / "IMAGES", workspace)).shape == (40, 30, 20)


def test_what_is_no_dicom_is_not_taken_for_it(tmp_path):
    scan = tmp_path / "scan.nii"
    nibabel.save(block(), scan)
    assert not is_dicom(scan)
    for content in (b"", b"\2\0", b"\2\0\0\0" + bytes(200), b"text 1.2.840.10008.1.2" * 20):
        scan.write_bytes(content)
        assert not is_dicom(scan)
    assert not is_dicom(tmp_path)
    assert not is_dicom(tmp_path / "missing")


def test_dicom_files_beside_converted_scans_are_left_out_and_said(tmp_path, capsys):
    write_series(block((4, 4, 2)), tmp_path)
    nibabel.save(block(), tmp_path / "converted.nii")
    assert [source.path for source in sources_of(tmp_path)] == [tmp_path / "converted.nii"]
    assert "note: left out, DICOM files of folders that hold converted" in capsys.readouterr().out


def test_a_mask_beside_dicom_files_is_no_converted_scan(tmp_path):
    write_series(block((4, 4, 2)), tmp_path)
    nibabel.save(block(), tmp_path / "lesion_mask.nii")
    assert [source.path for source in sources_of(tmp_path)] == [tmp_path]


@pytest.mark.engines
def test_series_of_inner_folders_are_scans_of_their_own(tmp_path, workspace):
    write_series(block(), tmp_path / "study")
    write_series(block(seed=1), tmp_path / "study" / "inner", series=2)
    assert len(sources_of(tmp_path / "study")) == 2
    assert nibabel.load(convert_dicom(tmp_path / "study", workspace)).shape == (40, 30, 20)


@pytest.mark.engines
def test_folder_of_two_series_is_refused_with_their_names(tmp_path, workspace):
    write_series(block(), tmp_path / "both", series=3)
    write_series(block(seed=1), tmp_path / "both", series=5, name="other")
    with pytest.raises(ValueError, match=r"one T1-weighted series expected.*3_T1w, 5_T1w"):
        convert_dicom(tmp_path / "both", workspace)


@pytest.mark.engines
@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"EchoTime": 95.0, "SeriesDescription": "t2_tse"}, r"95 ms \(t2_tse\) is not that of a"),
        ({"Modality": "CT"}, "modality CT .*MR expected"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "PHASE images .*MAGNITUDE expected"),
    ],
)
def test_series_that_are_not_t1_by_their_header_are_refused(tmp_path, workspace, header, message):
    write_series(block(), tmp_path / "series", **header)
    with pytest.raises(ValueError, match=rf"series: .*{message}"):
        convert_dicom(tmp_path / "series", workspace)


@pytest.mark.engines
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_series_that_lacks_a_slice_is_refused(tmp_path, workspace, damage):
    write_series(block(), tmp_path / "series")
    middle = next(
        path
        for path in (tmp_path / "series").iterdir()
        if pydicom.dcmread(path).InstanceNumber == 10
    )
    if damage == "gone":
        middle.unlink()
    else:
        middle.write_bytes(middle.read_bytes()[:900])
    with pytest.raises(ValueError, match="series: slices are missing, damaged, or not at equal"):
        convert_dicom(tmp_path / "series", workspace)


def test_the_number_of_a_series_is_not_the_number_of_a_person(tmp_path):
    for person in ("anna", "bert"):
        study = generate_uid()
        for series in ("2", "10"):
            folder = tmp_path / "studies" / person / series
            write_series(block((4, 4, 2)), folder, StudyInstanceUID=study)
    for person in ("1", "2"):
        write_series(block((4, 4, 2)), tmp_path / "people" / person)
    sheet = tmp_path / "ages.csv"
    sheet.write_text("id,age\n1,30\n2,70\n10,80\n")
    ages = {}
    for folder in ([tmp_path / "studies" / "anna"], [tmp_path / "studies"], [tmp_path / "people"]):
        sources = find_sources(folder, output_dir=tmp_path / "out")
        tables = read_people([str(sheet)], folder, sources, None)
        for source in sources:
            label = find_label(source, tables)
            ages[source.name] = label and label.age
    numbers = {f"{person}_{series}": None for person in ("anna", "bert") for series in ("10", "2")}
    assert ages == numbers | {"1": 30, "2": 70}


def test_dicom_file_alone_points_to_its_folder(tmp_path):
    for form in ("whole", "implicit"):
        write_series(block(), tmp_path / form, form=form)
        file = next((tmp_path / form).iterdir())
        with pytest.raises(ValueError, match="give the folder of its series"):
            sources_of(file)


@pytest.mark.engines
def test_folder_of_broken_dicom_files_says_so(tmp_path, workspace):
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"rubbish")
    (source,) = sources_of(folder)
    with pytest.raises(ValueError, match="dcm2niix made no whole volume"):
        convert_dicom(source.path, workspace)
    assert read_dicom_label(folder) == (None, None)


@pytest.mark.parametrize(
    ("header", "age"),
    [
        ({"PatientAge": "045Y"}, 45),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "006W"}, 42 / 365.25),
        ({"PatientAge": "010D"}, 10 / 365.25),
        ({"PatientAge": "45y"}, 45),
        ({"PatientAge": "45"}, None),  # of what?
        ({"PatientAge": "000Y"}, None),  # removed
        ({"PatientAge": "999Y"}, None),
        ({}, None),
        ({"PatientBirthDate": "19700101", "StudyDate": "20150702"}, 45.5),
        ({"PatientBirthDate": "1970.01.01", "StudyDate": "20150702"}, 45.5),
        ({"PatientBirthDate": "19700101", "StudyDate": "20150702", "PatientAge": "044Y"}, 44),
        ({"PatientBirthDate": "19000101", "StudyDate": "20150702"}, None),  # removed
        ({"PatientBirthDate": "20160101", "StudyDate": "20150702"}, None),
        ({"PatientBirthDate": "", "StudyDate": "20150702"}, None),
    ],
)
@pytest.mark.parametrize("form", ["whole", "implicit"])
def test_the_age_of_a_patient_is_read_in_years(tmp_path, header, age, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns where it writes such an age
        write_series(block((4, 4, 2)), tmp_path, form=form, PatientSex="M", **header)
    (tmp_path / "0.txt").write_text("first by name")
    found, sex = read_dicom_label(tmp_path)
    assert sex == 1
    assert found == (None if age is None else pytest.approx(age, abs=0.01))


@pytest.mark.parametrize(("text", "sex"), [("F", 0), ("M", 1), ("O", None), ("", None)])
def test_the_sex_of_a_patient_is_read(tmp_path, text, sex):
    write_series(block((4, 4, 2)), tmp_path, PatientSex=text)
    assert read_dicom_label(tmp_path) == (None, sex)
