import json
from functools import partial

import nibabel
import numpy as np
import pytest
from conftest import brain, write_scan
from scipy import ndimage

from data_preprocessing.pipeline import resample
from data_preprocessing.pipeline.recipe import Recipe
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

TEMPLATE, SUBJECT = Recipe("resample"), Recipe("resample", mask="subject")
# TemplateFlow's copy of the grid: its first axis runs to the right.
RIGHT_AFFINE = np.array([[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], float)
map_scan = partial(resample.map_scan, workspace=None)


def grid(size):
    """Shape and affine of a grid in MNI152 space with voxels of `size` mm over the same block."""
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = -90, -126, -72
    shape = tuple(int(2 * (voxels - 1) // size) + 1 for voxels in GRID_SHAPE)
    return shape, affine


def ramp(shape, affine):
    """Intensities that are linear in mm, so that a trilinear interpolation is exact."""
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return (places @ [1.0, 2.0, 3.0] + 1000).astype(np.float32)


def head(shape, affine):
    """A ramp that fills all of its block: 7 litres."""
    return ramp(shape, affine)


def own_brain(size=2.0):
    """A ramp inside an ellipsoid that is not the template's brain; nothing outside."""
    shape, affine = grid(size)
    inside = brain(shape, age=0) > 0
    return np.where(inside, ramp(shape, affine), 0), affine


def test_an_axis_that_runs_the_other_way_is_turned_without_touching_a_value(tmp_path):
    voxels = np.random.default_rng(0).uniform(1, 9, GRID_SHAPE).astype(np.float32)
    scan = write_scan(tmp_path / "right.nii.gz", voxels, RIGHT_AFFINE)
    mapped = map_scan(scan, TEMPLATE)
    mask = load_template().mask
    np.testing.assert_array_equal(mapped.volume[mask], voxels[::-1][mask])
    assert not mapped.volume[~mask].any()
    assert mapped.transform["interpolated"] is False


@pytest.mark.parametrize("order", ["LAS", "PIR"])
def test_axes_may_be_stored_in_any_order(tmp_path, order):
    voxels, affine = own_brain()
    image = nibabel.Nifti1Image(voxels, affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(order)
    )
    nibabel.save(image.as_reoriented(turn), tmp_path / "scan.nii.gz")
    mapped = map_scan(tmp_path / "scan.nii.gz", SUBJECT)
    np.testing.assert_array_equal(mapped.volume, voxels[::-1])


def test_a_header_rounded_to_single_precision_still_counts_as_the_grid(tmp_path):
    voxels, affine = own_brain()
    scan = write_scan(tmp_path / "scan.nii.gz", voxels, affine + 1e-4)
    np.testing.assert_array_equal(map_scan(scan, SUBJECT).volume, voxels[::-1])


@pytest.mark.parametrize("size", [1.0, 1.5, 3.0])
def test_linear_intensities_survive_trilinear_interpolation(tmp_path, size):
    shape, affine = grid(size)
    scan = write_scan(tmp_path / "scan.nii.gz", head(shape, affine), affine)
    mapped = map_scan(scan, TEMPLATE)
    mask = load_template().mask
    assert (mapped.volume.shape, mapped.volume.dtype) == (GRID_SHAPE, np.float32)
    np.testing.assert_allclose(
        mapped.volume[mask], ramp(GRID_SHAPE, GRID_AFFINE)[mask], rtol=0, atol=0.01
    )
    assert not mapped.volume[~mask].any()
    assert (mapped.contents, mapped.brain, mapped.kept) == ("head", None, {})
    assert mapped.transform == json.loads(json.dumps(mapped.transform))
    assert mapped.transform["interpolated"] is True


@pytest.mark.parametrize("size", [2.0, 3.0])
def test_the_subjects_own_brain_is_kept_where_asked_for(tmp_path, size):
    voxels, affine = own_brain(size)
    scan = write_scan(tmp_path / "scan.nii.gz", voxels, affine)
    mapped = map_scan(scan, SUBJECT)
    wanted = own_brain()[0][::-1] > 0
    assert (mapped.contents, mapped.notes) == ("brain", [])
    np.testing.assert_array_equal(mapped.volume > 0, mapped.brain)
    both = 2 * (wanted & mapped.brain).sum() / (wanted.sum() + mapped.brain.sum())
    assert both > 0.97
    inner = ndimage.binary_erosion(wanted & mapped.brain, iterations=3)
    np.testing.assert_allclose(
        mapped.volume[inner], ramp(GRID_SHAPE, GRID_AFFINE)[inner], rtol=0, atol=0.01
    )


def test_a_brains_own_extent_is_known_under_the_templates_mask_too(tmp_path):
    voxels, affine = own_brain()
    scan = write_scan(tmp_path / "scan.nii.gz", voxels, affine)
    mapped = map_scan(scan, TEMPLATE)
    np.testing.assert_array_equal(mapped.brain, voxels[::-1] > 0)
    np.testing.assert_array_equal(mapped.volume, voxels[::-1] * load_template().mask)


def test_holes_in_a_brain_are_brain(tmp_path):
    voxels, affine = own_brain()
    holed = voxels.copy()
    holed[45, 54, 45] = 0
    scan = write_scan(tmp_path / "scan.nii.gz", holed, affine)
    assert map_scan(scan, SUBJECT).brain[45, 54, 45]


@pytest.mark.parametrize("recipe", [TEMPLATE, SUBJECT])
def test_a_faint_background_is_no_brain(tmp_path, recipe):
    voxels, affine = own_brain()
    faint = np.where(voxels > 0, voxels, 0.0005 * voxels.max())
    mapped = map_scan(write_scan(tmp_path / "faint.nii.gz", faint, affine), recipe)
    clean = map_scan(write_scan(tmp_path / "clean.nii.gz", voxels, affine), recipe)
    np.testing.assert_array_equal(mapped.brain, clean.brain)
    np.testing.assert_array_equal(mapped.volume, clean.volume)


def test_contents_between_a_brain_and_a_head_are_noted_unless_given(tmp_path):
    places = np.moveaxis(np.indices(GRID_SHAPE), 0, -1) - [45, 54, 45]
    inside = np.linalg.norm(places, axis=-1) < 42  # 84 mm: 2.5 litres
    scan = write_scan(tmp_path / "scan.nii.gz", inside * ramp(GRID_SHAPE, RIGHT_AFFINE))
    assert map_scan(scan, TEMPLATE).notes == [
        "head or brain is uncertain (2.5 litres, taken for a brain): give --contents"
    ]
    assert map_scan(scan, Recipe("resample", contents="brain")).notes == []


def test_a_head_is_refused_where_only_its_own_brain_should_be_kept(tmp_path):
    scan = write_scan(tmp_path / "scan.nii.gz", head(GRID_SHAPE, RIGHT_AFFINE), RIGHT_AFFINE)
    with pytest.raises(ValueError, match=r"scan.nii.gz.*whole head.*--mask template"):
        map_scan(scan, SUBJECT)
    for recipe in (TEMPLATE, SUBJECT):
        resample.check(recipe)
    with pytest.raises(ValueError, match="extracts no brains"):
        resample.check(Recipe("resample", mask="subject", contents="head"))
    assert map_scan(scan, Recipe("resample", mask="subject", contents="brain")).contents == "brain"


@pytest.mark.parametrize("side", range(3))
def test_a_field_of_view_without_all_of_the_brain_is_refused(tmp_path, side):
    voxels, affine = head(GRID_SHAPE, RIGHT_AFFINE), RIGHT_AFFINE.copy()
    start = [0, 0, 0]
    start[side] = np.argwhere(load_template().mask[::-1]).min(axis=0)[side]
    affine[:3, 3] += 2 * np.array(start)
    cut = voxels[tuple(slice(first, None) for first in start)]
    scan = write_scan(tmp_path / "whole.nii.gz", cut, affine)
    map_scan(scan, TEMPLATE)  # the brain's outermost voxels are the scan's
    affine[side, 3] += 2
    cut = cut[tuple(slice(int(axis == side), None) for axis in range(3))]
    scan = write_scan(tmp_path / "cut.nii.gz", cut, affine)
    with pytest.raises(ValueError, match=r"cut.nii.gz: its field of view leaves out .*%"):
        map_scan(scan, TEMPLATE)


def test_a_scan_without_anything_in_the_brain_is_refused(tmp_path):
    voxels = np.zeros(GRID_SHAPE, dtype=np.float32)
    voxels[0] = np.arange(GRID_SHAPE[2])
    scan = write_scan(tmp_path / "scan.nii.gz", voxels, RIGHT_AFFINE)
    with pytest.raises(ValueError, match="0 everywhere in the template's brain"):
        map_scan(scan, TEMPLATE)


def test_identity_names_engines_template_and_interpolation():
    found = resample.identity(TEMPLATE)
    assert set(found.versions) == {"nibabel", "scipy"}
    assert found.template_sha256 == load_template().sha256
    assert found.parameters == {"interpolation": "trilinear"}


def test_scan_named_for_another_space_is_refused(tmp_path):
    path = write_scan(tmp_path / "sub-1_space-MNI152NLin2009cAsym_T1w.nii.gz", *own_brain())
    with pytest.raises(ValueError, match="says space MNI152NLin2009cAsym, MNI152NLin6Asym expect"):
        map_scan(path, SUBJECT)
    same = path.rename(tmp_path / "sub-1_space-MNI152NLin6Asym_res-2_T1w.nii.gz")
    assert map_scan(same, SUBJECT).volume.any()
