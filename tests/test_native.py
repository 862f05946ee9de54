import nibabel
import numpy as np
import pytest
from scipy import ndimage

from data_preprocessing.pipeline.native import Native, flat_end, foreground, read_native
from data_preprocessing.pipeline.quality import RULES
from tests.audit.cuts import SIDES, cut
from utils.scans.template import load_template

(FLAT,) = [rule.affine for rule in RULES if rule.measure == "flat_end_mm2"]


def ramp(shape=(50, 40, 45)):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 977


def affine(voxel=(2.0, 2.5, 3.0)):
    matrix = np.diag([*voxel, 1.0])
    matrix[:3, 3] = -50, -60, -70
    return matrix


def saved(folder, voxels, matrix=None, name="scan.nii.gz", **header):
    image = nibabel.Nifti1Image(voxels, affine() if matrix is None else matrix)
    for key, value in header.items():
        image.header[key] = value
    image.to_filename(folder / name)
    return folder / name


def value_at(native, point):
    """The voxel nearest to a point of the world, RAS mm."""
    voxel = np.linalg.inv(native.affine) @ [*point, 1]
    return native.voxels[tuple(np.round(voxel[:3]).astype(int))]


@pytest.mark.parametrize("orientation", ["LPS", "ASR", "LPI", "RAS", "PIR", "LAS"])
def test_voxels_keep_their_place_in_the_world_whatever_the_axis_order(tmp_path, orientation):
    image = nibabel.Nifti1Image(ramp(), affine())
    codes = nibabel.orientations.axcodes2ornt(orientation)
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), codes)
    )
    turned.to_filename(tmp_path / "scan.nii")
    plain = read_native(saved(tmp_path, ramp()))
    native = read_native(tmp_path / "scan.nii")
    assert nibabel.aff2axcodes(native.affine) == ("R", "A", "S")
    for point in ((-50, -60, -70), (0, 0, 0), (30, 20, 50)):
        assert value_at(native, point) == value_at(plain, point)


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e6])
def test_scale_of_the_file_does_not_matter(tmp_path, factor):
    native = read_native(saved(tmp_path, ramp() * np.float32(factor)))
    assert np.percentile(native.voxels[native.voxels > 0], 99.5) == pytest.approx(1000, rel=1e-3)


def test_nan_becomes_background_and_a_negative_range_is_shifted(tmp_path):
    voxels = ramp() - 500
    voxels[0, 0, 0] = np.nan
    native = read_native(saved(tmp_path, voxels))
    assert np.isfinite(native.voxels).all()
    assert native.voxels.min() == 0
    assert native.voxels[1, 0, 0] > 0


def test_overshoot_below_a_background_of_zero_is_cut_not_shifted(tmp_path):
    voxels = ramp()
    voxels[:25] = 0
    voxels[30, 5, 5] = -7
    native = read_native(saved(tmp_path, voxels))
    assert (native.voxels[:25] == 0).all()
    assert native.voxels[30, 5, 5] == 0


def ball(shape=(50, 40, 45)):
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return sum(axis**2 for axis in axes) < 0.6


def test_zscored_brain_in_zeros_keeps_its_darker_half_and_its_background(tmp_path):
    inside = ball()
    tissue = np.random.default_rng(0).normal(size=inside.shape)
    native = read_native(saved(tmp_path, np.where(inside, tissue, 0).astype(np.float32)))
    np.testing.assert_array_equal(native.voxels > 0, inside)
    np.testing.assert_array_equal(foreground(native), inside)
    assert np.corrcoef(native.voxels[inside], tissue[inside])[0, 1] > 0.99999
    assert "z-scored" in native.notes[0]
    assert native.voxels.dtype == np.float32


def test_ringing_around_a_brain_is_cut_though_most_of_it_is_not_zero(tmp_path):
    inside, rng = ball(), np.random.default_rng(0)
    ringing = rng.normal(0, 10, inside.shape) * (rng.random(inside.shape) < 0.8)
    voxels = np.where(inside, rng.normal(500, 100, inside.shape), ringing)
    assert 0.1 < np.mean(voxels == 0) < 0.9
    assert np.mean(voxels[voxels != 0] < 0) > 0.2
    native = read_native(saved(tmp_path, voxels.astype(np.float32)))
    assert native.notes == []
    assert (native.voxels[voxels < 0] == 0).all()


def test_one_volume_in_four_dimensions_is_read_and_several_are_refused(tmp_path):
    one = read_native(saved(tmp_path, ramp()[..., None], name="one.nii"))
    assert one.voxels.shape == (50, 40, 45)
    with pytest.raises(ValueError, match=r"two\.nii.*one 3-D volume expected.*\(50, 40, 45, 2\)"):
        read_native(saved(tmp_path, np.stack([ramp()] * 2, -1), name="two.nii"))


def test_colours_are_refused(tmp_path):
    voxels = np.zeros((50, 40, 45), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ValueError, match="colours"):
        read_native(saved(tmp_path, voxels))


def test_complex_numbers_are_refused(tmp_path):
    path = saved(tmp_path, ramp().astype(np.complex64))
    with pytest.raises(ValueError, match=r"scan\.nii\.gz: .*\(complex64\) where intensities"):
        read_native(path)


@pytest.mark.parametrize("factor", [0.001, 100.0])
def test_wrong_unit_in_the_header_is_named(tmp_path, factor):
    with pytest.raises(ValueError, match="cannot be a head"):
        read_native(saved(tmp_path, ramp(), np.diag([factor, factor, factor, 1]) @ affine()))


@pytest.mark.parametrize("voxels", [np.zeros((50, 40, 45)), np.full((50, 40, 45), 3)])
def test_empty_scans_are_refused(tmp_path, voxels):
    with pytest.raises(ValueError, match=r"scan\.nii\.gz: no image"):
        read_native(saved(tmp_path, voxels.astype(np.float32)))


def test_damaged_file_is_named(tmp_path):
    path = saved(tmp_path, ramp())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"scan\.nii\.gz: not a readable scan"):
        read_native(path)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.MGHImage])
def test_compressed_file_is_read_to_its_checksum(tmp_path, kind):
    path = tmp_path / ("scan.mgz" if kind is nibabel.MGHImage else "scan.nii.gz")
    kind(ramp(), affine()).to_filename(path)
    read_native(path)
    content = path.read_bytes()
    for damaged in (content[:-8] + bytes([content[-8] ^ 1]) + content[-7:], content[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"scan\.\w+.*: not a readable scan \(damaged or cut"):
            read_native(path)


def test_header_without_orientation_is_noted(tmp_path):
    assert read_native(saved(tmp_path, ramp())).notes == []
    path = saved(tmp_path, ramp(), name="bare.nii")
    image = nibabel.load(path)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.Nifti1Image(ramp(), None, image.header).to_filename(tmp_path / "none.nii")
    assert "left and right are a guess" in read_native(tmp_path / "none.nii").notes[0]


def test_disagreement_of_sform_and_qform_is_noted(tmp_path):
    image = nibabel.Nifti1Image(ramp(), affine())
    image.set_sform(affine(), code=1)
    image.set_qform(np.diag([-1, 1, 1, 1]) @ affine(), code=1)
    image.to_filename(tmp_path / "scan.nii")
    assert "sform was used" in read_native(tmp_path / "scan.nii").notes[0]


def test_sheared_axes_are_made_straight(tmp_path):
    matrix = affine()
    matrix[0, 1] = 0.4
    native = read_native(saved(tmp_path, ramp(), matrix))
    axes = native.affine[:3, :3] / native.voxel_size
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert "right angles" in native.notes[0]


def without(side, mm):
    """The template's brain without its outermost millimetres at one side."""
    mask = load_template().mask
    return cut(Native(mask, np.diag([2.0, 2, 2, 1]), []), mask, side, mm).voxels


@pytest.mark.parametrize("side", SIDES)
def test_a_brain_that_lacks_20_mm_ends_flat_and_a_whole_one_does_not(side):
    size = np.full(3, 2.0)
    assert flat_end(load_template().mask, size) < 0.8 * FLAT
    assert flat_end(without(side, 20), size) > 1.2 * FLAT


@pytest.mark.parametrize("degrees", [10, 33])
def test_a_cut_brain_that_was_turned_since_ends_flat_too(degrees):
    mask = np.pad(without("top", 30), 12).astype(np.float32)
    turned = ndimage.rotate(mask, degrees, (1, 2), order=1) > 0.5
    assert flat_end(turned, np.full(3, 2.0)) > FLAT


def test_a_flat_end_has_the_area_of_its_face_at_any_size_of_voxels_and_specks_hide_none():
    block = np.zeros((70, 50, 40), bool)
    block[5:65, 10:40, 8:32] = True  # 60 x 60 x 60 mm
    assert flat_end(block, np.array([1.0, 2, 2.5])) == pytest.approx(3600, rel=0.1)
    block[1, 25, 20] = block[68, 20, 20] = True
    assert flat_end(block, np.array([1.0, 2, 2.5])) == pytest.approx(3600, rel=0.1)
    assert flat_end(np.zeros((9, 9, 9), bool), np.ones(3)) == 0


def test_a_constant_background_above_0_is_background(tmp_path):
    voxels = ramp() + 10
    voxels[:, :, :20] = voxels[[0, -1]] = 7
    native = read_native(saved(tmp_path, voxels))
    np.testing.assert_array_equal(native.voxels == 0, voxels == 7)
    assert native.notes == ["a constant background of 7: taken as 0"]
    voxels[0, 0, 0] = 8  # a scanner's noise differs from corner to corner
    assert not read_native(saved(tmp_path, voxels)).notes
