"""One scan from its file to the network's input (the contract of docs/data.md).

The network reads brains on the FSL MNI152 2 mm grid, 91x109x91 voxels, stored left-anterior-
superior (LAS). TemplateFlow's copy of the same space is RAS with the SAME SHAPE, so what is done is
decided from the affine alone.
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

GRID_SHAPE = (91, 109, 91)
GRID_AFFINE = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], float)
# First and one past the last voxel of the grid along each axis: the brain of the MNI152 template
# and at least 2 mm around it; even sizes, to be averaged in twos.
BRAIN_BOX = ((7, 83), (9, 101), (0, 78))
IMAGE_SUFFIXES = (".nii.gz", ".nii")
RESOLUTIONS = (2, 4)
INTENSITY_RULES = ("brain", "authors")
# What a header may ask memory for (1024x1024x512), and what may stand behind a compressed file's
# voxels: more is a damaged header, or a file made to fill the memory.
MOST_VOXELS = 1 << 29
MOST_BEHIND = 1 << 24  # bytes
# What nibabel raises for files that are truncated, not gzip, or not NIfTI.
READ_ERRORS = (
    ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, OverflowError,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class InputRule:
    """How a scan becomes an input; a checkpoint stores it and prediction follows it.

    Attributes:
        resolution: mm; 2 reads the grid as it is, 4 averages 2x2x2 voxels.
        intensity: `brain` sets voxels <= 0 to 0 after normalisation; `authors` to -mean/SD, which
            their weights need.
        any_grid: whether grids other than MNI152 2 mm are let through (experiments only).
        crop: whether the network sees BRAIN_BOX alone, 60 % of the grid's voxels.
    """

    resolution: int = 2
    intensity: str = "brain"
    any_grid: bool = False
    crop: bool = False

    def __post_init__(self):
        if self.resolution not in RESOLUTIONS:
            raise ValueError(f"resolution: 2 or 4 (mm) expected, got {self.resolution!r}")
        if self.intensity not in INTENSITY_RULES:
            raise ValueError(f"intensity: brain or authors expected, got {self.intensity!r}")
        if self.crop and self.any_grid:
            raise ValueError("--crop and --any_grid: the box to crop to is one of the MNI152 grid")

    def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Voxels (D, H, W) of the input made from a scan of `shape`; an odd last plane is lost."""
        if self.crop:
            shape = tuple(stop - start for start, stop in BRAIN_BOX)
        return tuple(size // 2 for size in shape) if self.resolution == 4 else tuple(shape)


class Header(NamedTuple):
    """What the header of a scan says: the axis order it is stored in, its shape in LAS order."""

    orientation: str
    shape: tuple[int, ...]


def image_stem(name: str) -> str:
    """The file name without .nii.gz or .nii; other names are returned as they are."""
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def find_scans(folder: str | Path) -> list[Path]:
    """The .nii.gz and .nii files of `folder`, sorted by name; hidden files are left out.

    Raises:
        FileNotFoundError: no such folder, or no scan in it.
        ValueError: two files with one name (`a.nii` beside `a.nii.gz`).
    """
    scans = list_scans(folder)
    seen: dict[str, Path] = {}
    for path in scans:
        twin = seen.setdefault(image_stem(path.name), path)
        if twin is not path:
            raise ValueError(f"{twin} and {path.name}: two scans of one name, remove one")
    return scans


def list_scans(folder: str | Path) -> list[Path]:
    """As `find_scans`, two files of one name let through."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of scans")
    scans = sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")
    )
    if not scans:
        raise FileNotFoundError(f"{folder}: no .nii.gz or .nii file in it")
    return scans


def read_header(path: Path, *, any_grid: bool = False) -> Header:
    """Checks shape and grid of a scan without reading its voxels.

    Returns:
        Its orientation, `LAS` where nothing is to be done, and its shape once in LAS order.

    Raises:
        ValueError: unreadable, not 3-D, or off the MNI152 2 mm grid; names file and expectation.
    """
    image = open_image(path)
    shape = image.shape
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or min(shape[:3]) < 1:
        raise ValueError(f"{path}: one 3-D volume expected, found shape {shape}")
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise ValueError(f"{path}: its affine is not invertible: {affine[:3].tolist()}")
    orientation = io_orientation(affine)
    if np.isnan(orientation).any():
        raise ValueError(f"{path}: no direction for each axis in its affine: {affine[:3].tolist()}")
    transform = ornt_transform(orientation, axcodes2ornt("LAS"))
    # The affine this file would have after its axes are put into LAS order, and its shape.
    affine = affine @ nibabel.orientations.inv_ornt_aff(transform, shape[:3])
    shape = tuple(shape[axis] for axis in np.argsort(transform[:, 0]))
    on_grid = shape == GRID_SHAPE and np.allclose(affine, GRID_AFFINE, atol=0.01)
    if not (any_grid or on_grid):
        raise ValueError(
            f"{path}: not on the FSL MNI152 2 mm grid: found shape {shape} and affine "
            f"{affine[:3].round(3).tolist()} in LAS order, expected {GRID_SHAPE} and "
            f"{GRID_AFFINE[:3].tolist()}; preprocess it first (training takes --any_grid, "
            "for experiments)"
        )
    return Header("".join(nibabel.aff2axcodes(image.affine)), shape)


def open_image(path: Path) -> nibabel.spatialimages.SpatialImage:
    """Opens a scan, its header alone read and its voxels known to be numbers that memory can hold.

    Raises:
        ValueError: not a file (a pipe would be waited for), unreadable, colours, or too large.
    """
    if not Path(path).is_file():
        kind = "not a file" if Path(path).exists() else "no such file, or a link that leads to none"
        raise ValueError(f"{path}: {kind}; a .nii.gz or .nii file expected")
    try:
        image = nibabel.load(path)
        require_intensities(image)
    except READ_ERRORS as error:
        raise ValueError(f"{path}: not a readable scan ({error})") from error
    if math.prod(image.shape) > MOST_VOXELS:
        raise ValueError(
            f"{path}: its voxels are too many, {image.shape} by the header, {MOST_VOXELS} at most "
            "expected; resample it, or copy it again"
        )
    return image


def require_intensities(image: nibabel.spatialimages.SpatialImage) -> None:
    """Raises ValueError where a voxel is more than one number, some of which would be lost."""
    kind = image.get_data_dtype()
    if kind.kind not in "biuf":
        raise ValueError(
            f"colours or complex numbers ({kind}) where intensities are expected; give magnitudes"
        )


def read_volume(path: Path, input_rule: InputRule) -> np.ndarray:
    """Decodes a scan into LAS order at the resolution asked for, intensities as in the file.

    Returns:
        float32, 91x109x91 at 2 mm, 45x54x45 at 4 mm; cropped, 76x92x78 and 38x46x39.

    Raises:
        ValueError: as `read_stored` and `reduce_volume`, naming the file.
    """
    stored = read_stored(path, any_grid=input_rule.any_grid)
    try:
        return reduce_volume(stored, input_rule)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_stored(path: Path, *, any_grid: bool = False) -> np.ndarray:
    """Decodes a scan into LAS order, float32, at the resolution of the file.

    Raises:
        ValueError: as `read_header`; or the voxels cannot be read or are not finite.
    """
    read_header(path, any_grid=any_grid)
    try:
        image = nibabel.load(path)
        voxels = read_voxels(image)
    except READ_ERRORS as error:
        raise ValueError(f"{path}: its voxels cannot be read ({error})") from error
    voxels = voxels.reshape(voxels.shape[:3])
    if not np.isfinite(voxels).all():
        count = int((~np.isfinite(voxels)).sum())
        raise ValueError(f"{path}: {count} voxels are NaN or infinite, finite values expected")
    transform = ornt_transform(io_orientation(image.affine), axcodes2ornt("LAS"))
    return np.ascontiguousarray(nibabel.apply_orientation(voxels, transform))


def reduce_volume(voxels: np.ndarray, input_rule: InputRule) -> np.ndarray:
    """Crops and averages a volume from `read_stored` as `input_rule` says.

    Raises:
        ValueError: no spread over the brain (voxels > 0).
    """
    if input_rule.crop:
        voxels = np.ascontiguousarray(voxels[tuple(slice(*ends) for ends in BRAIN_BOX)])
    if input_rule.resolution == 4:
        voxels = average_2x2x2(voxels)
    brain = voxels[voxels > 0]
    if brain.size == 0 or not brain.std() > 0:
        raise ValueError(
            "no brain: voxels above 0 with differing values expected, found "
            f"{brain.size} voxels above 0"
        )
    return voxels


def read_voxels(image: nibabel.spatialimages.SpatialImage) -> np.ndarray:
    """All voxels of an opened file, float32; of a compressed one its checksum too.

    nibabel stops behind the last voxel, before the checksum, so most damage would pass.

    Raises:
        OSError: a compressed file is damaged or cut. Others of READ_ERRORS: as nibabel.
    """
    # Not get_fdata(), which makes and keeps a float64 copy.
    stored = image.dataobj
    if Path(stored.file_like).suffix.lower() not in (".gz", ".mgz"):
        return np.asarray(stored, np.float32)
    layout = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
    try:
        with gzip.open(stored.file_like) as stream:
            voxels = np.asarray(ArrayProxy(stream, layout), np.float32)
            behind = 0
            while block := stream.read(1 << 20):  # the checksum is compared at the end
                behind += len(block)
                if behind > MOST_BEHIND:
                    raise OSError("more bytes behind its voxels than its header accounts for")
    except (OSError, EOFError, zlib.error) as error:
        raise OSError(f"damaged or cut: {error}; copy or download it again") from error
    return voxels


def average_2x2x2(volume: np.ndarray) -> np.ndarray:
    """Means over 2x2x2 voxels; an odd last plane is cropped: 91x109x91 -> 45x54x45."""
    depth, height, width = (size // 2 for size in volume.shape)
    cropped = volume[: 2 * depth, : 2 * height, : 2 * width]
    return cropped.reshape(depth, 2, height, 2, width, 2).mean(axis=(1, 3, 5))


def normalise(volume: np.ndarray, intensity: str = "brain") -> np.ndarray:
    """Z-scores by the population mean and SD over voxels > 0.

    Args:
        volume: float32, any shape, some voxels > 0.
        intensity: `brain`: voxels <= 0 become 0; `authors`: they become x - mean/SD, the released
            code's rule.

    Returns:
        float32, the same shape.
    """
    inside = volume > 0
    brain = volume[inside]
    mean, deviation = brain.mean(dtype=np.float64), brain.std(dtype=np.float64)
    outside = volume - mean / deviation if intensity == "authors" else 0.0
    return np.where(inside, (volume - mean) / deviation, outside).astype(np.float32)
