import math

import numpy as np
import pytest
from conftest import TINY, brain, write_scan

from utils.people.labels import read_labels
from utils.scans.cohort import describe, open_cohort
from utils.scans.dataset import ScanDataset
from utils.scans.volumes import GRID_SHAPE, InputRule

ANY = InputRule(any_grid=True)


def sheet(tmp_path, text):
    (tmp_path / "d.csv").write_text(text)
    return read_labels(tmp_path / "d.csv")


NAMES = ["sub-1", "sub-10", "sub-2", "sub-3", "sub-4", "sub-5", "sub-7"]


def test_scans_come_in_file_order_with_their_own_labels(tmp_path, seven_scans):
    labels = sheet(tmp_path, "".join(f"sub-{i},{20 + i}.5,{i % 2}\n" for i in range(1, 12)))
    scans = open_cohort(seven_scans, labels, ANY, need_age=True, need_sex=True)
    assert [scan.subject_id for scan in scans] == NAMES
    assert [scan.age for scan in scans] == [21.5, 30.5, 22.5, 23.5, 24.5, 25.5, 27.5]
    assert [scan.sex for scan in scans] == [1, 0, 0, 1, 0, 1, 1]


def test_training_reports_all_scans_without_row_age_or_sex_at_once(tmp_path, seven_scans):
    labels = sheet(tmp_path, "id,age,sex\nsub-1,n/a,0\nsub-2,89+,1\nsub-3,50,n/a\nsub-4,50,0\n")
    with pytest.raises(ValueError) as caught:
        open_cohort(seven_scans, labels, ANY, need_age=True, need_sex=True)
    message = str(caught.value)
    assert "sub-1.nii.gz: row 2 gives no age, expected years" in message
    assert "sub-2.nii.gz: row 3 gives no age" in message
    assert "sub-3.nii.gz: row 4 gives no sex, expected 0 female or 1 male" in message
    assert "sub-10.nii.gz: no row named sub-10 in the label sheet" in message
    assert "sub-4.nii.gz" not in message


def test_prediction_takes_scans_without_labels_as_unknown(tmp_path, seven_scans):
    labels = sheet(tmp_path, "id,age,sex\nsub-1,n/a,0\nsub-2,89+,1\n")
    scans = open_cohort(seven_scans, labels, ANY)
    assert [scan.age for scan in scans] == [None] * 7
    assert [scan.sex for scan in scans] == [0, None, 1, None, None, None, None]
    batch = ScanDataset(scans, ANY)[[1]]
    assert math.isnan(batch["age"])
    assert batch["sex"] == -1
    assert len(open_cohort(seven_scans, None, ANY)) == 7


def test_scans_off_the_grid_are_all_reported_before_any_is_read(tmp_path):
    for name in ("a", "b"):
        write_scan(tmp_path / f"{name}.nii.gz", brain(TINY, 50))
    with pytest.raises(ValueError, match=r"(?s)a\.nii\.gz: not on.*b\.nii\.gz: not on"):
        open_cohort(tmp_path, None, InputRule())


def test_volumes_too_small_for_the_network_are_refused_at_the_start(tmp_path):
    write_scan(tmp_path / "a.nii.gz", brain((32, 36, 31), 50))
    with pytest.raises(ValueError, match=r"a\.nii\.gz: .* 32x36x31 voxels, at least 32 a side"):
        open_cohort(tmp_path, None, ANY)
    write_scan(tmp_path / "a.nii.gz", brain(TINY, 50))
    open_cohort(tmp_path, None, ANY)
    with pytest.raises(ValueError, match="16x18x16 voxels"):
        open_cohort(tmp_path, None, InputRule(resolution=4, any_grid=True))


def test_differing_shapes_in_one_folder_are_refused_at_the_start(tmp_path):
    for name, shape in (("a", TINY), ("b", TINY), ("c", (33, 36, 32))):
        write_scan(tmp_path / f"{name}.nii.gz", brain(shape, 50))
    with pytest.raises(
        ValueError, match=r"differing shapes, 32x36x32 \(a\.nii\.gz\), 33x36x32 \(c\."
    ):
        open_cohort(tmp_path, None, ANY)


def test_reoriented_scans_are_said_so(tmp_path):
    twin = np.array([[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], float)
    write_scan(tmp_path / "twin.nii.gz", brain(GRID_SHAPE, 50), twin)
    assert "1 stored RAS, put into LAS order" in describe(open_cohort(tmp_path, None, InputRule()))
