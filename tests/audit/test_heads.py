"""Heads degraded by known transforms, and the errors measured with them."""

import csv

import nibabel
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

from data_preprocessing.pipeline.recipe import Mapped
from tests.audit import heads
from tests.audit.degradation import Degradation, degrade
from tests.audit.heads import CASES
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

pytestmark = pytest.mark.slow
# A small head, 144 mm long, in a header that is turned and shifted: (P, S, R), 4 mm.
SHAPE = (44, 40, 38)
AFFINE = np.array([[0, 0, 4, -70], [-4, 0, 0, 95], [0, 4, 0, -60], [0, 0, 0, 1]], float)
SPOT = np.array([-30.0, 25.0, 40.0])  # mm: left, in front, above
TURNED = {"rotation_degrees": (10, -20, 15), "shift_mm": (9, -14, 21)}


def brightness(points: np.ndarray) -> np.ndarray:
    """The head's intensity at (N, 3) mm: smooth, 0 far out, brightest near the spot."""
    centre, widths = np.array([3.0, 8.0, 16.0]), np.array([45.0, 55.0, 42.0])
    radius = np.linalg.norm((points - centre) / widths, axis=1)
    body = 600 / (1 + np.exp((radius - 1) * 9))
    return body + 400 * np.exp(-((points - SPOT) ** 2).sum(axis=1) / (2 * 9.0**2))


def head(shape=SHAPE, affine=AFFINE) -> nibabel.Nifti1Image:
    volume = brightness(world(shape, affine)).reshape(shape)
    return nibabel.Nifti1Image(volume.astype(np.float32), affine)


def world(shape, affine) -> np.ndarray:
    """(N, 3) mm of all voxels."""
    voxels = np.argwhere(np.ones(shape))
    return (np.column_stack([voxels, np.ones(len(voxels))]) @ affine.T)[:, :3]


def data(image) -> np.ndarray:
    return np.asarray(image.dataobj)


def inside(image) -> np.ndarray:
    return data(image) > 0.1 * np.percentile(data(image), 99.5)


def centre(image) -> np.ndarray:
    return world(image.shape, image.affine)[inside(image).ravel()].mean(axis=0)


def brightest(image) -> np.ndarray:
    """Where the image is brightest, in mm: the mean place of its brightest voxels."""
    points, values = world(image.shape, image.affine), data(image).ravel()
    weights = np.clip(values - 0.85 * values.max(), 0, None)
    return weights @ points / weights.sum()


def test_nothing_done_leaves_the_head_and_its_points_alone():
    image = head()
    degraded, known = degrade(image, Degradation(), seed=0)
    np.testing.assert_array_equal(data(degraded), data(image))
    np.testing.assert_array_equal(degraded.affine, image.affine)
    points = np.random.default_rng(0).uniform(-90, 90, (50, 3))
    np.testing.assert_allclose(known(points), points, atol=1e-9)
    np.testing.assert_allclose(known.back(points), points, atol=1e-9)


def test_rotation_and_shift_move_points_as_scipy_turns_them():
    image = head()
    _, known = degrade(image, Degradation(**TURNED), seed=0)
    points = np.random.default_rng(0).uniform(-90, 90, (50, 3))
    turn = Rotation.from_rotvec(TURNED["rotation_degrees"], degrees=True)
    expected = turn.apply(points - centre(image)) + centre(image) + TURNED["shift_mm"]
    np.testing.assert_allclose(known(points), expected, atol=1e-6)
    np.testing.assert_allclose(known.back(expected), points, atol=1e-6)


@pytest.mark.parametrize(
    "degradation",
    [
        Degradation(**TURNED),
        Degradation(scale=(1.1, 0.9, 1.05), shear=(0.1, -0.05, 0.08)),
        Degradation(warp_mm=8),
        Degradation(**TURNED, warp_mm=6, scale=(0.9, 1, 1), voxel_mm=(3, 4, 5), orientation="LPI"),
    ],
    ids=["rotation and shift", "scale and shear", "warp", "everything that moves"],
)
def test_the_degraded_image_shows_at_each_place_what_the_head_has_where_it_came_from(degradation):
    degraded, known = degrade(head(), degradation, seed=1)
    expected = brightness(known.back(world(degraded.shape, degraded.affine)))
    difference = np.abs(data(degraded).ravel() - expected)
    bright = expected > 100  # beyond the head's own block nothing can be seen
    assert difference[bright].mean() < 2  # of 1000: the error of one cubic interpolation
    assert np.percentile(difference[bright], 99) < 15


@pytest.mark.parametrize("case", CASES)
def test_points_go_there_and_back_in_every_case(case):
    _, known = degrade(head(), CASES[case], seed=0)
    points = world(SHAPE, AFFINE)[::50]
    np.testing.assert_allclose(known.back(known(points)), points, atol=1e-5)


def test_the_all_together_case_has_the_promised_angle_and_shift():
    assert np.linalg.norm(CASES["all_together"].rotation_degrees) == pytest.approx(25, abs=0.1)
    assert np.linalg.norm(CASES["shift_30_mm"].shift_mm) == pytest.approx(30)


@pytest.mark.parametrize("warp_mm", [3, 9])
def test_a_warp_is_as_large_as_asked_and_has_no_folds(warp_mm):
    image = head()
    _, known = degrade(image, Degradation(warp_mm=warp_mm), seed=2)
    points = world(SHAPE, AFFINE)[inside(image).ravel()]
    lengths = np.linalg.norm(known(points) - points, axis=1)
    # Asked at places of the warped head, measured here at those of the original one.
    assert lengths.max() == pytest.approx(warp_mm, rel=0.1)
    assert lengths.mean() > 0.2 * warp_mm
    step = 0.5
    columns = [
        (known(points + step * axis) - known(points - step * axis)) / (2 * step)
        for axis in np.eye(3)
    ]
    determinants = np.linalg.det(np.stack(columns, axis=-1))
    assert determinants.min() > 0.1
    assert determinants.std() > 0.02  # it is no shift


def test_an_empty_image_and_a_warp_that_would_fold_are_refused():
    empty = nibabel.Nifti1Image(np.zeros(SHAPE, np.float32), AFFINE)
    with pytest.raises(ValueError, match="no head in the image"):
        degrade(empty, Degradation(bias=0.1), seed=0)
    with pytest.raises(ValueError, match=r"warp_mm: 60 mm change by .* give less"):
        degrade(head(), Degradation(warp_mm=60), seed=0)


@pytest.mark.parametrize("orientation", ["LPI", "PIR"])
def test_another_order_of_axes_changes_no_place_and_no_intensity(orientation):
    image = head()
    degraded, known = degrade(image, Degradation(orientation=orientation), seed=0)
    assert "".join(nibabel.aff2axcodes(degraded.affine)) == orientation
    np.testing.assert_allclose(brightest(degraded), brightest(image), atol=1e-6)
    np.testing.assert_array_equal(np.sort(data(degraded), None), np.sort(data(image), None))
    np.testing.assert_array_equal(known.affine, np.eye(4))


@pytest.mark.parametrize("orientation", [None, "PIR"])
def test_voxels_have_the_size_asked_for_along_the_stored_axes(orientation):
    degradation = Degradation(voxel_mm=(3, 4, 5.5), orientation=orientation)
    degraded, _ = degrade(head(), degradation, seed=0)
    assert "".join(nibabel.aff2axcodes(degraded.affine)) == (orientation or "PSR")
    np.testing.assert_allclose(degraded.header.get_zooms(), (3, 4, 5.5))
    np.testing.assert_allclose(brightest(degraded), brightest(head()), atol=0.5)
    affine = AFFINE @ np.diag([1, 1.25, 0.9, 1])
    kept, _ = degrade(head(affine=affine), Degradation(shift_mm=(1, 2, 3)), seed=0)
    np.testing.assert_allclose(kept.header.get_zooms(), (4, 5, 3.6), rtol=1e-5)
    assert "".join(nibabel.aff2axcodes(kept.affine)) == "PSR"


def test_nothing_of_the_head_is_cut_off():
    image = head()
    degraded, known = degrade(image, CASES["all_together"], seed=0)
    points = known(world(SHAPE, AFFINE)[inside(image).ravel()])
    voxels = (points - degraded.affine[:3, 3]) @ np.linalg.inv(degraded.affine[:3, :3]).T
    assert (voxels >= 0).all()
    assert (voxels <= np.array(degraded.shape) - 1).all()


@pytest.mark.parametrize("bias", [0.1, 0.3])
def test_the_bias_field_has_the_strength_asked_for_and_is_smooth(bias):
    image = head()
    degraded, _ = degrade(image, Degradation(bias=bias), seed=0)
    logarithm = np.log(data(degraded) / data(image))
    assert logarithm[inside(image)].std() == pytest.approx(bias, rel=1e-3)
    assert logarithm[inside(image)].mean() == pytest.approx(0, abs=1e-4)
    neighbours = np.abs(np.diff(logarithm, axis=0))[inside(image)[1:]]
    assert neighbours.max() < bias / 2  # 4 mm apart


def test_noise_is_rician_and_as_strong_as_asked():
    image = head()
    degraded, _ = degrade(image, Degradation(noise=0.05), seed=0)
    sigma = 0.05 * data(image)[inside(image)].mean()
    air = data(image) < 0.05 * sigma
    assert air.sum() > 1000
    # Where there is no signal, the length of the noise alone: Rayleigh.
    assert stats.kstest(data(degraded)[air], stats.rayleigh(scale=sigma).cdf).pvalue > 0.01
    bright = data(image) > 10 * sigma
    difference = (data(degraded) - data(image))[bright]
    assert difference.std() == pytest.approx(sigma, rel=0.05)
    assert data(degraded).min() >= 0


def test_the_same_seed_makes_the_same_head_and_each_part_is_drawn_by_itself():
    one, known = degrade(head(), Degradation(warp_mm=5, noise=0.05), seed=3)
    same, _ = degrade(head(), Degradation(warp_mm=5, noise=0.05), seed=3)
    np.testing.assert_array_equal(data(one), data(same))
    points = world(SHAPE, AFFINE)[::100]
    _, other = degrade(head(), Degradation(warp_mm=5, bias=0.2), seed=3)
    np.testing.assert_array_equal(known(points), other(points))
    _, another = degrade(head(), Degradation(warp_mm=5), seed=4)
    assert np.abs(known(points) - another(points)).max() > 1


def centring_backend():
    """A backend that finds the shift of a head and nothing else."""

    def map_scan(path, recipe, *, workspace):
        image = nibabel.load(path)
        if nibabel.aff2axcodes(image.affine) == ("L", "P", "I"):
            raise RuntimeError("this order | of axes fails")
        kept = {"_affine.txt": workspace / "affine.txt"}
        np.savetxt(kept["_affine.txt"], centre(image))
        volume = brightness(world(GRID_SHAPE, GRID_AFFINE)).reshape(GRID_SHAPE)
        return Mapped(volume.astype(np.float32), None, "head", {}, [], kept)

    def template_to_scan(points, kept):
        return points * 0.5 + np.loadtxt(kept["_affine.txt"])

    return map_scan, template_to_scan


@pytest.fixture
def backend(monkeypatch):
    """Stands in for the real backend: which errors it makes is known."""
    map_scan, template_to_scan = centring_backend()
    monkeypatch.setattr(heads, "check", lambda recipe: None)
    monkeypatch.setattr(heads, "map_scan", map_scan)
    monkeypatch.setattr(heads, "template_to_scan", template_to_scan)
    monkeypatch.setattr(heads, "correlation", lambda volume, template: 0.875)


def test_the_command_tells_the_error_of_a_backend_whose_errors_are_known(backend, tmp_path):
    nibabel.save(head(), tmp_path / "head.nii.gz")
    flags = [str(tmp_path / "head.nii.gz"), "--output_dir", str(tmp_path / "out")]
    flags += ["--cases", "shift_30_mm", "rotation_z_25", "axes_LPI", "axes_RAS"]
    shift, rotation, failed, axes = heads.main(flags)
    # It finds the shift, so its errors are those of a centre of voxels on two lattices.
    assert shift.max_mm < 0.5
    assert axes.max_mm < 1e-6
    # Turned by 25 degrees about z, a point r mm from that axis is off by 2 r sin(12.5 degrees).
    points = world(GRID_SHAPE, GRID_AFFINE)
    points = points[load_template().mask.ravel()]
    radius = np.linalg.norm(0.5 * points[:, :2], axis=1)
    expected = 2 * radius * np.sin(np.radians(12.5))
    assert rotation.mean_mm == pytest.approx(expected.mean(), abs=0.3)
    assert rotation.max_mm == pytest.approx(expected.max(), abs=0.5)
    assert rotation.correlation_before == rotation.correlation_after == 0.875
    assert failed.failure == "this order | of axes fails"
    with (tmp_path / "out/errors.tsv").open(newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [row["case"] for row in table] == ["shift_30_mm", "rotation_z_25", "axes_LPI",
                                              "axes_RAS"]  # fmt: skip
    assert float(table[1]["mean_mm"]) == pytest.approx(rotation.mean_mm)
    lines = (tmp_path / "out/errors.md").read_text().splitlines()
    assert len(lines) == 6
    assert {line.count("|") for line in lines} == {9}
    assert (tmp_path / "out/pictures/head_shift_30_mm.png").is_file()
    assert "this order | of axes fails" in (tmp_path / "out/page.html").read_text()
    with pytest.raises(FileExistsError, match=r"errors\.tsv.*would be overwritten"):
        heads.main(flags)


def test_a_head_that_fails_as_it_is_becomes_one_row(backend, tmp_path):
    image = degrade(head(), Degradation(orientation="LPI"), seed=0)[0]
    nibabel.save(image, tmp_path / "head.nii.gz")
    (row,) = heads.main([str(tmp_path / "head.nii.gz"), "--output_dir", str(tmp_path / "out")])
    assert (row.case, row.failure) == ("as it is", "this order | of axes fails")


def test_missing_heads_and_two_of_one_name_are_told_at_once(tmp_path):
    for name in ("a/head.nii", "b/head.nii.gz"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    given = [str(tmp_path / name) for name in ("a/head.nii", "b/head.nii.gz", "none.nii")]
    with pytest.raises(ValueError, match=r"(?s)two heads of one name.*none\.nii: no such file"):
        heads.main([*given, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
