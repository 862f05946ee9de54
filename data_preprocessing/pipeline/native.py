"""Reading a scan as it comes: any axis order, voxel size and intensity scale, head or brain."""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.processing import resample_to_output

from utils.scans.volumes import READ_ERRORS, open_image, read_voxels

# Measured: 15 extracted brains fill 1.2 to 1.9 litres, whole heads 4.1 to 6.8. Scans in MNI152
# space are as large as its brain and its head, 1.8 and 6.8.
LARGEST_BRAIN = 2.6  # litres

# Sizes of no brain and of no whole head, but of its upper 120 mm alone: 2.4 to 2.6.
UNCERTAIN = (2.0, 3.2)  # litres

# Share of the bright tissue's intensity; below lie noise and what an interpolation leaves.
FOREGROUND = 0.01


SMALLEST_EXTENT, LARGEST_EXTENT = 80.0, 600.0  # mm, of the imaged block in each direction
LARGEST_VOXEL = 10.0  # mm
LARGEST_SHEAR = 1e-3  # cosine of the angle between two axes; registration needs right angles
# From this share of voxels that are exactly 0 on, 0 is the background and not a low intensity.
ZERO_BACKGROUND = 0.1
# From this share of negative voxels on, of those that are not faint, negative is tissue too
# (z-scored) and no overshoot of an interpolation; faint is less than FAINT of the brightest.
NEGATIVE_TISSUE = 0.2
FAINT = 0.1
# Where the darkest tissue is then put, as a share of the range; above FOREGROUND.
DARKEST = 0.02
FULL_SCALE = 1000.0  # what the 99.5th percentile becomes; engines fail on images of 1e-3


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

    Intensities are shifted to be at least 0; where 0 is the background it stays, and only what is
    negative beyond an overshoot is shifted. NaN and infinite voxels become 0.

    Args:
        path: any NIfTI or MGH file.
        rescale: whether the 99.5th percentile of what is above 0 becomes 1000.

    Raises:
        ValueError: unreadable, not one 3-D volume of scalars, no usable affine, an implausible
            size, or no spread of intensities.
    """
    image = open_image(path)
    _require_one_volume(path, image)
    _require_plausible_place(path, image)
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
    _require_spread(path, voxels)
    if rescale:
        voxels = (voxels * (FULL_SCALE / np.percentile(voxels[voxels > 0], 99.5))).astype(
            np.float32
        )
    return Native(voxels, image.affine, notes)


def _require_one_volume(path: Path, image) -> None:
    shape = image.shape
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or min(shape[:3]) < 2:
        raise ValueError(
            f"{path}: one 3-D volume expected, found shape {shape}; of several, extract the "
            "T1-weighted one"
        )


def _require_plausible_place(path: Path, image) -> None:
    affine = image.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    # The volume between unit axes: 1 at right angles, 0 where they lie in one plane.
    if not (
        np.isfinite(affine).all()
        and sizes.min() > 0
        and abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3
    ):
        raise ValueError(f"{path}: its affine is not invertible: {affine[:3].tolist()}")
    extent = sizes * image.shape[:3]
    if not (
        sizes.max() <= LARGEST_VOXEL
        and extent.min() >= SMALLEST_EXTENT
        and extent.max() <= LARGEST_EXTENT
    ):
        raise ValueError(
            f"{path}: voxels of {_by(sizes)} mm over {_by(extent)} mm cannot be a head; expected "
            f"{SMALLEST_EXTENT:g} to {LARGEST_EXTENT:g} mm a side, voxels of {LARGEST_VOXEL:g} mm "
            "at most (a wrong unit in the header?)"
        )


def _notes_on_orientation(image: nibabel.Nifti1Image) -> list[str]:
    """What makes left and right uncertain, which no look at the image can settle."""
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
    """Voxels of at least 0, with a background of 0 where it was 0; may add to `notes`."""
    lowest = voxels.min()
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


def _require_spread(path: Path, voxels: np.ndarray) -> None:
    positive = voxels[voxels > 0]
    if not positive.size or not positive.std() > 0:
        raise ValueError(
            f"{path}: no image: intensities that differ expected, found {positive.size} "
            f"voxels above 0"
        )


def _by(values: np.ndarray) -> str:
    return "x".join(f"{value:.3g}" for value in values)


def foreground(native: Native) -> np.ndarray:
    """What is not background, (X, Y, Z) bool; the background is 0 or faint."""
    bright = np.percentile(native.voxels[native.voxels > 0], 99.5)
    return native.voxels > FOREGROUND * bright


def seen_contents(native: Native) -> str:
    """`brain` if what is not background is no larger than a brain, else `head`.

    Where its size is that of neither, this is added to the notes of `native`.
    """
    litres_per_voxel = abs(np.linalg.det(native.affine[:3, :3])) * 1e-6
    litres = np.count_nonzero(foreground(native)) * litres_per_voxel
    seen = "brain" if litres < LARGEST_BRAIN else "head"
    if UNCERTAIN[0] < litres < UNCERTAIN[1]:
        native.notes.append(
            f"head or brain is uncertain ({litres:.1f} litres, taken for a {seen}): give --contents"
        )
    return seen
