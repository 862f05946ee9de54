"""One scan from its file to the network's input (the contract of docs/data.md), step by step.

The network reads brains on the FSL MNI152 2 mm grid, 91x109x91 voxels, stored left-anterior-
superior (LAS). TemplateFlow's copy of the same space is RAS with the SAME SHAPE, so the affine
alone decides whether a scan lies on the grid and how its axes are turned.
"""

import gzip
import hashlib
import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError, SpatialImage

from utils.files import IMAGE_SUFFIXES, image_stem, list_visible, require_fetched
from utils.scans.template import load_template

GRID_SHAPE = (91, 109, 91)
GRID_AFFINE = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], float)
# The first voxel of the box along each axis, and the first behind it: it holds the brain of the
# MNI152 template and at least 2 mm around it. Its sizes are even, so that pairs can be averaged.
BRAIN_BOX = ((7, 83), (9, 101), (0, 78))
RESOLUTIONS = (2, 4)
INTENSITY_RULES = ("tissue", "brain", "authors")
# A header that asks for more voxels (1024x1024x512), or a compressed file with more bytes behind
# its voxels, is damaged or made to fill the memory.
MAX_VOXELS = 1 << 29
MAX_TRAILING_BYTES = 1 << 24
# Share of the grid above 0. The MNI brain mask has 0.26; 505 scans of three sites, some with
# a piece of the neck, have 0.23 to 0.34; heads with their skull 0.46 to 0.77.
SMALLEST_BRAIN, LARGEST_BRAIN = 0.18, 0.36
CONTENT_BYTES = 8  # 100,000 different scans give two equal hashes with a probability of 3e-10
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
        intensity: `tissue`, a window around the border of grey and white matter, see
            `tissue_window`; or a z-score, see `z_score`: `brain` sets voxels <= 0 to 0 after it,
            `authors` to -mean/SD, which their weights need.
        any_grid: whether grids other than MNI152 2 mm are accepted (for experiments only).
        crop: whether the network reads only BRAIN_BOX, 60 % of the grid's voxels.
        window: of `tissue`, what becomes 0 and 1, where grey matter is 0 and white matter is 1.
    """

    resolution: int = 2
    intensity: str = "brain"
    any_grid: bool = False
    crop: bool = False
    window: tuple[float, float] = (-0.75, 0.75)

    def __post_init__(self):
        if self.resolution not in RESOLUTIONS:
            raise ValueError(f"resolution: 2 or 4 (mm) expected, got {self.resolution!r}")
        if self.intensity not in INTENSITY_RULES:
            expected = ", ".join(INTENSITY_RULES)
            raise ValueError(f"intensity: one of {expected} expected, got {self.intensity!r}")
        if self.crop and self.any_grid:
            raise ValueError("--crop and --any_grid: give one, the box lies on the MNI152 grid")
        if self.intensity == "tissue" and self.any_grid:
            raise ValueError(
                "--intensity tissue and --any_grid: give one, the template's tissues lie on the "
                "MNI152 grid"
            )
        if not self.window[0] < self.window[1]:
            raise ValueError(f"window: two rising numbers expected, got {self.window}")

    def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Voxels (D, H, W) of the input that a scan of `shape` becomes; 4 mm drops an odd plane."""
        if self.crop:
            shape = tuple(stop - start for start, stop in BRAIN_BOX)
        return tuple(size // 2 for size in shape) if self.resolution == 4 else tuple(shape)


class OpenScan(NamedTuple):
    """A scan whose header was read and checked, and whose voxels were not read yet.

    Attributes:
        image: from nibabel, axes as stored.
        orientation: the axis order it is stored in, such as LAS.
        shape: its voxels (D, H, W) once in LAS order.
    """

    image: SpatialImage
    orientation: str
    shape: tuple[int, ...]


def find_scans(*folders: str | Path, allow_twins: bool = False) -> list[Path]:
    """The .nii.gz and .nii files of each folder, sorted by name; hidden files are left out.

    Args:
        folders: not searched deeper.
        allow_twins: whether two files may have one name (`a.nii` beside `a.nii.gz`).

    Raises:
        FileNotFoundError: no such folder, or no scan in it.
        ValueError: two files with one name, in one folder or in two.
    """
    scans = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of scans")
        inside = [path for path in list_visible(folder) if is_image_name(path.name)]
        if not inside:
            raise FileNotFoundError(f"{folder}: no .nii.gz or .nii file in it")
        scans += inside
    seen: dict[str, Path] = {}
    for path in scans:
        twin = seen.setdefault(image_stem(path.name), path)
        if twin is path or allow_twins:
            continue
        if twin == path:
            raise ValueError(f"{path.parent}: given twice; each folder of scans once expected")
        second = path.name if path.parent == twin.parent else path
        raise ValueError(f"{twin} and {second}: two scans of one name, remove one")
    return scans


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as those of scans on the grid do."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def open_image(path: Path) -> SpatialImage:
    """Opens an image and reads its header; its voxels are numbers and fit into memory.

    Raises:
        ValueError: not a file (a pipe would block), not fetched yet, unreadable, colours, or too
            large.
    """
    require_fetched(path)
    if not Path(path).is_file():
        kind = "not a file" if Path(path).exists() else "no such file, or a link that leads to none"
        raise ValueError(f"{path}: {kind}; a .nii.gz or .nii file expected")
    try:
        image = nibabel.load(path)
        voxel_type = image.get_data_dtype()
        if voxel_type.kind not in "biuf":
            raise ValueError(
                f"colours or complex numbers ({voxel_type}) where intensities are expected; give "
                "magnitudes"
            )
    except READ_ERRORS as error:
        raise ValueError(f"{path}: not a readable scan ({error})") from error
    if math.prod(image.shape) > MAX_VOXELS:
        raise ValueError(
            f"{path}: its voxels are too many, {image.shape} by the header, {MAX_VOXELS} at most "
            "expected; resample it, or copy it again"
        )
    return image


def open_scan(path: Path, *, any_grid: bool = False) -> OpenScan:
    """Opens a scan and checks its shape and grid by its header.

    Raises:
        ValueError: unreadable, not 3-D, or off the MNI152 2 mm grid; names file and expectation.
    """
    image = open_image(path)
    shape, affine = image.shape, image.affine
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or min(shape[:3]) < 1:
        raise ValueError(f"{path}: one 3-D volume expected, found shape {shape}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise ValueError(f"{path}: its affine is not invertible: {affine[:3].tolist()}")
    if np.isnan(io_orientation(affine)).any():
        raise ValueError(f"{path}: no direction for each axis in its affine: {affine[:3].tolist()}")
    # The shape and the affine that this file would have if it were stored in LAS order.
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("LAS"))
    las_affine = affine @ inv_ornt_aff(turn, shape[:3])
    las_shape = tuple(shape[axis] for axis in np.argsort(turn[:, 0]))
    on_grid = las_shape == GRID_SHAPE and np.allclose(las_affine, GRID_AFFINE, atol=0.01)
    if not (any_grid or on_grid):
        raise ValueError(
            f"{path}: not on the FSL MNI152 2 mm grid: found shape {las_shape} and affine "
            f"{las_affine[:3].round(3).tolist()} in LAS order, expected {GRID_SHAPE} and "
            f"{GRID_AFFINE[:3].tolist()}; preprocess it first (training takes --any_grid, "
            "for experiments)"
        )
    return OpenScan(image, "".join(aff2axcodes(affine)), las_shape)


def read_voxels(image: SpatialImage) -> np.ndarray:
    """All voxels of an opened image, float32; a compressed file is read to its checksum.

    nibabel stops behind the last voxel, before the checksum, so most damage would go unnoticed.

    Raises:
        OSError: a compressed file is damaged or cut. Others of READ_ERRORS: as nibabel.
    """
    # get_fdata() would make a float64 copy and keep it.
    stored = image.dataobj
    if Path(stored.file_like).suffix.lower() not in (".gz", ".mgz"):
        return np.asarray(stored, np.float32)
    layout = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
    try:
        with gzip.open(stored.file_like) as stream:
            voxels = np.asarray(ArrayProxy(stream, layout), np.float32)
            trailing = 0
            while block := stream.read(1 << 20):  # at the end gzip compares the checksum
                trailing += len(block)
                if trailing > MAX_TRAILING_BYTES:
                    raise OSError("more bytes behind its voxels than its header accounts for")
    except (OSError, EOFError, zlib.error) as error:
        raise OSError(f"damaged or cut: {error}; copy or download it again") from error
    return voxels


def decode(path: Path, *, any_grid: bool = False) -> np.ndarray:
    """Turns a scan's file into voxels.

    Returns:
        (D, H, W) float32 in LAS order, intensities and resolution as in the file.

    Raises:
        ValueError: as `open_scan`; or the voxels cannot be read, are not finite, or hold no brain.
    """
    image = open_scan(path, any_grid=any_grid).image
    try:
        voxels = read_voxels(image).reshape(image.shape[:3])
    except READ_ERRORS as error:
        raise ValueError(f"{path}: its voxels cannot be read ({error})") from error
    if not np.isfinite(voxels).all():
        count = int((~np.isfinite(voxels)).sum())
        raise ValueError(f"{path}: {count} voxels are NaN or infinite, finite values expected")
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("LAS"))
    voxels = np.ascontiguousarray(apply_orientation(voxels, turn))
    try:
        select_brain(voxels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return voxels


def read_scan(path: Path, input_rule: InputRule, dtype: str = "float32") -> tuple[np.ndarray, str]:
    """Reads one scan from its file, as a network's input.

    Returns:
        The network's input (D, H, W) in `dtype`, and its content hash.

    Raises:
        ValueError: as `decode` and `as_input`.
    """
    return as_input(path, decode(path, any_grid=input_rule.any_grid), input_rule, dtype)


def as_input(
    path: Path, voxels: np.ndarray, input_rule: InputRule, dtype: str = "float32"
) -> tuple[np.ndarray, str]:
    """What `read_scan` returns, of a scan at `path` that gave `voxels` when it was decoded.

    Raises:
        ValueError: as `network_input`; or values too large for `dtype`. Names the file.
    """
    if not input_rule.any_grid and (share := share_above_0(voxels)) > LARGEST_BRAIN:
        warnings.warn(
            f"{path}: {share:.0%} of the grid is above 0, at most {LARGEST_BRAIN:.0%} expected: "
            "skull or background left on: do not trust its age; preprocess it with preprocess.py",
            stacklevel=3,
        )
    try:
        values = network_input(voxels, input_rule)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with np.errstate(over="ignore"):
        image = values.astype(dtype, copy=False)
    if not np.isfinite(image).all():
        raise ValueError(
            f"{path}: values beyond 65504, the largest of float16: set the outliers of the scan, "
            "voxels far below 0, to 0"
        )
    return image, content_hash(voxels)


def share_above_0(voxels: np.ndarray) -> float:
    """The share of a scan on the grid that the network takes for brain."""
    return np.count_nonzero(voxels > 0) / voxels.size


def content_hash(voxels: np.ndarray) -> str:
    """What identifies an image: 16 hexadecimal digits of its intensities other than 0.

    Leaving out the background, two thirds of a brain on the grid, makes it 2.5 times faster.

    Args:
        voxels: (D, H, W) float32 in LAS order, from `decode`.
    """
    inside = voxels[voxels != 0].astype("<f4", copy=False)
    return hashlib.blake2b(inside, digest_size=CONTENT_BYTES).hexdigest()


def reduce_volume(voxels: np.ndarray, input_rule: InputRule) -> np.ndarray:
    """Crops and averages the voxels from `decode` as `input_rule` says.

    Returns:
        (D, H, W) float32: 91x109x91 at 2 mm, 45x54x45 at 4 mm; cropped, 76x92x78 and 38x46x39.
    """
    if input_rule.crop:
        voxels = np.ascontiguousarray(voxels[tuple(slice(*ends) for ends in BRAIN_BOX)])
    return average_2x2x2(voxels) if input_rule.resolution == 4 else voxels


def average_2x2x2(volume: np.ndarray) -> np.ndarray:
    """Means over 2x2x2 voxels; an odd last plane is cropped: 91x109x91 -> 45x54x45."""
    depth, height, width = (size // 2 for size in volume.shape)
    cropped = volume[: 2 * depth, : 2 * height, : 2 * width]
    return cropped.reshape(depth, 2, height, 2, width, 2).mean(axis=(1, 3, 5))


def select_brain(volume: np.ndarray) -> np.ndarray:
    """The intensities above 0, (voxels,); ValueError where they do not differ."""
    brain = volume[volume > 0]
    if brain.size == 0 or brain.min() == brain.max():
        raise ValueError(
            "no brain: voxels above 0 with differing values expected, found "
            f"{brain.size} voxels above 0"
        )
    return brain


def network_input(voxels: np.ndarray, input_rule: InputRule) -> np.ndarray:
    """What a network is given of a decoded scan.

    Args:
        voxels: (D, H, W) float32 in LAS order, from `decode`.
        input_rule: how.

    Returns:
        (D, H, W) float32, see `InputRule.input_shape`; with `authors`, background is not 0.

    Raises:
        ValueError: no brain, see `tissue_window` and `z_score`.
    """
    if input_rule.intensity == "tissue":  # before voxels are averaged: the window is not linear
        return reduce_volume(tissue_window(voxels, input_rule.window), input_rule)
    return z_score(reduce_volume(voxels, input_rule), input_rule.intensity)


def tissue_window(voxels: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """The brightness of a brain between its grey and its white matter, in a window.

    Grey and white matter are the medians where the template has them. A scan's contrast then has
    the same scale whatever the scanner; fluid is as dark as the background, whether it was cut away
    or not; and what lies beyond the template's mask is background. Chosen with whole scanners held
    out (docs/LOG.md, 2026-12-01): z-scores depend on how tightly a brain was extracted, on what is
    bright around it, and on the scanner's contrast.

    Args:
        voxels: (91, 109, 91) float32 in LAS order.
        window: what becomes 0 and 1, in a scale on which grey matter is 0 and white matter is 1.

    Returns:
        float32 from 0 to 1, the same shape.

    Raises:
        ValueError: white matter is not brighter than grey matter.
    """
    template = load_template()
    inside = voxels > 0
    white = float(np.median(voxels[template.white]))
    seen_grey = voxels[template.grey & inside]
    grey = float(np.median(seen_grey)) if seen_grey.size else 0.0
    if not white > grey:
        raise ValueError(
            f"white matter brighter than grey matter expected, found medians of {white:g} and "
            f"{grey:g} where the template has them: not T1-weighted, or misplaced on the grid"
        )
    floor, ceiling = (grey + share * (white - grey) for share in window)
    values = np.clip((voxels - floor) / (ceiling - floor), 0, 1)
    return np.where(template.around & inside, values, 0).astype(np.float32)


def z_score(volume: np.ndarray, intensity: str = "brain") -> np.ndarray:
    """Z-scores by the population mean and SD over voxels > 0.

    Args:
        volume: float32, any shape.
        intensity: `brain`: voxels <= 0 become 0; `authors`: they become x - mean/SD, the released
            code's rule.

    Returns:
        float32, the same shape.

    Raises:
        ValueError: the voxels above 0 do not differ.
    """
    brain = select_brain(volume)
    mean, deviation = brain.mean(dtype=np.float64), brain.std(dtype=np.float64)
    outside = volume - mean / deviation if intensity == "authors" else 0.0
    return np.where(volume > 0, (volume - mean) / deviation, outside).astype(np.float32)
