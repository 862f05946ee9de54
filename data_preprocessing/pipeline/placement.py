"""How a brain on the grid lies against the template: on another side, turned, shifted.

All at 4 mm and lightly smoothed, where a scan takes tenths of a second. Likeness is the Pearson
correlation with the template over its brain and 8 mm around it, so that the outline counts too. Of
two standardised samples of n voxels the squared distance is 2n(1 - correlation): least squares
find the rigid motion of the highest correlation, as in Friston et al., "Spatial registration and
normalization of images", Human Brain Mapping 3, 1995.

No image shows whether left and right are exchanged: a brain and its mirror image are equally alike
to the template. The affine is trusted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numpy as np
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from utils.scans.template import load_template
from utils.scans.volumes import average_2x2x2

VOXEL = 4.0  # mm
AROUND = 2  # voxels around the template's brain
EVERY = 3  # of these voxels one is looked at, 12,000 in all
SMOOTHING = 1.0  # voxels, SD
BRIGHTEST = 98  # percentile in the template's brain to which eyes and fat that were left are cut


@dataclass(frozen=True)
class Placement:
    """Where the template's brain is found in a volume.

    Attributes:
        sides: (3, 3) signed permutation, template axes to volume axes; the identity where the
            brain lies as it should. The first axis has no sign: left and right look the same.
        rotation_degrees: about which the brain is turned from there, 0 to 180.
        shift_mm: by which the centre of the template's brain is moved.
    """

    sides: np.ndarray
    rotation_degrees: float
    shift_mm: float


@dataclass(frozen=True)
class _Target:
    """What of the template is compared: (N, 3) places from its centre (3,), (N,) standardised."""

    places: np.ndarray
    centre: np.ndarray
    values: np.ndarray


def find_placement(volume: np.ndarray) -> Placement:
    """Finds the side on which a brain lies, and from there its rigid motion.

    Args:
        volume: (91, 109, 91) in LAS order, at least 0, not constant in the template's brain.
    """
    coarse = _coarse(np.minimum(volume, np.percentile(volume[load_template().mask], BRIGHTEST)))
    target, middle = _target(), np.array(ndimage.center_of_mass(coarse))

    def unlike(sides: np.ndarray) -> float:
        centres = (target.centre, middle) if (sides == np.eye(3)).all() else (middle,)
        return min(np.square(_difference(coarse, sides, centre)).sum() for centre in centres)

    sides = min(_all_sides(), key=unlike)  # the identity comes first, and wins where all are alike
    start = target.centre if (sides == np.eye(3)).all() else middle

    def difference(motion: np.ndarray) -> np.ndarray:
        turn = Rotation.from_rotvec(motion[:3], degrees=True).as_matrix()
        return _difference(coarse, turn @ sides, start + motion[3:])

    found = optimize.least_squares(difference, np.zeros(6), xtol=1e-2, ftol=1e-4, max_nfev=30).x
    shift = start + found[3:] - target.centre
    rotation = Rotation.from_rotvec(found[:3], degrees=True).magnitude()
    return Placement(sides, float(np.degrees(rotation)), float(VOXEL * np.linalg.norm(shift)))


def _all_sides() -> Iterator[np.ndarray]:
    """The 24 ways to lay a brain along the axes that an image tells apart, the identity first."""
    for signs in product((1, -1), repeat=2):
        for order in permutations(range(3)):
            yield np.eye(3)[list(order)] * (1, *signs)


def _difference(coarse: np.ndarray, linear: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(N,) standardised volume minus template, the template's centre laid at `centre` (3,)."""
    target = _target()
    values = ndimage.map_coordinates(coarse, (target.places @ linear.T + centre).T, order=1)
    return (values - values.mean()) / (values.std() or 1.0) - target.values


def _coarse(volume: np.ndarray) -> np.ndarray:
    """(91, 109, 91) to (45, 54, 45), float64: least squares take tiny steps."""
    return ndimage.gaussian_filter(average_2x2x2(volume).astype(np.float64), SMOOTHING)


@cache
def _target() -> _Target:
    template = load_template()
    mask = average_2x2x2(template.mask.astype(np.float32)) > 0.5
    near = ndimage.binary_dilation(mask, iterations=AROUND)
    values = _coarse(template.brain)[near][::EVERY]
    centre = np.argwhere(mask).mean(axis=0)
    places = np.argwhere(near)[::EVERY] - centre
    return _Target(places, centre, (values - values.mean()) / values.std())
