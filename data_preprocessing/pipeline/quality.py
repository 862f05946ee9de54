"""Whether a scan on the grid may be trusted: measures, and the limits beyond which it is flagged.

Whoever preprocessed the scan, nothing but numpy and scipy is needed. docs/quality.md says what the
limits catch and what they miss, docs/LOG.md from which scans they were learnt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import product

import numpy as np
from scipy import ndimage

from data_preprocessing.pipeline.placement import VOXEL, find_placement
from utils.scans.template import Template, load_template
from utils.scans.volumes import GRID_SHAPE, average_2x2x2

FAINT = 0.01  # share of the bright tissue's intensity; below lies what an interpolation leaves
RIM = 8.0  # mm at the outline of the brain, where people differ
END = 1 / 6  # share of the template's brain that each of its six ends has
ENDS = (("right", "left"), ("back", "front"), ("bottom", "top"))  # of the axes of LAS


@dataclass(frozen=True)
class Rule:
    """A measure, its limit by registration, and what is said of a scan beyond it.

    Attributes:
        measure: a field of `Measures`.
        affine: limit after affine registration.
        deformable: the same after deformable registration.
        sentence: for people, with {value}, {limit} and {part}.
        lowest: whether the limit is the lowest good value, else the highest.
    """

    measure: str
    affine: float
    deformable: float
    sentence: str
    lowest: bool = False

    def limit(self, registration: str | None) -> float:
        """The limit; of both the laxer where the registration is not known."""
        if registration is not None:
            return getattr(self, registration)
        return (min if self.lowest else max)(self.affine, self.deformable)


# Affine: 1.5 times the highest of 199 good scans of OASIS-1, rounded; correlation and overlap lie
# below 99 in 100. Deformable: 27 good scans have at least 0.73 and 0.91; the others are not learnt.
RULES = {
    "correlation": Rule(
        "correlation", 0.40, 0.70,
        "correlation with the template {value:.2f}, below {limit:.2f}", lowest=True,
    ),
    "overlap": Rule(
        "overlap", 0.85, 0.90, "overlap with the template {value:.2f}, below {limit:.2f}",
        lowest=True,
    ),
    "incomplete": Rule(
        "missing", 0.12, 0.12, "{value:.0%} of the {part} of the brain is empty, above {limit:.0%}"
    ),
    "skull": Rule(
        "outside", 0.17, 0.17,
        "{value:.0%} of a brain's volume lies outside the brain, above {limit:.0%}: skull, eyes or "
        "neck left on",
    ),
    "rotated": Rule(
        "rotation_degrees", 4.0, 4.0,
        "turned by {value:.1f} degrees against the template, above {limit:.1f}",
    ),
    "shifted": Rule(
        "shift_mm", 3.5, 3.5, "shifted by {value:.1f} mm against the template, above {limit:.1f}"
    ),
    "clipped": Rule(
        "plateau", 0.02, 0.02,
        "{value:.1%} of the voxels have the highest value, above {limit:.1%}: intensities clipped",
    ),
    "noisy": Rule(
        "noise", 0.08, 0.08, "noise of {value:.3f} of the brain's intensity, above {limit:.3f}"
    ),
}  # fmt: skip
SIDES = {
    "upside_down": "upside down: the likest to the template when its top is put to the bottom",
    "back_to_front": "back to front: the likest to the template when its back is put to the front",
    "wrong_axes": "axes exchanged: the likest to the template when they are put in another order",
}
EMPTY = {"empty": "empty: nothing in the place of the brain, or one value everywhere"}
CODES = (*EMPTY, *SIDES, *RULES)
HALVED = 0.6  # missing share from which on no side and no motion can be told
PLACED = ("rotated", "shifted")  # follow from what is said already of half a brain, or a turned one


@dataclass(frozen=True)
class Measures:
    """How a scan lies on the template, and what there is of it.

    Attributes:
        correlation: with the template's intensities, inside its mask, -1 to 1.
        overlap: Dice coefficient of the scan's own brain with the template's mask, 0 to 1.
        missing: share of a part of the template's brain, its rim left out, where the scan is
            empty; of the part that lacks most.
        part: the name of that part, such as `top` or `left front bottom`.
        outside: what lies outside the template's brain and its rim, in shares of its volume.
        plateau: share of the voxels above 0 that have the highest value.
        noise: SD of what differs from neighbour to neighbour, noise and the finest folds, in
            shares of the brain's median intensity.
        sides: codes of SIDES, empty where the brain lies as the template does.
        rotation_degrees: against the template, left over when it is put on its side.
        shift_mm: of the centre of the brain, likewise.
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


@dataclass(frozen=True)
class Quality(Measures):
    """Measures and what they mean.

    Attributes:
        flags: what is wrong, by code (one of CODES) one sentence for people, with value and limit;
            empty where nothing is.
    """

    flags: dict[str, str] = field(default_factory=dict)


def inspect(
    volume: np.ndarray, *, registration: str | None, brain: np.ndarray | None = None
) -> Quality:
    """Measures a scan and flags what no age should be trusted of.

    A left-right flip cannot be seen in an image: the affine of the file is trusted. Nor is a wrong
    size looked for, only turns and shifts; and a brain so badly bent that its outline fits is seen
    by its correlation alone.

    Args:
        volume: (91, 109, 91) in LAS order, from `decode`; any scale of
            intensities whose background is 0.
        registration: `affine` or `deformable`, whose limits are used; None, not known: of each
            limit the laxer.
        brain: (91, 109, 91) bool, the scan's own brain; None: what is not faint in `volume`, which
            tells nothing new where the template's mask was laid over it.

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
    return Quality(**asdict(measures), flags=flags_of(measures, registration))


def flags_of(measures: Measures, registration: str | None) -> dict[str, str]:
    """What is wrong by `measures`: codes and sentences, in the order of CODES."""
    if measures == Measures():
        return dict(EMPTY)
    halved = measures.missing > HALVED
    flags = {} if halved else {code: SIDES[code] for code in measures.sides}
    follow = PLACED if halved else (*PLACED, "incomplete") if flags else ()
    for code, rule in RULES.items():
        value, limit = getattr(measures, rule.measure), rule.limit(registration)
        beyond = value < limit if rule.lowest else value > limit
        if beyond and code not in follow:
            flags[code] = rule.sentence.format(value=value, limit=limit, part=measures.part)
    return flags


def sentences(flags: Mapping[str, str] | Sequence[str]) -> list[str]:
    """The sentences of flags; records of earlier versions have a list of them, without codes."""
    return [str(flag) for flag in (flags.values() if isinstance(flags, Mapping) else flags)]


def measure(volume: np.ndarray, brain: np.ndarray | None = None) -> Measures:
    """The measures of a scan, arguments as of `inspect`; those of nothing where it is empty."""
    template = load_template()
    inside = volume[template.mask]
    if not (inside > 0).any() or inside.min() == inside.max():
        return Measures()
    tissue = volume > FAINT * np.percentile(volume[volume > 0], 99.5)
    coarse_tissue = average_2x2x2(tissue.astype(np.float32)) > 0.5
    parts = {name: 1 - coarse_tissue[part].mean() for name, part in _parts().items()}
    part = max(parts, key=parts.get)
    placement = find_placement(volume)
    return Measures(
        correlation=round(correlation(volume, template), 4),
        overlap=round(overlap(tissue if brain is None else brain, template), 4),
        missing=round(float(parts[part]), 4),
        part=part,
        outside=round(float((coarse_tissue & _far()).sum() / _coarse_mask().sum()), 4),
        plateau=round(float((volume == volume.max()).sum() / (volume > 0).sum()), 5),
        noise=round(noise(volume), 4),
        sides=_codes(placement.sides),
        rotation_degrees=round(placement.rotation_degrees, 2),
        shift_mm=round(placement.shift_mm, 2),
    )


def correlation(volume: np.ndarray, template: Template) -> float:
    """Pearson correlation with the template inside its mask; 0 where the volume is constant."""
    ours, theirs = volume[template.mask], template.brain[template.mask]
    return float(np.corrcoef(ours, theirs)[0, 1]) if ours.std() > 0 else 0.0


def overlap(brain: np.ndarray, template: Template) -> float:
    """Dice coefficient of two brain masks, 0 to 1."""
    both = brain.sum() + template.mask.sum()
    return float(2 * (brain & template.mask).sum() / both)


def noise(volume: np.ndarray) -> float:
    """SD of a voxel against the mean of its six neighbours, over the median of the brain.

    Scaled so that of white noise it is the SD (pseudo-residuals, Gasser et al., Biometrika 1986),
    and robust: 1.4826 times the median absolute value, in the template's brain without its rim.
    """
    core = _core()
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


def _codes(sides: np.ndarray) -> tuple[str, ...]:
    """What a signed permutation of axes is called."""
    if np.count_nonzero(np.diag(sides)) < 3:
        return ("wrong_axes",)
    turned = (("upside_down", sides[2, 2]), ("back_to_front", sides[1, 1]))
    return tuple(code for code, sign in turned if sign < 0)


@cache
def _coarse_mask() -> np.ndarray:
    """The template's brain at 4 mm, (45, 54, 45) bool."""
    return average_2x2x2(load_template().mask.astype(np.float32)) > 0.5


@cache
def _core() -> np.ndarray:
    """The same without its rim."""
    return ndimage.distance_transform_edt(_coarse_mask()) * VOXEL > RIM


@cache
def _far() -> np.ndarray:
    """What is neither the template's brain nor its rim, at 4 mm."""
    return ndimage.distance_transform_edt(~_coarse_mask()) * VOXEL > RIM


@cache
def _parts() -> dict[str, np.ndarray]:
    """The six ends and the eight corners of the core, (45, 54, 45) bool each."""
    return dict(_named_parts())


def _named_parts() -> Iterator[tuple[str, np.ndarray]]:
    core = _core()
    places = np.argwhere(core)
    grid = np.indices(core.shape)
    for axis, names in enumerate(ENDS):
        low, high = np.quantile(places[:, axis], (END, 1 - END))
        yield names[0], core & (grid[axis] <= low)
        yield names[1], core & (grid[axis] >= high)
    above = [grid[axis] > np.median(places[:, axis]) for axis in range(3)]
    for corner in product((0, 1), repeat=3):
        name = " ".join(ENDS[axis][end] for axis, end in enumerate(corner))
        sides = [half == end for half, end in zip(above, corner, strict=True)]
        yield name, core & sides[0] & sides[1] & sides[2]
