import nibabel
import numpy as np
import pytest
from conftest import brain, write_scan

from utils.files import image_stem
from utils.scans.template import load_template
from utils.scans.volumes import (
    BRAIN_BOX,
    GRID_AFFINE,
    GRID_SHAPE,
    InputRule,
    average_2x2x2,
    decode,
    find_scans,
    network_input,
    open_scan,
    read_voxels,
    reduce_volume,
    z_score,
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


def test_other_shapes_are_refused_with_what_was_found_and_expected(tmp_path):
    path = write_scan(tmp_path / "small.nii.gz", brain((32, 36, 32), 40))
    with pytest.raises(ValueError, match=r"found shape \(32, 36, 32\).*expected \(91, 109, 91\)"):
        open_scan(path)


@pytest.mark.parametrize("kind", [nibabel.Nifti2Image, nibabel.MGHImage])
def test_voxels_of_compressed_files_are_those_that_nibabel_reads(tmp_path, kind):
    path = tmp_path / ("a.mgz" if kind is nibabel.MGHImage else "a.nii.gz")
    kind(brain((20, 24, 22), 50), GRID_AFFINE).to_filename(path)
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
    normal = z_score(volume, "brain")
    inside = volume > 0
    assert normal.dtype == np.float32
    assert normal[inside].mean() == pytest.approx(0, abs=1e-4)
    assert normal[inside].std() == pytest.approx(1, abs=1e-4)
    assert (normal[~inside] == 0).all()


def test_authors_rule_puts_background_at_minus_mean_over_sd(volume):
    normal = z_score(volume, "authors")
    values = volume[volume > 0].astype(np.float64)
    expected = (volume[volume > 0] - values.mean()) / values.std()
    np.testing.assert_allclose(normal[volume > 0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(normal[volume <= 0], -values.mean() / values.std(), rtol=1e-5)


def test_authors_rule_subtracts_from_negative_voxels():
    volume = np.array([-2.0, 0.0, 1.0, 3.0], np.float32)
    np.testing.assert_allclose(z_score(volume, "authors"), [-4, -2, -1, 1], atol=1e-6)
    np.testing.assert_allclose(z_score(volume, "brain"), [0, 0, -1, 1], atol=1e-6)


@pytest.mark.parametrize("rule", ["brain", "authors"])
def test_normalisation_ignores_the_scanners_unit(volume, rule):
    np.testing.assert_allclose(z_score(volume * 37, rule), z_score(volume, rule), atol=1e-4)


@pytest.fixture
def head() -> np.ndarray:
    """The template's brain with a scanner's noise, brighter by 3 than it is shipped."""
    template = load_template()
    noise = np.random.default_rng(0).normal(0, 9, GRID_SHAPE).astype(np.float32)
    return np.where(template.mask, 3 * template.brain + noise, 0).clip(0)


TISSUE = InputRule(4, intensity="tissue", crop=True)


def tissues(volume: np.ndarray) -> tuple[float, float]:
    """Medians of grey and white matter where the template has them."""
    template = load_template()
    return tuple(np.median(volume[place]) for place in (template.grey, template.white))


def test_a_tissue_window_runs_from_0_to_1_and_ignores_the_scanners_unit(head):
    values = network_input(head, TISSUE)
    assert values.shape == (38, 46, 39)
    assert values.dtype == np.float32
    assert values.min() == 0
    assert values.max() == 1
    np.testing.assert_allclose(network_input(head * 0.037, TISSUE), values, atol=1e-5)


def test_a_tissue_window_ignores_the_scanners_contrast(head):
    """Half the contrast of grey and white matter, as between two of the sites measured."""
    values = network_input(head, TISSUE)
    flatter = np.where(head > 0, 400 + head / 2, 0)
    np.testing.assert_allclose(network_input(flatter, TISSUE), values, atol=1e-4)


def test_a_window_is_clipped_before_voxels_are_averaged(head):
    grey, white = tissues(head)
    at = tuple(np.argwhere(load_template().white)[0] // 2 * 2)
    block = tuple(slice(start, start + 2) for start in at)
    shares = np.array([-3, -0.5, 0, 0.25, 0.5, 0.75, 1, 4]).reshape(2, 2, 2)
    head[block] = grey + shares * (white - grey)
    rule = InputRule(4, intensity="tissue", window=(-0.5, 0.5))
    value = network_input(head, rule)[tuple(start // 2 for start in at)]
    assert value == pytest.approx(np.mean([0, 0, 0.5, 0.75, 1, 1, 1, 1]), abs=0.01)


def test_a_tissue_window_does_not_know_how_tightly_a_brain_was_extracted(head):
    """Fluid that was cut away, and skull or neck that was left on, change nothing."""
    values = network_input(head, TISSUE)
    grey, white = tissues(head)
    tight = np.where(head > grey - 0.8 * (white - grey), head, 0)
    residue = np.where(load_template().around, head, head.max() * 2)
    assert not np.array_equal(tight, head)
    np.testing.assert_array_equal(network_input(tight, TISSUE), values)
    np.testing.assert_array_equal(network_input(residue, TISSUE), values)
    assert not np.allclose(z_score(tight), z_score(head), atol=0.1)


@pytest.mark.parametrize("change", [np.negative, np.zeros_like])
def test_scans_without_brighter_white_matter_are_refused(head, change):
    """Such as T2-weighted ones, or what lies elsewhere on the grid."""
    inverted = np.where(head > 0, 1000 + change(head), 0)
    with pytest.raises(ValueError, match=r"white matter brighter than grey matter expected, found"):
        network_input(inverted, TISSUE)
    with pytest.raises(ValueError, match=r"found medians of 0 and"):
        network_input(np.roll(head, 60, axis=1), TISSUE)


def test_tissues_are_looked_for_inside_the_brain_alone():
    template = load_template()
    for inside in (template.white, template.grey):
        assert not (inside & ~template.mask).any()
        assert 0.15 < inside.sum() / template.mask.sum() < 0.3
    assert not (template.mask & ~template.around).any()
    assert not (template.white & template.grey).any()


@pytest.mark.parametrize("options", [{"window": (0.9, 0.5)}, {"any_grid": True}])
def test_windows_and_grids_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=r"expected|give one"):
        InputRule(intensity="tissue", **options)


def test_scans_are_found_in_name_order_without_hidden_files(tmp_path):
    for name in ("b.nii.gz", "a.nii", ".hidden.nii.gz", "notes.txt", "c.NII.GZ"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_scans(tmp_path)] == ["a.nii", "b.nii.gz", "c.NII.GZ"]


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
