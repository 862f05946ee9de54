"""Whether a scan on the grid may be trusted: measures, and the limits beyond which it is flagged.

Needs numpy and scipy only, whoever preprocessed the scan. docs/quality.md says what the limits
catch and what they miss, docs/LOG.md from which scans they were learnt.

How a brain lies against the template (another side, turned, shifted) is looked for at 4 mm, lightly
smoothed, where a scan takes tenths of a second. Likeness is the Pearson correlation with the
template over its brain and 8 mm around it, so that the outline counts too. For two standardised
samples of n voxels the squared distance is 2n(1 - correlation): least squares find the rigid motion
of the highest correlation, as in Friston et al., "Spatial registration and normalization of
images", Human Brain Mapping 3, 1995.

No image shows whether left and right are exchanged: a brain and its mirror image are equally like
the template. The affine of the file is trusted.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from utils.scans.template import Template, load_template
from utils.scans.volumes import GRID_SHAPE, average_2x2x2

FAINT = 0.01  # share of the bright tissue's intensity; an interpolation leaves less than this
RIM = 8.0  # mm at the outline of the brain, where people differ
END = 1 / 6  # share of the template's brain in each of its six ends
ENDS = (("right", "left"), ("back", "front"), ("bottom", "top"))  # of the axes of LAS
VOXEL = 4.0  # mm, of the coarse grid
AROUND = 2  # coarse voxels around the template's brain that count for likeness
STRIDE = 3  # one in three of these voxels is compared, 12,000 in all
SMOOTHING = 1.0  # coarse voxels, SD
BRIGHTEST = 98  # percentile in the template's brain; brighter eyes and fat are cut to it


@dataclass(frozen=True)
class Rule:
    """A measure, its limits, and the sentence about a scan beyond the limit.

    Attributes:
        code: of the flag; two rules may share one.
        measure: a field of `Measures`.
        affine: limit after affine registration.
        deformable: limit after deformable registration.
        sentence: for people, with {value}, {limit} and {part}.
        lowest: whether the limit is the lowest good value; otherwise it is the highest.
    """

    code: str
    measure: str
    affine: float
    deformable: float
    sentence: str
    lowest: bool = False

    def limit(self, registration: str | None) -> float:
        """The limit for a registration; the laxer of both where it is unknown."""
        if registration is not None:
            return getattr(self, registration)
        return (min if self.lowest else max)(self.affine, self.deformable)


# Affine: 1.5 times the highest of 199 good scans of OASIS-1, rounded; 99 in 100 of them lie above
# the limits of correlation and overlap. Deformable: 27 good scans have a correlation of at least
# 0.73 and an overlap of at least 0.91; the other limits are those of affine registration.
RULES = (
    Rule(
        "correlation", "correlation", 0.40, 0.70,
        "correlation with the template {value:.2f}, below {limit:.2f}", lowest=True,
    ),
    Rule(
        "overlap", "overlap", 0.85, 0.90,
        "overlap with the template {value:.2f}, below {limit:.2f}", lowest=True,
    ),
    Rule(
        "incomplete", "missing", 0.12, 0.12,
        "{value:.0%} of the {part} of the brain is empty, above {limit:.0%}",
    ),
    Rule(
        "incomplete", "flat_end_mm2", 3000.0, 3000.0,
        "the brain ends flat over {value:.0f} mm2, above {limit:.0f}: cut by the field of view",
    ),
    Rule(
        "skull", "outside", 0.17, 0.17,
        "{value:.0%} of a brain's volume lies outside the brain, above {limit:.0%}: skull, eyes or "
        "neck left on",
    ),
    Rule(
        "rotated", "rotation_degrees", 4.0, 4.0,
        "turned by {value:.1f} degrees against the template, above {limit:.1f}",
    ),
    Rule(
        "shifted", "shift_mm", 3.5, 3.5,
        "shifted by {value:.1f} mm against the template, above {limit:.1f}",
    ),
    Rule(
        "clipped", "plateau", 0.02, 0.02,
        "{value:.1%} of the voxels have the highest value, above {limit:.1%}: intensities clipped",
    ),
    Rule(
        "noisy", "noise", 0.08, 0.08,
        "noise of {value:.3f} of the brain's intensity, above {limit:.3f}",
    ),
)  # fmt: skip
SIDES = {
    "upside_down": "upside down: the likest to the template when its top is put to the bottom",
    "back_to_front": "back to front: the likest to the template when its back is put to the front",
    "wrong_axes": "axes exchanged: the likest to the template when they are put in another order",
}
EMPTY = {"empty": "empty: nothing in the place of the brain, or one value everywhere"}
CODES = tuple(dict.fromkeys((*EMPTY, *SIDES, *(rule.code for rule in RULES))))
HALVED = 0.6  # from this missing share on, neither side nor motion can be told
# Not told of half a brain or one on another side: they follow.
PLACED = ("rotation_degrees", "shift_mm")


@dataclass(frozen=True)
class Measures:
    """How a scan lies on the template, and how complete and clean it is.

    Attributes:
        correlation: with the template's intensities, inside its mask, -1 to 1.
        overlap: Dice coefficient of the scan's own brain with the template's mask, 0 to 1.
        missing: share of a part of the template's brain, without its rim, where the scan is empty;
            of the part that lacks most.
        part: the name of that part, such as `top` or `left front bottom`.
        outside: volume outside the template's brain and its rim, in shares of the brain's volume.
        plateau: share of the voxels above 0 that have the highest value.
        noise: SD of the difference between neighbours (noise and the finest folds), in shares of
            the brain's median intensity.
        sides: codes of SIDES, empty where the brain lies as the template does.
        rotation_degrees: against the template, once the brain is put on its side.
        shift_mm: of the centre of the brain, likewise.
        flat_end_mm2: area of the largest flat end of the scan's own brain before registration; 0
            where it is not known.
    """

    correlation: float = 0.0
    overlap: float = 0.0
    missing: float = 1.0
    part: str = "whole"
    outside: float = 0.0
    plateau: float = 1.0
    noise: float = 0.0
    sides: tuple[str, ...] = ()
    rotation_degrees: float = 0.0
    shift_mm: float = 0.0
    flat_end_mm2: float = 0.0


@dataclass(frozen=True)
class Quality(Measures):
    """Measures and what they mean.

    Attributes:
        flags: what is wrong, one sentence with value and limit by code (one of CODES).
    """

    flags: dict[str, str] = field(default_factory=dict)


class Placement(NamedTuple):
    """Where the template's brain is found in a volume."""

    # (3, 3) signed permutation, template axes to volume axes; the identity where the brain lies as
    # it should. The first axis has no sign: left and right look the same.
    sides: np.ndarray
    rotation_degrees: float  # by which the brain is turned from there, 0 to 180
    shift_mm: float  # by which the centre of the template's brain is moved


class _Regions(NamedTuple):
    """The template's brain at 4 mm, (45, 54, 45) bool each, and the voxels that are compared."""

    mask: np.ndarray
    core: np.ndarray  # the brain without its rim
    far: np.ndarray  # neither the brain nor its rim
    parts: dict[str, np.ndarray]  # the six ends and the eight corners of the core, by name
    centre: np.ndarray  # (3,) voxels, of the brain
    places: np.ndarray  # (N, 3) voxels from the centre, of the compared voxels
    values: np.ndarray  # (N,) the template's intensities there, standardised


def inspect(
    volume: np.ndarray,
    *,
    registration: str | None,
    brain: np.ndarray | None = None,
    flat_end_mm2: float | None = None,
) -> Quality:
    """Measures a scan and flags what makes its age doubtful.

    It does not see a left-right flip (the affine of the file is trusted) and does not look for a
    wrong size, only for turns and shifts. A brain bent so badly that its outline still fits is
    noticed by its correlation alone.

    Args:
        volume: (91, 109, 91) in LAS order, from `decode`; any intensities with a background of 0.
        registration: `affine` or `deformable`, whose limits are used; None: unknown, the laxer of
            both limits is used.
        brain: (91, 109, 91) bool, the scan's own brain; None: every voxel of `volume` that is not
            faint, which tells nothing new where the template's mask was applied.
        flat_end_mm2: of that brain before registration, from `native.flat_end`; None: not known.

    Raises:
        ValueError: another shape, voxels that are not finite, another registration.
    """
    if volume.shape != GRID_SHAPE or (brain is not None and brain.shape != GRID_SHAPE):
        raise ValueError(f"volume and brain of shape {GRID_SHAPE} expected, got {volume.shape}")
    if not np.isfinite(volume).all():
        raise ValueError("finite voxels expected, found NaN or infinity")
    if registration not in (None, "affine", "deformable"):
        raise ValueError(f"registration affine, deformable or None expected, got {registration!r}")
    measures = measure(volume, brain)
    if measures != Measures():
        measures = replace(measures, flat_end_mm2=round(flat_end_mm2 or 0.0))
    return Quality(**asdict(measures), flags=find_flags(measures, registration))


def find_flags(measures: Measures, registration: str | None) -> dict[str, str]:
    """What is wrong by `measures`: codes and sentences, in the order of CODES."""
    if measures == Measures():
        return dict(EMPTY)
    halved = measures.missing > HALVED
    flags = {} if halved else {code: SIDES[code] for code in measures.sides}
    follow = PLACED if halved else (*PLACED, "missing") if flags else ()
    for rule in RULES:
        value, limit = getattr(measures, rule.measure), rule.limit(registration)
        beyond = value < limit if rule.lowest else value > limit
        if beyond and rule.measure not in follow:
            text = rule.sentence.format(value=value, limit=limit, part=measures.part)
            flags[rule.code] = "; ".join(filter(None, (flags.get(rule.code), text)))
    return flags


def measure(volume: np.ndarray, brain: np.ndarray | None = None) -> Measures:
    """The measures of a scan, with arguments as for `inspect`; the defaults for an empty scan."""
    template, regions = load_template(), _regions()
    inside = volume[template.mask]
    if not (inside > 0).any() or inside.min() == inside.max():
        return Measures()
    tissue = volume > FAINT * np.percentile(volume[volume > 0], 99.5)
    brain = tissue if brain is None else brain
    coarse = average_2x2x2(tissue.astype(np.float32)) > 0.5
    missing = {name: 1 - coarse[part].mean() for name, part in regions.parts.items()}
    part = max(missing, key=missing.get)
    placement = find_placement(volume)
    up, front = placement.sides[2, 2], placement.sides[1, 1]
    sides = [name for name, sign in (("upside_down", up), ("back_to_front", front)) if sign < 0]
    if np.count_nonzero(np.diag(placement.sides)) < 3:
        sides = ["wrong_axes"]
    dice = 2 * (brain & template.mask).sum() / (brain.sum() + template.mask.sum())
    return Measures(
        correlation=round(correlation(volume, template), 4),
        overlap=round(float(dice), 4),
        missing=round(float(missing[part]), 4),
        part=part,
        outside=round(float((coarse & regions.far).sum() / regions.mask.sum()), 4),
        plateau=round(float((volume == volume.max()).sum() / (volume > 0).sum()), 5),
        noise=round(noise(volume), 4),
        sides=tuple(sides),
        rotation_degrees=round(placement.rotation_degrees, 2),
        shift_mm=round(placement.shift_mm, 2),
    )


def correlation(volume: np.ndarray, template: Template) -> float:
    """Pearson correlation with the template inside its mask; 0 where the volume is constant."""
    ours, theirs = volume[template.mask], template.brain[template.mask]
    return float(np.corrcoef(ours, theirs)[0, 1]) if ours.std() > 0 else 0.0


def noise(volume: np.ndarray) -> float:
    """SD of a voxel against the mean of its six neighbours, over the median of the brain.

    Scaled so that for white noise it is the SD (pseudo-residuals, Gasser et al., Biometrika 1986),
    and robust: 1.4826 times the median absolute value, in the template's brain without its rim.
    """
    core = _regions().core
    box = tuple(slice(ends.min(), ends.max() + 1) for ends in np.nonzero(core))
    core = np.repeat(np.repeat(np.repeat(core[box], 2, 0), 2, 1), 2, 2)
    around = volume[tuple(slice(2 * side.start - 1, 2 * side.stop + 1) for side in box)]
    middle = around[1:-1, 1:-1, 1:-1]
    neighbours = (
        around[:-2, 1:-1, 1:-1] + around[2:, 1:-1, 1:-1] + around[1:-1, :-2, 1:-1]
        + around[1:-1, 2:, 1:-1] + around[1:-1, 1:-1, :-2] + around[1:-1, 1:-1, 2:]
    )  # fmt: skip
    residual = np.abs(middle - neighbours / 6)[core] * np.sqrt(6 / 7)
    level = np.median(middle[core])
    return float(1.4826 * np.median(residual) / level) if level > 0 else 0.0


def find_placement(volume: np.ndarray) -> Placement:
    """Finds the side on which a brain lies, and from there its rigid motion.

    Args:
        volume: (91, 109, 91) in LAS order, at least 0, not constant in the template's brain.
    """
    coarse = _smooth(np.minimum(volume, np.percentile(volume[load_template().mask], BRIGHTEST)))
    regions, middle = _regions(), np.array(ndimage.center_of_mass(coarse))

    def difference(linear: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """(N,) standardised volume minus template, the template's centre laid at `centre`."""
        places = (regions.places @ linear.T + centre).T
        values = ndimage.map_coordinates(coarse, places, order=1)
        return (values - values.mean()) / (values.std() or 1.0) - regions.values

    # The 24 ways to lay a brain along the axes that an image tells apart. The identity comes first
    # and wins where all are equally like.
    signs_and_orders = product(product((1, -1), repeat=2), permutations(range(3)))
    ways = [np.eye(3)[list(order)] * (1, *signs) for signs, order in signs_and_orders]
    tried = [(ways[0], regions.centre), *((sides, middle) for sides in ways)]
    sides, _ = min(tried, key=lambda way: np.square(difference(*way)).sum())
    start = regions.centre if (sides == np.eye(3)).all() else middle

    def moved(motion: np.ndarray) -> np.ndarray:
        turn = Rotation.from_rotvec(motion[:3], degrees=True).as_matrix()
        return difference(turn @ sides, start + motion[3:])

    found = optimize.least_squares(moved, np.zeros(6), xtol=1e-2, ftol=1e-4, max_nfev=30).x
    shift = start + found[3:] - regions.centre
    rotation = Rotation.from_rotvec(found[:3], degrees=True).magnitude()
    return Placement(sides, float(np.degrees(rotation)), float(VOXEL * np.linalg.norm(shift)))


def _smooth(volume: np.ndarray) -> np.ndarray:
    """(91, 109, 91) to (45, 54, 45), float64 because least squares take tiny steps."""
    return ndimage.gaussian_filter(average_2x2x2(volume).astype(np.float64), SMOOTHING)


@cache
def _regions() -> _Regions:
    template = load_template()
    mask = average_2x2x2(template.mask.astype(np.float32)) > 0.5
    core = ndimage.distance_transform_edt(mask) * VOXEL > RIM
    far = ndimage.distance_transform_edt(~mask) * VOXEL > RIM
    inside, grid, parts = np.argwhere(core), np.indices(core.shape), {}
    for axis, names in enumerate(ENDS):
        low, high = np.quantile(inside[:, axis], (END, 1 - END))
        parts |= {names[0]: core & (grid[axis] <= low), names[1]: core & (grid[axis] >= high)}
    above = [grid[axis] > np.median(inside[:, axis]) for axis in range(3)]
    for corner in product((0, 1), repeat=3):
        name = " ".join(ENDS[axis][end] for axis, end in enumerate(corner))
        sides = [half == end for half, end in zip(above, corner, strict=True)]
        parts[name] = core & sides[0] & sides[1] & sides[2]
    near = ndimage.binary_dilation(mask, iterations=AROUND)
    values = _smooth(template.brain)[near][::STRIDE]
    values = (values - values.mean()) / values.std()
    centre = np.argwhere(mask).mean(axis=0)
    return _Regions(mask, core, far, parts, centre, np.argwhere(near)[::STRIDE] - centre, values)
