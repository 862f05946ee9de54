import nibabel
import numpy as np
import pytest

from analysis.saliency.regions import (
    LOBES,
    OUTSIDE,
    STRUCTURES,
    TISSUES,
    coarse_regions,
    format_regions,
    region_table,
)
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE


def region_at(*millimetres: float) -> str:
    voxel = (
        nibabel.affines.apply_affine(np.linalg.inv(GRID_AFFINE), millimetres).round().astype(int)
    )
    regions = coarse_regions()
    return regions.names[regions.labels[tuple(voxel)]]


def test_every_voxel_of_the_brain_is_in_exactly_one_region_and_no_region_is_empty():
    regions = coarse_regions()

    assert regions.labels.shape == GRID_SHAPE
    np.testing.assert_array_equal(regions.labels > 0, load_template().mask)
    parts = [*STRUCTURES, *(f"{lobe} {tissue}" for lobe in LOBES for tissue in TISSUES)]
    assert set(regions.names) == {OUTSIDE, *(f"{s} {p}" for s in ("left", "right") for p in parts)}
    assert len(set(regions.names)) == len(regions.names)
    assert np.bincount(regions.labels.ravel(), minlength=len(regions.names)).min() > 500


def test_hemispheres_have_regions_of_like_size():
    regions = coarse_regions()
    sizes = dict(zip(regions.names, np.bincount(regions.labels.ravel()), strict=True))
    for name in regions.names[1:]:
        if name.startswith("left"):
            assert 0.75 < sizes[name] / sizes[name.replace("left", "right")] < 1.35, name


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((12, -18, 8), "right deep grey"),  # thalamus
        ((-26, 4, 2), "left deep grey"),  # putamen
        ((8, 14, 10), "right ventricles"),  # frontal horn
        ((-24, -46, 8), "left ventricles"),  # atrium
        ((0, -44, -32), "left ventricles"),  # fourth ventricle; the midline counts as left
        ((28, -18, -16), "right medial temporal"),  # hippocampus
        ((-6, -28, -32), "left brain stem"),  # pons
        ((30, -66, -44), "right cerebellum"),
        ((-26, 46, 10), "left frontal white"),
        ((38, -60, 44), "right parietal grey"),
        ((-66, -24, -12), "left temporal grey"),
        ((10, -86, 4), "right occipital grey"),  # calcarine cortex
    ],
)  # fmt: skip
def test_landmarks_are_in_their_regions(place, expected):
    assert region_at(*place) == expected


def test_table_says_where_the_effect_is_and_which_way_it_goes():
    regions = coarse_regions()
    effect = np.zeros(GRID_SHAPE)
    effect[regions.labels == regions.names.index("left ventricles")] = -2.0
    effect[regions.labels == regions.names.index("right frontal grey")] = 0.5
    effect[0, 0, 0] = 7.0

    rows = region_table(effect, np.abs(effect), regions)

    first, second = rows[:2]
    assert (first["region"], first["sign"], first["mean_effect"]) == ("left ventricles", "-", -2)
    assert (second["region"], second["sign"]) == ("right frontal grey", "+")
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert sum(row["voxels"] for row in rows) == np.prod(GRID_SHAPE)
    inside = [row for row in rows if row["region"] != OUTSIDE]
    brain = sum(row["voxels"] for row in inside)
    weighted = sum(row["concentration"] * row["voxels"] / brain for row in inside)
    assert weighted == pytest.approx(1)
    assert {row["sign"] for row in rows[2:] if row["region"] != OUTSIDE} == {"0"}
    assert "left ventricles" in format_regions(rows, "years").splitlines()[1]


def test_a_map_without_sign_or_without_effect_makes_a_table():
    rows = region_table(np.zeros(GRID_SHAPE), np.zeros(GRID_SHAPE), coarse_regions(), signed=False)
    assert {row["sign"] for row in rows} == {row["mean_effect"] for row in rows} == {"n/a"}
    assert all(row["share"] == 0 for row in rows)
    assert len(format_regions(rows, "years per SD", most=3).splitlines()) == 4
