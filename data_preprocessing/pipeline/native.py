"""Reading a scan in its native space: any axis order, voxel size and intensity scale.

Also tells a whole head from an extracted brain, and a whole brain from one that is cut.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
from nibabel.processing import resample_to_output
from scipy import ndimage

from utils.scans.volumes import READ_ERRORS, open_image, read_voxels

# Measured: 15 extracted brains fill 1.2 to 1.9 litres, whole heads 4.1 to 6.8. The brain and the
# head of MNI152 have 1.8 and 6.8.
LARGEST_BRAIN = 2.6  # litres
# Between these no whole brain and no whole head lies; the upper 120 mm of a head do, 2.4 to 2.6.
UNCERTAIN = (2.0, 3.2)  # litres
# Share of the bright tissue's intensity; noise and the traces of an interpolation lie below.
FOREGROUND = 0.01

SMALLEST_EXTENT, LARGEST_EXTENT = 80.0, 600.0  # mm, of the imaged block in each direction
LARGEST_VOXEL = 10.0  # mm
LARGEST_SHEAR = 1e-3  # cosine of the angle between two axes; registration needs right angles
# Where at least this share of the voxels is exactly 0, 0 is the background, not a low intensity.
ZERO_BACKGROUND = 0.1
# Voxels that are fainter than FAINT of the brightest are left out. Where more than this share of
# the others is negative, negative voxels are tissue (z-scored), not an interpolation's overshoot.
NEGATIVE_TISSUE = 0.2
FAINT = 0.1
DARKEST = 0.02  # share of the range where the darkest tissue is then put; above FOREGROUND
# A brain is round at its ends, a cut one is flat there: over this depth a plane keeps its area.
END_DEPTH = 4.0  # mm
FULL_SCALE = 1000.0  # the new 99.5th percentile; engines fail on images of 1e-3


@dataclass
class Native:
    """A scan in memory.

    Attributes:
        voxels: (X, Y, Z) float32, at least 0, axes nearest to right, anterior, superior.
        affine: (4, 4) voxels to RAS mm, without shear.
        notes: what people should know about the file.
    """

    voxels: np.ndarray
    affine: np.ndarray
    notes: list[str]

    @property
    def voxel_size(self) -> np.ndarray:
        """(3,) mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_native(path: Path, *, rescale: bool = True) -> Native:
    """Reads a T1-weighted scan.

    Intensities are shifted to be at least 0. A background of 0 stays 0: then only intensities
    further below 0 than an overshoot are shifted. NaN and infinite voxels become 0.

    Args:
        path: any NIfTI or MGH file.
        rescale: whether the 99.5th percentile of the intensities above 0 becomes 1000.

    Raises:
        ValueError: unreadable, not one 3-D volume of scalars, no usable affine, an implausible
            size, or no spread of intensities.
    """
    image = open_image(path)
    _require_size_of_a_head(path, image)
    try:
        image = image.__class__(read_voxels(image), image.affine, image.header)
    except READ_ERRORS as error:
        raise ValueError(f"{path}: not a readable scan ({error})") from error
    image = nibabel.Nifti1Image(image.dataobj.reshape(image.shape[:3]), image.affine, image.header)
    notes = _notes_on_orientation(image)
    image = nibabel.as_closest_canonical(image)
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    if np.abs(np.triu(axes.T @ axes, 1)).max() > LARGEST_SHEAR:
        notes.append("its axes are not at right angles: resampled once before registration")
        image = resample_to_output(image, voxel_sizes=image.header.get_zooms()[:3], order=1)
    voxels = np.nan_to_num(np.asarray(image.dataobj), nan=0.0, posinf=0.0, neginf=0.0)
    voxels = _non_negative(voxels, notes)
    positive = voxels[voxels > 0]
    if not positive.size or not positive.std() > 0:
        raise ValueError(
            f"{path}: no image: intensities that differ expected, found {positive.size} voxels "
            "above 0"
        )
    if rescale:
        voxels = (voxels * (FULL_SCALE / np.percentile(positive, 99.5))).astype(np.float32)
    return Native(voxels, image.affine, notes)


def _require_size_of_a_head(path: Path, image) -> None:
    """Raises ValueError for several volumes, a singular affine, or a block that holds no head."""
    shape, affine = image.shape, image.affine
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or min(shape[:3]) < 2:
        raise ValueError(
            f"{path}: one 3-D volume expected, found shape {shape}; of several, extract the "
            "T1-weighted one"
        )
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    # The volume between unit axes: 1 at right angles, 0 where they lie in one plane.
    if not (
        np.isfinite(affine).all()
        and sizes.min() > 0
        and abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3
    ):
        raise ValueError(f"{path}: its affine is not invertible: {affine[:3].tolist()}")
    extent = sizes * shape[:3]
    if not (
        sizes.max() <= LARGEST_VOXEL
        and extent.min() >= SMALLEST_EXTENT
        and extent.max() <= LARGEST_EXTENT
    ):
        voxels, block = ("x".join(f"{size:.3g}" for size in found) for found in (sizes, extent))
        raise ValueError(
            f"{path}: voxels of {voxels} mm over {block} mm cannot be a head; expected "
            f"{SMALLEST_EXTENT:g} to {LARGEST_EXTENT:g} mm a side, voxels of {LARGEST_VOXEL:g} mm "
            "at most (a wrong unit in the header?)"
        )


def _notes_on_orientation(image: nibabel.Nifti1Image) -> list[str]:
    """Doubts about left and right, which the image itself cannot settle."""
    header = image.header
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None and qform is None:
        return ["the header gives no orientation (no sform, no qform): left and right are a guess"]
    if sform is not None and qform is not None:
        angles = np.linalg.inv(qform[:3, :3]) @ sform[:3, :3]
        if np.abs(angles - np.eye(3)).max() > 0.1:
            return ["sform and qform of the header disagree: the sform was used"]
    return []


def _non_negative(voxels: np.ndarray, notes: list[str]) -> np.ndarray:
    """Voxels of at least 0, whose background stays 0 if it was 0; may add to `notes`."""
    lowest = voxels.min()
    corners, value = voxels[:: voxels.shape[0] - 1, :: voxels.shape[1] - 1], voxels[0, 0, 0]
    if lowest > 0 and (corners[:, :, :: voxels.shape[2] - 1] == value).all():
        background = voxels == value
        if background.mean() > ZERO_BACKGROUND:
            notes.append(f"a constant background of {value:.6g}: taken as 0")
            return np.where(background, 0, voxels)
    if lowest >= 0:
        return voxels
    inside = voxels != 0
    if np.count_nonzero(~inside) <= ZERO_BACKGROUND * voxels.size:
        return voxels - lowest
    tissue = voxels[np.abs(voxels) > FAINT * np.percentile(np.abs(voxels[inside]), 99.5)]
    if np.mean(tissue < 0) <= NEGATIVE_TISSUE:
        return np.maximum(voxels, 0)
    notes.append("negative inside the brain, 0 around it (z-scored?): all but the 0 was raised")
    darkest = DARKEST * (np.percentile(voxels[inside], 99.5) - lowest)
    return np.where(inside, voxels - lowest + darkest, 0).astype(np.float32)


def foreground(native: Native) -> np.ndarray:
    """Voxels that are not background, (X, Y, Z) bool; the background is 0 or faint."""
    bright = np.percentile(native.voxels[native.voxels > 0], 99.5)
    return native.voxels > FOREGROUND * bright


def flat_end(mask: np.ndarray, voxel_size: np.ndarray) -> float:
    """The largest flat end of a brain, mm2: 700 to 1,900 of a whole one, more of one that is cut.

    Of all directions (a scan may have been turned since it was cut) the brain's mean area in its
    outermost 4 mm, taken at voxels of about 2 mm.

    Args:
        mask: (X, Y, Z) bool, the scan's own brain before any registration; specks are left out.
        voxel_size: (3,) mm.
    """
    merged = np.maximum(1, np.round(2 / voxel_size)).astype(int)
    padded = np.pad(mask, [(0, -size % by) for size, by in zip(mask.shape, merged, strict=True)])
    blocks = padded.reshape(*np.column_stack((padded.shape // merged, merged)).ravel())
    coarse, size = blocks.mean(axis=(1, 3, 5)) > 0.5, voxel_size * merged
    names, count = ndimage.label(coarse)
    if not count:
        return 0.0
    coarse = names == 1 + np.argmax(np.bincount(names.ravel())[1:])
    shell = np.ceil(2 * END_DEPTH / size.min()).astype(int)
    points = np.argwhere(coarse & ~ndimage.binary_erosion(coarse, iterations=shell)) * size

    def area(direction: np.ndarray) -> float:
        height, thickness = points @ direction, np.abs(direction) @ size
        outermost = height - height.max() + END_DEPTH
        # The share of each voxel that lies in the outermost millimetres.
        shares = np.minimum(outermost[outermost > 0] / thickness, 1)
        return float(shares.sum() * size.prod() / END_DEPTH)

    best = max((*np.eye(3), *-np.eye(3), *_even_directions(500)), key=area)
    for around in (0.08, 0.03):  # first 9 degrees apart, then 2, then 0.6
        near = best + around * _even_directions(50)
        best = max((best, *near / np.linalg.norm(near, axis=1, keepdims=True)), key=area)
    return area(best)


@cache
def _even_directions(count: int) -> np.ndarray:
    """(count, 3) unit vectors, evenly over the sphere: a Fibonacci lattice."""
    place = np.arange(count) + 0.5
    height, angle = 1 - 2 * place / count, np.pi * (1 + 5**0.5) * place
    radius = np.sqrt(1 - height**2)
    return np.column_stack((radius * np.cos(angle), radius * np.sin(angle), height))


def guess_contents(native: Native) -> str:
    """`brain` if the foreground is no larger than a brain, otherwise `head`.

    A size that fits neither is added to the notes of `native`.
    """
    litres_per_voxel = abs(np.linalg.det(native.affine[:3, :3])) * 1e-6
    litres = np.count_nonzero(foreground(native)) * litres_per_voxel
    contents = "brain" if litres < LARGEST_BRAIN else "head"
    if UNCERTAIN[0] < litres < UNCERTAIN[1]:
        native.notes.append(
            f"head or brain is uncertain ({litres:.1f} litres, taken for a {contents}): give "
            "--contents"
        )
    return contents
