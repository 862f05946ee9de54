import gzip

import nibabel
import numpy as np
import pytest
from conftest import brain, write_scan

from utils.scans.template import load_template
from utils.scans.volumes import (
    BRAIN_BOX,
    GRID_AFFINE,
    GRID_SHAPE,
    InputRule,
    average_2x2x2,
    decode,
    find_scans,
    image_stem,
    normalise,
    open_scan,
    read_voxels,
    reduce_volume,
)

RAS_TWIN = np.array([[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], float)
ANY = InputRule(any_grid=True)


@pytest.fixture(scope="module")
def volume():
    """A brain with something on one side only, so that a flip shows."""
    voxels = brain(GRID_SHAPE, 60)
    voxels[20:30, 50:60, 40:50] = 300
    return voxels


def test_scan_on_the_grid_is_read_as_it_is(tmp_path, volume):
    path = write_scan(tmp_path / "a.nii.gz", volume)
    read = decode(path)
    assert read.dtype == np.float32
    assert np.array_equal(read, volume)
    assert open_scan(path).orientation == "LAS"


def test_ras_twin_of_the_same_shape_is_flipped_from_its_affine(tmp_path, volume):
    path = write_scan(tmp_path / "twin.nii.gz", volume[::-1], RAS_TWIN)
    assert open_scan(path).orientation == "RAS"
    assert np.array_equal(decode(path), volume)


def test_permuted_axes_are_put_back_into_las_order(tmp_path, volume):
    permuted = GRID_AFFINE[:, [2, 0, 1, 3]]
    path = write_scan(tmp_path / "p.nii.gz", volume.transpose(2, 0, 1), permuted)
    assert open_scan(path).orientation == "SLA"
    assert open_scan(path).shape == volume.shape
    assert np.array_equal(decode(path), volume)


@pytest.mark.parametrize(
    "affine",
    [GRID_AFFINE @ np.diag([0.5, 1, 1, 1]), GRID_AFFINE + np.eye(4)[:, [3, 1, 2, 0]] * 3],
    ids=["voxel size", "origin"],
)
def test_same_shape_on_another_grid_is_refused(tmp_path, volume, affine):
    path = write_scan(tmp_path / "other.nii.gz", volume, affine)
    with pytest.raises(ValueError, match=r"other.nii.gz: not on the FSL MNI152 2 mm grid"):
        decode(path)
    assert decode(path, any_grid=True).shape == GRID_SHAPE


def test_other_shapes_are_refused_with_what_was_found_and_expected(tmp_path):
    path = write_scan(tmp_path / "small.nii.gz", brain((32, 36, 32), 40))
    with pytest.raises(ValueError, match=r"found shape \(32, 36, 32\).*expected \(91, 109, 91\)"):
        open_scan(path)


def test_scaled_integers_are_read_in_their_own_unit(tmp_path):
    image = nibabel.Nifti1Image(np.zeros(GRID_SHAPE, np.uint8), GRID_AFFINE)
    image.header.set_slope_inter(0.5, 0)
    stored = (brain(GRID_SHAPE, 40) / 0.5).clip(0, 255).astype(np.uint8)
    image = nibabel.Nifti1Image(stored * 0.5, GRID_AFFINE, image.header)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    read = decode(tmp_path / "scaled.nii.gz")
    np.testing.assert_allclose(read, stored * 0.5, atol=0.3)
    assert (read[stored == 0] == 0).all()


def test_one_volume_in_four_dimensions_is_one_volume(tmp_path, volume):
    path = write_scan(tmp_path / "four.nii", volume[..., None])
    assert np.array_equal(decode(path), volume)


def test_several_volumes_are_refused(tmp_path):
    path = write_scan(tmp_path / "series.nii", np.ones((4, 4, 4, 2), np.float32))
    with pytest.raises(ValueError, match=r"one 3-D volume expected, found shape \(4, 4, 4, 2\)"):
        open_scan(path)


def test_complex_numbers_and_colours_are_refused_by_name_and_type(tmp_path, volume):
    path = write_scan(tmp_path / "complex.nii.gz", volume.astype(np.complex64))
    for read in (open_scan, lambda path: decode(path)):
        with pytest.raises(ValueError, match=r"complex\.nii\.gz: .*\(complex64\) where"):
            read(path)
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ValueError, match=r"colours\.nii: .* where intensities are expected"):
        open_scan(write_scan(tmp_path / "colours.nii", colours), any_grid=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v * 0, "no brain"),
        (lambda v: v * 0 + 5, "no brain"),
        (lambda v: np.where(v > 0, np.nan, 0).astype(np.float32), "voxels are NaN or infinite"),
    ],
)
def test_volumes_without_a_brain_are_refused_by_name(tmp_path, change, message):
    path = write_scan(tmp_path / "bad.nii.gz", change(brain((32, 32, 32), 50)))
    with pytest.raises(ValueError, match=rf"bad\.nii\.gz: .*{message}"):
        decode(path, any_grid=True)


def test_unreadable_files_are_refused_by_name(tmp_path):
    good = write_scan(tmp_path / "good.nii.gz", brain((32, 32, 32), 50)).read_bytes()
    contents = {
        "cut.nii.gz": good[: len(good) // 2],
        "text.nii.gz": b"hello",
        "zipped_text.nii.gz": gzip.compress(b"hello"),
        "empty.nii": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            decode(tmp_path / name, any_grid=True)


def flipped(content: bytes) -> bytes:
    """With one bit of the checksum changed, which nibabel by itself never reads."""
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-3]], ids=["bit", "cut"])
def test_compressed_files_are_read_to_their_checksum(tmp_path, damage):
    path = write_scan(tmp_path / "a.nii.gz", brain((32, 32, 32), 50))
    decode(path, any_grid=True)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.nii\.gz: .*damaged or cut: .*copy or download"):
        decode(path, any_grid=True)


def as_scaled_integers(voxels):
    image = nibabel.Nifti1Image(voxels, GRID_AFFINE)
    image.set_data_dtype(np.int16)
    return image


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda voxels: nibabel.Nifti1Image(voxels, GRID_AFFINE), "a.nii.gz"),
        (lambda voxels: nibabel.Nifti1Image(voxels, GRID_AFFINE), "A.NII.GZ"),
        (as_scaled_integers, "a.nii.gz"),
        (
            lambda voxels: nibabel.Nifti1Image(
                voxels, GRID_AFFINE, nibabel.Nifti1Header(endianness=">")
            ),
            "a.nii.gz",
        ),
        (lambda voxels: nibabel.Nifti2Image(voxels, GRID_AFFINE), "a.nii.gz"),
        (lambda voxels: nibabel.MGHImage(voxels, GRID_AFFINE), "a.mgz"),
    ],
    ids=["float", "capitals", "scaled", "big-endian", "nifti2", "mgz"],
)
def test_voxels_of_compressed_files_are_those_that_nibabel_reads(tmp_path, make, name):
    path = tmp_path / name
    make(brain((20, 24, 22), 50)).to_filename(path)
    image = nibabel.load(path)
    read = read_voxels(image)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.asarray(image.dataobj, np.float32))


def test_four_millimetres_crops_and_averages(volume):
    coarse = reduce_volume(volume, InputRule(resolution=4))
    assert coarse.shape == (45, 54, 45)
    assert coarse[3, 4, 5] == pytest.approx(volume[6:8, 8:10, 10:12].mean())
    assert coarse[44, 53, 44] == pytest.approx(volume[88:90, 106:108, 88:90].mean())


def test_averaging_crops_only_odd_planes():
    assert average_2x2x2(np.ones((4, 5, 7), np.float32)).shape == (2, 2, 3)


def test_brain_rule_has_zero_mean_unit_spread_and_zero_background(volume):
    normal = normalise(volume, "brain")
    inside = volume > 0
    assert normal.dtype == np.float32
    assert normal[inside].mean() == pytest.approx(0, abs=1e-4)
    assert normal[inside].std() == pytest.approx(1, abs=1e-4)
    assert (normal[~inside] == 0).all()


def test_authors_rule_puts_background_at_minus_mean_over_sd(volume):
    normal = normalise(volume, "authors")
    values = volume[volume > 0].astype(np.float64)
    expected = (volume[volume > 0] - values.mean()) / values.std()
    np.testing.assert_allclose(normal[volume > 0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(normal[volume <= 0], -values.mean() / values.std(), rtol=1e-5)


def test_authors_rule_subtracts_from_negative_voxels():
    volume = np.array([-2.0, 0.0, 1.0, 3.0], np.float32)
    np.testing.assert_allclose(normalise(volume, "authors"), [-4, -2, -1, 1], atol=1e-6)
    np.testing.assert_allclose(normalise(volume, "brain"), [0, 0, -1, 1], atol=1e-6)


@pytest.mark.parametrize("rule", ["brain", "authors"])
def test_normalisation_ignores_the_scanners_unit(volume, rule):
    np.testing.assert_allclose(normalise(volume * 37, rule), normalise(volume, rule), atol=1e-4)


def test_scans_are_found_in_name_order_without_hidden_files(tmp_path):
    for name in ("b.nii.gz", "a.nii", ".hidden.nii.gz", "notes.txt", "c.NII.GZ"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_scans(tmp_path)] == ["a.nii", "b.nii.gz", "c.NII.GZ"]


def test_missing_and_empty_folders_and_twins_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of scans"):
        find_scans(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no \.nii\.gz or \.nii file"):
        find_scans(tmp_path)
    (tmp_path / "a.nii").touch()
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(ValueError, match="two scans of one name"):
        find_scans(tmp_path)


def test_stem_is_the_name_without_its_image_suffix():
    names = ["sub-1.nii.gz", "sub-1.nii", "sub-1", "a.b.nii.gz", "X.NII.GZ"]
    assert [image_stem(name) for name in names] == ["sub-1", "sub-1", "sub-1", "a.b", "X"]


@pytest.mark.parametrize("options", [{"resolution": 3}, {"intensity": "minmax"}])
def test_unknown_preparations_are_refused(options):
    with pytest.raises(ValueError, match="expected, got"):
        InputRule(**options)


@pytest.mark.parametrize("resolution", [2, 4])
def test_cropping_keeps_the_box_around_the_templates_brain(volume, resolution):
    input_rule = InputRule(resolution, crop=True)
    cropped = reduce_volume(volume, input_rule)
    expected = volume[7:83, 9:101, 0:78]
    if resolution == 4:
        expected = expected.reshape(38, 2, 46, 2, 39, 2).mean((1, 3, 5))
    np.testing.assert_allclose(cropped, expected, rtol=1e-6)
    assert cropped.shape == input_rule.input_shape(GRID_SHAPE)


def test_the_box_holds_the_templates_brain_with_a_voxel_to_spare():
    mask = load_template().mask
    for places, (start, stop) in zip(np.where(mask), BRAIN_BOX, strict=True):
        assert start < places.min()
        assert places.max() < stop - 1
        assert (stop - start) % 2 == 0


def test_cropping_other_grids_is_refused():
    with pytest.raises(ValueError, match="--crop and --any_grid"):
        InputRule(any_grid=True, crop=True)
