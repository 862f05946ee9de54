"""Degrades heads in known ways, for heads.py: moved, bent, resampled, darkened, noisy."""

from collections.abc import Iterator
from dataclasses import dataclass

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage
from scipy.spatial.transform import Rotation

HEAD_FROM = 0.1  # of the 99.5th percentile; what is darker is air
SAMPLED = 100_000  # voxels of a head, evenly spread, for its centre, extent and displacements
AIR = 10.0  # mm around the degraded head
WARP_LATTICE, BIAS_LATTICE = 45.0, 60.0  # mm; a scan's own smooth distortions are about this coarse
# Below 1 the warp has no folds and its inverse is found by iteration, the faster the lower.
STEEPEST = 0.9
INVERSE_STEPS, INVERSE_MM = 200, 1e-6


@dataclass(frozen=True)
class Degradation:
    """What happens to a head, in this order; the defaults do nothing.

    Attributes:
        warp_mm: largest displacement in the head by a smooth random deformation without folds.
        shear: of x by y, x by z, y by z.
        scale: factors along x, y, z.
        rotation_degrees: a vector in RAS: its direction is the axis, its length the angle.
        shift_mm: in RAS. Scale, shear and rotation are about the centre of the head.
        voxel_mm: size along the axes as stored; None keeps the head's own.
        bias: SD over the head of the logarithm of a smooth random field that multiplies it.
        noise: SD of the Rician noise's two parts, as a share of the head's mean intensity.
        orientation: of the axes as stored, such as `PIR`; None keeps the head's own.
    """

    warp_mm: float = 0.0
    shear: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotation_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    voxel_mm: tuple[float, float, float] | None = None
    bias: float = 0.0
    noise: float = 0.0
    orientation: str | None = None

    @property
    def moves(self) -> bool:
        """Whether voxels must be interpolated."""
        still = Degradation(bias=self.bias, noise=self.noise, orientation=self.orientation)
        return self != still


@dataclass(frozen=True)
class SmoothField:
    """A cubic spline with random coefficients on a coarse lattice; 0 far from the head.

    Attributes:
        coefficients: (K, X, Y, Z); the two outer layers are 0, so the field ends smoothly.
        origin: (3,) mm, of the lattice.
        spacing: mm, of the lattice.
    """

    coefficients: np.ndarray
    origin: np.ndarray
    spacing: float

    @classmethod
    def random(
        cls, points: np.ndarray, *, values: int, spacing: float, rng: np.random.Generator
    ) -> "SmoothField":
        """A field of `values` numbers at each point that covers `points`, (N, 3) mm."""
        low, high = points.min(axis=0), points.max(axis=0)
        inner = np.ceil((high - low) / spacing).astype(int) + 3
        coefficients = rng.standard_normal((values, *inner))
        middle = (low + high) / 2
        padded = np.pad(coefficients, [(0, 0), (2, 2), (2, 2), (2, 2)])
        return cls(padded, middle - (inner + 3) * spacing / 2, spacing)

    def at(self, points: np.ndarray) -> np.ndarray:
        """(N, K) values at (N, 3) mm."""
        places = ((points - self.origin) / self.spacing).T
        return np.stack(
            [
                ndimage.map_coordinates(part, places, order=3, prefilter=False)
                for part in self.coefficients
            ],
            axis=-1,
        )

    def times(self, factor: float) -> "SmoothField":
        """The field multiplied by a number."""
        return SmoothField(self.coefficients * factor, self.origin, self.spacing)

    def steepest(self) -> float:
        """Largest change of the field, a displacement, per mm: below 1 nothing folds."""
        step = self.spacing / 5
        places = [
            origin + np.arange(0, (size - 1) * self.spacing, step)
            for origin, size in zip(self.origin, self.coefficients.shape[1:], strict=True)
        ]
        shape = [len(place) for place in places]
        points = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 3)
        values = self.at(points).reshape(*shape, -1)
        slopes = np.stack(np.gradient(values, step, axis=(0, 1, 2)), axis=-1)
        return float(np.linalg.norm(slopes, ord=2, axis=(-2, -1)).max())


@dataclass(frozen=True)
class KnownMap:
    """Where a degradation puts the points of a head, and back; RAS mm, (N, 3).

    Attributes:
        affine: (4, 4), from the warped head to the degraded one.
        warp: displacement of 3 numbers from the warped head to the original one; None for none.
    """

    affine: np.ndarray
    warp: SmoothField | None

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points of the degraded head where those of the original one are now."""
        warped = points
        if self.warp is not None:
            for _ in range(INVERSE_STEPS):
                last, warped = warped, points - self.warp.at(warped)
                if np.abs(warped - last).max() < INVERSE_MM:
                    break
        return moved(warped, self.affine)

    def back(self, points: np.ndarray) -> np.ndarray:
        """Points of the original head that are now at points of the degraded one."""
        warped = moved(points, np.linalg.inv(self.affine))
        return warped if self.warp is None else warped + self.warp.at(warped)


def degrade(
    image: nibabel.Nifti1Image, degradation: Degradation, *, seed: int
) -> tuple[nibabel.Nifti1Image, KnownMap]:
    """Makes a worse scan of a head, in one interpolation (cubic).

    Args:
        image: a head; one 3-D volume of intensities from 0.
        degradation: what to do to it.
        seed: of warp, bias field and noise, each drawn by itself.

    Returns:
        The scan, float32, its affine true to what was done; and where points of the head went.

    Raises:
        ValueError: the warp would fold; or the image is all 0.
    """
    for_warp, for_bias, for_noise = np.random.default_rng(seed).spawn(3)
    volume = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    points = _head_points(volume, image.affine)
    warp = _random_warp(points, degradation.warp_mm, rng=for_warp)
    known = KnownMap(_affine(degradation, centre=points.mean(axis=0)), warp)
    affine = image.affine
    orientation = degradation.orientation or "".join(nibabel.aff2axcodes(affine))
    if degradation.moves:
        sizes = _voxel_sizes(affine, degradation.voxel_mm, orientation)
        shape, affine_of_grid = _grid_around(known(points), sizes)
        volume = _interpolated(volume, affine, known, shape=shape, grid=affine_of_grid)
        affine = affine_of_grid
    volume = _with_bias(volume, affine, degradation.bias, rng=for_bias)
    volume = _with_noise(volume, degradation.noise, rng=for_noise)
    degraded = nibabel.Nifti1Image(volume, affine)
    turned = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    return degraded.as_reoriented(turned), known


def moved(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(N, 3) points after a (4, 4) affine."""
    return points @ affine[:3, :3].T + affine[:3, 3]


def _inside(volume: np.ndarray) -> np.ndarray:
    """The voxels of the head, bool."""
    return volume > HEAD_FROM * np.percentile(volume, 99.5)


def _head_points(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(N, 3) mm of voxels of the head, evenly spread."""
    voxels = np.argwhere(_inside(volume))
    if not len(voxels):
        raise ValueError("no head in the image: intensities above 0 that differ expected")
    return moved(voxels[:: max(1, len(voxels) // SAMPLED)], affine)


def _random_warp(
    points: np.ndarray, warp_mm: float, *, rng: np.random.Generator
) -> SmoothField | None:
    """A displacement whose largest length at `points` is `warp_mm`; ValueError if it folds."""
    if not warp_mm:
        return None
    warp = SmoothField.random(points, values=3, spacing=WARP_LATTICE, rng=rng)
    warp = warp.times(warp_mm / np.linalg.norm(warp.at(points), axis=1).max())
    steepest = warp.steepest()
    if steepest > STEEPEST:
        raise ValueError(
            f"warp_mm: {warp_mm:g} mm change by {steepest:.2f} mm per mm, {STEEPEST:g} at "
            "most expected, so that nothing folds; give less, or another seed"
        )
    return warp


def _affine(degradation: Degradation, *, centre: np.ndarray) -> np.ndarray:
    """(4, 4): shear, scale and rotation about `centre`, then the shift."""
    shear = np.eye(3)
    shear[[0, 0, 1], [1, 2, 2]] = degradation.shear
    rotation = Rotation.from_rotvec(degradation.rotation_degrees, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(degradation.scale) @ shear
    affine[:3, 3] = centre + degradation.shift_mm - affine[:3, :3] @ centre
    return affine


def _voxel_sizes(
    affine: np.ndarray, voxel_mm: tuple[float, float, float] | None, orientation: str
) -> np.ndarray:
    """(3,) mm along x, y, z of the world, from sizes along the axes as stored."""
    if voxel_mm is None:
        axes, stored = io_orientation(affine)[:, 0], np.linalg.norm(affine[:3, :3], axis=0)
    else:
        axes, stored = axcodes2ornt(orientation)[:, 0], np.array(voxel_mm)
    sizes = np.empty(3)
    sizes[axes.astype(int)] = stored
    return sizes


def _grid_around(points: np.ndarray, sizes: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a grid along x, y, z that holds `points` with air around them."""
    low, high = points.min(axis=0) - AIR, points.max(axis=0) + AIR
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = low
    return tuple(int(size) for size in np.ceil((high - low) / sizes) + 1), affine


def _interpolated(
    volume: np.ndarray,
    affine: np.ndarray,
    known: KnownMap,
    *,
    shape: tuple[int, ...],
    grid: np.ndarray,
) -> np.ndarray:
    """The head as seen on another grid; float32, no brighter or darker than it was."""
    spline = ndimage.spline_filter(volume, output=np.float32)
    to_voxels = np.linalg.inv(affine)
    seen = np.empty(shape, np.float32)
    for plane, points in zip(seen, _planes(shape, grid), strict=True):
        places = moved(known.back(points), to_voxels).T
        values = ndimage.map_coordinates(spline, places, order=3, prefilter=False)
        plane[:] = values.reshape(plane.shape)
    return np.clip(seen, volume.min(), volume.max())


def _planes(shape: tuple[int, ...], affine: np.ndarray) -> Iterator[np.ndarray]:
    """(Y * Z, 3) mm of the voxels of one plane after another: all at once would take gigabytes."""
    plane = np.argwhere(np.ones((1, *shape[1:]), bool))
    for first in range(shape[0]):
        yield moved(plane + np.array([first, 0, 0]), affine)


def _with_bias(
    volume: np.ndarray, affine: np.ndarray, bias: float, *, rng: np.random.Generator
) -> np.ndarray:
    """Times a smooth field whose logarithm has mean 0 and SD `bias` over the head."""
    if not bias:
        return volume
    points = _head_points(volume, affine)
    field = SmoothField.random(points, values=1, spacing=BIAS_LATTICE, rng=rng)
    values = [field.at(points) for points in _planes(volume.shape, affine)]
    logarithm = np.reshape(values, volume.shape)
    inside = logarithm[_inside(volume)]
    logarithm = (logarithm - inside.mean()) * (bias / inside.std())
    return (volume * np.exp(logarithm)).astype(np.float32)


def _with_noise(volume: np.ndarray, noise: float, *, rng: np.random.Generator) -> np.ndarray:
    """The length of a complex signal with Gaussian noise in both parts: Rician."""
    if not noise:
        return volume
    deviation = noise * volume[_inside(volume)].mean()
    real, imaginary = deviation * rng.standard_normal((2, *volume.shape), dtype=np.float32)
    return np.hypot(volume + real, imaginary).astype(np.float32)
