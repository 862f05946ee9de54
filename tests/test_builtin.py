"""The real engines on a small synthetic head, where they are installed."""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from synthetic_head import PAD, make_head, rotation

from data_preprocessing.pipeline import builtin
from data_preprocessing.pipeline.builtin import Transform, resample
from data_preprocessing.pipeline.quality import inspect
from data_preprocessing.pipeline.recipe import Mapped, Recipe
from tests.audit.transforms import load_transform, template_to_scan
from utils.packages import PREPROCESSING
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

AFFINE = Recipe(registration="affine", mask="subject")
DEFORMABLE = Recipe()


@dataclass
class Made:
    mapped: Mapped
    workspace: Path


def make(image, recipe, folder):
    image.to_filename(folder / "scan.nii.gz")
    return Made(builtin.map_scan(folder / "scan.nii.gz", recipe, workspace=folder), folder)


@pytest.fixture(scope="module")
def affine_head(tmp_path_factory):
    return make(make_head(), AFFINE, tmp_path_factory.mktemp("head"))


def judged(mapped, registration):
    return inspect(mapped.volume, registration=registration, brain=mapped.brain)


def grid_points():
    """(91, 109, 91, 3) RAS mm of the voxels of the grid."""
    return apply_affine(GRID_AFFINE, np.argwhere(np.ones(GRID_SHAPE))).reshape(*GRID_SHAPE, 3)


def brain_points(count=2000):
    """Points in the template's brain, (count, 3) RAS mm."""
    points = grid_points()[load_template().mask]
    return points[np.random.default_rng(0).choice(len(points), count, replace=False)]


def test_template_is_on_the_grid_in_the_space_of_mni():
    template = load_template()
    assert template.brain.shape == template.mask.shape == GRID_SHAPE
    assert (template.brain[~template.mask] == 0).all()
    assert 1.7e3 < template.mask.sum() * 8e-3 < 1.95e3  # ml; FSL's mask has 1,829
    # MNI152: the origin, in the anterior commissure, is inside; the brain is left-right balanced.
    assert template.mask[tuple(np.round(np.linalg.inv(GRID_AFFINE)[:3, 3]).astype(int))]
    both = template.mask & template.mask[::-1]
    assert both.sum() > 0.97 * template.mask.sum()


def test_resampling_reads_each_point_where_the_transform_says():
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(20, 22, 18)).astype(np.float32)
    affine = rotation(30, 2) @ np.diag([3.0, 4, 5, 1])
    affine[:3, 3] = -30, -40, -20
    # Each template voxel reads the scan's voxel whose indices are a third of its own.
    pull = affine @ np.diag([1 / 3, 1 / 3, 1 / 3, 1]) @ np.linalg.inv(GRID_AFFINE)
    got = resample(volume, affine, Transform(pull, None))
    np.testing.assert_allclose(got[:60:3, :66:3, :54:3], volume, atol=1e-4)
    assert (got[61:] == 0).all()


def test_displacement_is_added_before_the_affine():
    volume = np.random.default_rng(0).normal(size=GRID_SHAPE).astype(np.float32)
    shift = np.zeros((*GRID_SHAPE, 3), np.float32)
    shift[..., 1] = 4.0  # mm to the front: two voxels
    got = resample(volume, GRID_AFFINE, Transform(np.eye(4), shift))
    np.testing.assert_allclose(got[:, :-2], volume[:, 2:], atol=1e-5)


def test_jacobian_is_the_volume_change_of_a_known_map():
    stretch = grid_points() * [0.1, -0.2, 0.05]
    determinant = builtin.jacobian_determinant(stretch.astype(np.float32))
    np.testing.assert_allclose(determinant, 1.1 * 0.8 * 1.05, rtol=1e-4)


def test_transform_survives_its_files(tmp_path):
    rng = np.random.default_rng(0)
    transform = Transform(
        np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]]),
        rng.normal(size=(*GRID_SHAPE, 3)).astype(np.float32),
    )
    kept = builtin.save_transform(transform, tmp_path)
    read = load_transform(kept)
    np.testing.assert_allclose(read.affine, transform.affine, rtol=1e-9)
    np.testing.assert_array_equal(read.displacement, transform.displacement)
    voxels = rng.integers(0, GRID_SHAPE, (50, 3))
    points = voxels @ GRID_AFFINE[:3, :3].T + GRID_AFFINE[:3, 3]
    moved = points + transform.displacement[tuple(voxels.T)]
    expected = moved @ transform.affine[:3, :3].T + transform.affine[:3, 3]
    np.testing.assert_allclose(template_to_scan(points, kept), expected, atol=1e-4)


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"deepbet.*picsl-greedy: .* -m pip install -r .*\.txt"):
        builtin.check(AFFINE)
    assert PREPROCESSING.is_file()


@pytest.mark.engines
@pytest.mark.slow
def test_head_lands_on_the_template(affine_head):
    mapped, template = affine_head.mapped, load_template()
    assert (mapped.contents, mapped.notes) == ("head", [])
    assert mapped.volume.dtype == np.float32
    assert judged(mapped, "affine").flags == {}
    # Where no noise was added there is nothing left to differ in.
    assert judged(mapped, "affine").correlation > 0.95
    assert (mapped.volume[~mapped.brain] == 0).all()
    scalp = np.percentile(mapped.volume[template.mask], 99.9)
    assert mapped.volume.max() < 1.5 * scalp


@pytest.mark.engines
@pytest.mark.slow
def test_a_head_cut_by_the_field_of_view_tells_how_flat_its_brain_ends(affine_head, tmp_path):
    head = make_head()
    top = np.nonzero(load_template().mask.any(axis=(0, 1)))[0].max() + PAD
    cut = make(head.slicer[:, :, : top - 11], AFFINE, tmp_path).mapped  # 24 mm of the brain
    assert affine_head.mapped.flat_end_mm2 < 2500
    assert cut.flat_end_mm2 > 6000


@pytest.mark.engines
@pytest.mark.slow
def test_turned_head_maps_to_the_same_place(affine_head, tmp_path):
    placed = rotation(20, 0) @ rotation(-15, 2)
    placed[:3, 3] = 30, -20, 10
    turned = make(make_head(placed=placed, seed=1), AFFINE, tmp_path)
    points = brain_points()
    here = template_to_scan(points, affine_head.mapped.kept)
    there = template_to_scan(points, turned.mapped.kept)
    carried = here @ placed[:3, :3].T + placed[:3, 3]
    assert np.linalg.norm(there - carried, axis=1).mean() < 0.5  # mm


@pytest.mark.engines
@pytest.mark.slow
def test_bent_head_maps_to_the_same_place_twice_to_the_bit(affine_head, tmp_path):
    head = make_head()
    # A smooth field of up to 8 mm, by which the head's voxels are displaced.
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(3, 4, 4, 4))
    zoom = np.array(head.shape) / 4
    field = np.stack([builtin.ndimage.zoom(part, zoom, order=3) for part in coarse], axis=-1)
    field *= 8 / np.linalg.norm(field, axis=-1).max()
    indices = np.stack(np.meshgrid(*map(np.arange, head.shape), indexing="ij"), axis=-1)
    from_voxels = np.moveaxis(indices + field / [-2, 2, 2], -1, 0)
    bent = builtin.ndimage.map_coordinates(head.get_fdata(), from_voxels, order=1)
    bent = nibabel.Nifti1Image(bent.astype(np.float32), head.affine)
    results = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        results.append(make(bent, DEFORMABLE, tmp_path / name).mapped)
    np.testing.assert_array_equal(results[0].volume, results[1].volume)
    assert results[0].transform == results[1].transform
    assert results[0].transform["jacobian_min"] > 0
    assert judged(results[0], "deformable").flags == {}

    # bent(x) = head(x + field(x)): a template point's place in the bent head, carried back.
    points = brain_points()
    there = template_to_scan(points, results[0].kept)
    voxels = np.linalg.inv(head.affine) @ np.column_stack([there, np.ones(len(there))]).T
    back = there + np.stack(
        [builtin.ndimage.map_coordinates(field[..., k], voxels[:3], order=1) for k in range(3)], -1
    )
    here = template_to_scan(points, affine_head.mapped.kept)
    assert np.linalg.norm(back - here, axis=1).mean() < 1.0  # mm
    assert np.linalg.norm(field, axis=-1).mean() > 2.0


@pytest.mark.engines
@pytest.mark.slow
def test_extracted_brain_is_recognised_and_kept_whole_without_its_faint_background(
    affine_head, tmp_path
):
    head = make_head(stripped=True)
    brain = head.get_fdata()
    faint = np.where(brain > 0, brain, 0.0005 * brain.max()).astype(np.float32)
    image = nibabel.Nifti1Image(faint, head.affine)
    mapped = make(image, Recipe(registration="affine", mask="template"), tmp_path).mapped
    assert mapped.contents == "brain"
    around = ~builtin.ndimage.binary_dilation(mapped.brain)
    assert (mapped.volume[around] == 0).all()
    assert judged(mapped, "affine").flags == {}
    inside = load_template().mask
    assert np.corrcoef(mapped.volume[inside], affine_head.mapped.volume[inside])[0, 1] > 0.95


@pytest.mark.engines
@pytest.mark.slow
def test_slab_of_a_head_is_noted_as_uncertain(tmp_path):
    head = make_head()
    voxels = np.asarray(head.dataobj) * (np.asarray(head.dataobj) > 15)  # without noise in air
    slab = nibabel.Nifti1Image(voxels, head.affine).slicer[:, :, -80:]  # the upper part
    notes = make(slab, AFFINE, tmp_path).mapped.notes
    assert any("head or brain is uncertain" in found for found in notes)


@pytest.mark.engines
@pytest.mark.slow
def test_noise_is_refused_or_flagged(tmp_path):
    noise = np.random.default_rng(0).normal(100, 20, (100, 110, 100)).astype(np.float32)
    image = nibabel.Nifti1Image(noise, GRID_AFFINE)
    try:
        made = make(image, AFFINE, tmp_path)
    except ValueError as error:
        assert "scan.nii.gz" in str(error)
    else:
        assert judged(made.mapped, "affine").flags
