"""Flags of quality: each is raised by what it is for, and none by a good scan."""

from itertools import permutations

import nibabel
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from scipy import stats
from scipy.spatial import distance
from synthetic_head import PAD, make_head, rotation

from data_preprocessing.pipeline.quality import (
    CODES,
    RULES,
    SIDES,
    Measures,
    correlation,
    find_flags,
    find_placement,
    inspect,
    measure,
    noise,
)
from tests.audit import quality as benchmark
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

SPOILT = {
    "turned by 10 degrees about x": "rotated",
    "turned by 10 degrees about z": "rotated",
    "shifted by 10 mm along y": "shifted",
    "upside down": "upside_down",
    "back to front": "back_to_front",
    "axes x and y exchanged": "wrong_axes",
    "generated skull and scalp": "skull",
    "left half missing": "incomplete",
    "front third missing": "incomplete",
    "uppermost 30 mm missing": "incomplete",
    "noise of 20%": "noisy",
    "clipped at 90 %": "clipped",
    "empty": "empty",
    "constant": "empty",
}


@pytest.fixture
def brain() -> np.ndarray:
    """A good scan: the template with a little noise, on another scale."""
    values = load_template().brain
    return benchmark.noisy(7.3 * values, np.random.default_rng(0), share=0.02).astype(np.float32)


def placed(volume: np.ndarray, world: np.ndarray) -> np.ndarray:
    """The volume moved in the world, RAS mm, by nibabel."""
    image = nibabel.Nifti1Image(volume, world @ GRID_AFFINE)
    return np.asarray(resample_from_to(image, (GRID_SHAPE, GRID_AFFINE), order=1).dataobj)


def middle() -> np.ndarray:
    """The middle of the template's brain, RAS mm."""
    voxels = np.argwhere(load_template().mask)
    return (voxels.mean(axis=0) @ GRID_AFFINE[:3, :3]) + GRID_AFFINE[:3, 3]


@pytest.mark.parametrize("registration", ["affine", "deformable", None])
def test_a_good_scan_is_not_flagged_and_not_changed(brain, registration):
    before = brain.copy()
    quality = inspect(brain, registration=registration)
    assert quality.flags == {}
    assert quality.correlation > 0.95 < quality.overlap
    np.testing.assert_array_equal(brain, before)


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_scan_is_flagged_as_what_it_is(brain, case):
    spoilt = benchmark.CASES[case](brain, np.random.default_rng(1)).astype(np.float32)
    flags = inspect(spoilt, registration=None).flags
    assert SPOILT[case] in flags
    # What follows from half a brain, or from a turned one, is not said as well.
    if SPOILT[case] in SIDES or "half" in case:
        assert {*SIDES, "rotated", "shifted", "incomplete"} & set(flags) == {SPOILT[case]}


def test_a_head_with_its_skull_is_flagged_and_its_brain_alone_is_not():
    inner = (slice(PAD, -PAD),) * 3
    head, brain = (np.asarray(make_head(stripped=s).dataobj)[inner] for s in (False, True))
    assert "skull" in inspect(head, registration="affine").flags
    assert inspect(brain, registration="affine").flags == {}


def test_no_flag_tells_left_from_right(brain):
    assert inspect(np.flip(brain, 0), registration="affine").flags == {}


@pytest.mark.parametrize(
    ("degrees", "axis", "shift"),
    [(0, 0, (0, 0, 0)), (5, 0, (0, 0, 0)), (15, 1, (6, 0, -8)), (25, 2, (0, 12, 0))],
)
def test_rotation_and_shift_are_those_of_a_known_motion(brain, degrees, axis, shift):
    world = rotation(degrees, axis)
    world[:3, 3] = shift
    found = find_placement(placed(brain, world))
    expected = np.linalg.norm(world[:3, :3] @ middle() + shift - middle())
    np.testing.assert_array_equal(found.sides, np.eye(3))
    assert found.rotation_degrees == pytest.approx(degrees, abs=0.5)
    assert found.shift_mm == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_every_order_and_direction_of_axes_is_found(brain, order):
    # In a cube, as no axis may be cut here.
    cube = np.pad(brain, ((9, 9), (0, 0), (9, 9)))
    for axes in ((), (1,), (2,), (1, 2)) if order == (0, 1, 2) else ((2,),):
        turned = np.flip(cube, axes).transpose(order)[9:-9, :, 9:-9]
        sides = find_placement(turned).sides
        expected = np.eye(3)[list(order)]
        np.testing.assert_array_equal(abs(sides), expected)
        if order == (0, 1, 2):
            np.testing.assert_array_equal(np.diag(sides)[1:] < 0, [axis in axes for axis in (1, 2)])


def test_noise_is_the_standard_deviation_of_white_noise():
    generator = np.random.default_rng(0)
    volume = generator.normal(50, 4, GRID_SHAPE).astype(np.float32)
    assert noise(volume) == pytest.approx(4 / 50, rel=0.02)


def test_correlation_and_overlap_are_those_of_a_reference(brain):
    template = load_template()
    ours = np.roll(brain, 3, axis=1)
    reference = stats.pearsonr(ours[template.mask], template.brain[template.mask]).statistic
    assert correlation(ours, template) == pytest.approx(reference, abs=1e-6)
    assert correlation(np.ones_like(ours), template) == 0
    unlike = distance.dice((ours > 0).ravel(), template.mask.ravel())
    assert measure(ours, ours > 0).overlap == pytest.approx(1 - unlike, abs=1e-4)


def test_missing_share_is_told_of_the_part_that_lacks_most(brain):
    brain[46:, 60:, :40] = 0  # towards left, front and bottom
    quality = inspect(brain, registration="affine")
    assert (quality.part, quality.missing > 0.5) == ("left front bottom", True)
    assert "of the left front bottom of the brain is empty" in quality.flags["incomplete"]


def test_a_brain_that_ended_flat_before_registration_is_incomplete_whatever_became_of_it(brain):
    whole, cut = (inspect(brain, registration=None, flat_end_mm2=area) for area in (2400, 3800))
    assert (whole.flags, list(cut.flags)) == ({}, ["incomplete"])
    assert "flat over 3800 mm2, above 3000: cut by the field of view" in cut.flags["incomplete"]
    brain[:, :, 55:] = 0
    both = inspect(brain, registration="affine", flat_end_mm2=9000).flags["incomplete"]
    assert "of the brain is empty" in both
    assert "flat over 9000 mm2" in both


def test_a_scan_s_own_brain_is_compared_where_it_is_known(brain):
    half = load_template().mask.copy()
    half[:45] = False
    assert set(inspect(brain, registration="deformable", brain=half).flags) == {"overlap"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.measure)
def test_sentences_say_value_and_limit_and_the_laxer_one_where_it_is_not_known(rule):
    good = Measures(correlation=1, overlap=1, missing=0, plateau=0)
    laxer, stricter = sorted((rule.affine, rule.deformable), reverse=not rule.lowest)
    assert rule.limit(None) == laxer
    assert {rule.limit("affine"), rule.limit("deformable")} == {laxer, stricter}
    beyond = laxer - 0.003 if rule.lowest else laxer * 1.02
    values = {field: getattr(good, field) for field in vars(good)}
    flags = find_flags(Measures(**values | {rule.measure: beyond}), None)
    assert list(flags) == [rule.code]
    assert find_flags(Measures(**values | {rule.measure: laxer}), None) == {}
    assert rule.sentence.format(value=beyond, limit=laxer, part=good.part) == flags[rule.code]
    assert find_flags(good, None) == {}
    assert set(flags) < set(CODES)


def test_scale_of_intensities_does_not_matter(brain):
    assert inspect(brain * 1000, registration=None) == inspect(brain, registration=None)


def test_what_is_no_scan_on_the_grid_is_refused(brain):
    with pytest.raises(ValueError, match=r"shape \(91, 109, 91\) expected, got \(90, 109, 91\)"):
        inspect(brain[1:], registration=None)
    with pytest.raises(ValueError, match="affine, deformable or None expected, got 'rigid'"):
        inspect(brain, registration="rigid")
    brain[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        inspect(brain, registration=None)
