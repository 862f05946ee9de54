import math
from itertools import chain

import numpy as np
import pytest
import torch
from conftest import TINY, brain, write_scan

from utils import cache
from utils.dataset import (
    ScanDataset,
    describe,
    evaluation_loader,
    open_cohort,
    open_for_one_reading,
    training_loader,
)
from utils.labels import read_labels
from utils.volumes import GRID_SHAPE, Preparation

ANY = Preparation(any_grid=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven tiny scans named so that name order is not creation order."""
    folder = tmp_path_factory.mktemp("scans")
    for index in (3, 1, 10, 2, 7, 5, 4):
        write_scan(folder / f"sub-{index}.nii.gz", brain(TINY, 50, index))
    return folder


def sheet(tmp_path, text):
    (tmp_path / "d.csv").write_text(text)
    return read_labels(tmp_path / "d.csv")


NAMES = ["sub-1", "sub-10", "sub-2", "sub-3", "sub-4", "sub-5", "sub-7"]


def test_scans_come_in_file_order_with_their_own_labels(tmp_path, folder):
    labels = sheet(tmp_path, "".join(f"sub-{i},{20 + i}.5,{i % 2}\n" for i in range(1, 12)))
    scans = open_cohort(folder, labels, ANY, need_age=True, need_sex=True)
    assert [scan.subject_id for scan in scans] == NAMES
    assert [scan.age for scan in scans] == [21.5, 30.5, 22.5, 23.5, 24.5, 25.5, 27.5]
    assert [scan.sex for scan in scans] == [1, 0, 0, 1, 0, 1, 1]


def test_training_reports_all_scans_without_row_age_or_sex_at_once(tmp_path, folder):
    labels = sheet(tmp_path, "id,age,sex\nsub-1,n/a,0\nsub-2,89+,1\nsub-3,50,n/a\nsub-4,50,0\n")
    with pytest.raises(ValueError) as caught:
        open_cohort(folder, labels, ANY, need_age=True, need_sex=True)
    message = str(caught.value)
    assert "sub-1.nii.gz: row 2 gives no age, expected years" in message
    assert "sub-2.nii.gz: row 3 gives no age" in message
    assert "sub-3.nii.gz: row 4 gives no sex, expected 0 female or 1 male" in message
    assert "sub-10.nii.gz: no row named sub-10 in the label sheet" in message
    assert "sub-4.nii.gz" not in message


def test_prediction_takes_scans_without_labels_as_unknown(tmp_path, folder):
    labels = sheet(tmp_path, "id,age,sex\nsub-1,n/a,0\nsub-2,89+,1\n")
    scans = open_cohort(folder, labels, ANY)
    assert [scan.age for scan in scans] == [None] * 7
    assert [scan.sex for scan in scans] == [0, None, 1, None, None, None, None]
    item = ScanDataset(scans, ANY)[1]
    assert math.isnan(item["age"])
    assert item["sex"] == -1
    assert len(open_cohort(folder, None, ANY)) == 7


def test_scans_off_the_grid_are_all_reported_before_any_is_read(tmp_path):
    for name in ("a", "b"):
        write_scan(tmp_path / f"{name}.nii.gz", brain(TINY, 50))
    with pytest.raises(ValueError, match=r"(?s)a\.nii\.gz: not on.*b\.nii\.gz: not on"):
        open_cohort(tmp_path, None, Preparation())


def test_volumes_too_small_for_the_network_are_refused_at_the_start(tmp_path):
    write_scan(tmp_path / "a.nii.gz", brain((32, 36, 31), 50))
    with pytest.raises(ValueError, match=r"a\.nii\.gz: .* 32x36x31 voxels, at least 32 a side"):
        open_cohort(tmp_path, None, ANY)
    write_scan(tmp_path / "a.nii.gz", brain(TINY, 50))
    open_cohort(tmp_path, None, ANY)
    with pytest.raises(ValueError, match="16x18x16 voxels"):
        open_cohort(tmp_path, None, Preparation(resolution=4, any_grid=True))


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
    assert "1 stored RAS, put into LAS order" in describe(
        open_cohort(tmp_path, None, Preparation())
    )


def dataset(folder, **options):
    return ScanDataset(open_cohort(folder, None, ANY), ANY, **options)


def test_seven_scans_in_batches_of_four_come_once_each_in_order(folder):
    batches = list(evaluation_loader(dataset(folder), batch_size=4))
    assert [len(batch["image"]) for batch in batches] == [4, 3]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(7))
    assert batches[0]["image"].shape == (4, 1, *TINY)


@pytest.mark.parametrize(
    ("batch_size", "full_batches", "sizes"),
    [(4, False, [4, 3]), (4, True, [4]), (3, False, [3, 3]), (2, False, [2, 2, 2]), (7, True, [7]),
     (8, False, [7])],
)  # fmt: skip
def test_training_batches_are_never_padded(folder, batch_size, full_batches, sizes):
    # A last scan alone is dropped: it has neither a rank nor batch statistics.
    loader = training_loader(dataset(folder), batch_size=batch_size, full_batches=full_batches)
    batches = [batch["index"].tolist() for batch in loader]
    assert [len(batch) for batch in batches] == sizes
    seen = list(chain.from_iterable(batches))
    assert len(set(seen)) == len(seen)


def test_too_few_scans_for_a_full_batch_is_an_error(folder):
    with pytest.raises(ValueError, match="7 training scans do not fill one batch of 8"):
        training_loader(dataset(folder), batch_size=8, full_batches=True)


def test_dropped_scans_differ_between_epochs(folder):
    loader = training_loader(dataset(folder), batch_size=3, full_batches=True)
    epochs = {
        tuple(sorted(chain.from_iterable(batch["index"].tolist() for batch in loader)))
        for _ in range(6)
    }
    assert len(epochs) > 1


def test_one_scan_is_its_part_of_a_batch_and_there_is_none_past_the_last(folder):
    scans = dataset(folder)
    batch = scans[[3, 1, 6]]
    assert batch["image"].shape == (3, 1, *TINY)
    assert batch["age"].shape == (3, 1)
    assert batch["index"].tolist() == [3, 1, 6]
    for place, index in enumerate((3, 1, 6)):
        assert torch.equal(scans[index]["image"], batch["image"][place])
    assert len([item["index"] for item in scans]) == 7


def test_a_cohort_for_one_reading_is_decoded_once_if_small_and_checked_if_large(
    folder, monkeypatch
):
    scans = open_cohort(folder, None, ANY)
    decoded = []
    read = cache.read_volume
    monkeypatch.setattr(cache, "read_volume", lambda *given: decoded.append(1) or read(*given))
    small = open_for_one_reading(scans, ANY)[[0, 6]]
    assert len(decoded) == 7
    monkeypatch.setattr("utils.dataset.KEPT_FOR_ONE_READING", 0)
    large = open_for_one_reading(scans, ANY)[[0, 6]]
    assert len(decoded) == 7 + 7 + 2
    assert torch.equal(small["image"], large["image"])
