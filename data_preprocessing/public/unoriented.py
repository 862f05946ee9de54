"""Volumes whose files do not say where left is: their orientation, from published sources.

Analyze 7.5 has no room for an orientation that one could rely on, and .npy for none at all. What
is front and top can be seen in such an image; left and right cannot, so this is where they would
be swapped unseen. Each function states the axes that it assumes and who says so.
"""

from pathlib import Path

import nibabel
import numpy as np
from nibabel.wrapstruct import WrapStructError

from utils.scans.volumes import READ_ERRORS

# x from right to left, y from back to front, z from bottom to top (LAS), 1 mm, the origin at the
# anterior commissure. Two sources agree, independently of each other: Ridgway's oasis_reorient.m
# (in github.com/nickjdavis/ScalpGM) moves these images by a translation only, under SPM's
# assumption that Analyze images are stored from right to left, which puts the origin at voxel
# (87, 123, 72) counted from 0; Balbastre's converter (github.com/balbasty/brainspresso, OASIS-I)
# calls them LAS. So does the Analyze format for transverse slices, which these are. It rests on
# these sources: no image of a known side was compared, and masked brains show no side.
T88_SHAPE = (176, 208, 176)
T88_AFFINE = np.array([[-1, 0, 0, 87], [0, 1, 0, -123], [0, 0, 1, -72], [0, 0, 0, 1]], float)

# The MNI152 1 mm grid of FSL, LAS. OpenBHB's quasi-raw arrays are what FSL's flirt made with
# MNI152_T1_1mm_brain as reference (workflow quasiraw of github.com/neurospin-deepinsight/
# brainprep), so they are stored in its order. The release comes with the mask of this space,
# resource/quasiraw_space-MNI152_desc-brain_T1w.nii.gz, by whose affine it can be checked.
QUASIRAW_SHAPE = (182, 218, 182)
QUASIRAW_AFFINE = np.array([[-1, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]], float)


def read_t88(path: Path) -> nibabel.Nifti1Image:
    """An atlas-registered scan of OASIS-1 (T88_111, Analyze 7.5, 16 bit), as LAS.

    Args:
        path: the .img, its .hdr beside it.

    Returns:
        int16, (176, 208, 176), 1 mm, in the space of the Talairach atlas 711-2B, not of MNI152.

    Raises:
        ValueError: unreadable, or of another shape; names the file.
    """
    voxels, _ = _read_analyze(path)
    if voxels.shape != T88_SHAPE:
        raise ValueError(f"{path}: shape {voxels.shape}, expected {T88_SHAPE} of T88_111")
    return nibabel.Nifti1Image(voxels, T88_AFFINE)


def read_oasis2_raw(path: Path) -> nibabel.Nifti1Image:
    """A raw scan of OASIS-2 (mpr-1.nifti.img), sagittal slices: front, top, left (ASL).

    The first axis runs from back to front, the second from bottom to top, the third from right to
    left. So say a description by Winkler (brainder.org, "Converting OASIS brains to NIFTI"),
    Ridgway's and Balbastre's converters as above, for the raw scans of OASIS-1; the last also for
    those of OASIS-2. What the header says of orientation is not used.

    Returns:
        The voxels as stored; its voxel sizes from the header, the origin in the middle.

    Raises:
        ValueError: unreadable, or not a 3-D volume; names the file.
    """
    voxels, sizes = _read_analyze(path)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]]) * sizes
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(voxels.shape) - 1) / 2)
    return nibabel.Nifti1Image(voxels, affine)


def read_quasiraw(path: Path) -> nibabel.Nifti1Image:
    """A quasi-raw scan of OpenBHB (.npy): a brain, affinely registered to MNI152, as LAS.

    Returns:
        float32, (182, 218, 182), 1 mm.

    Raises:
        ValueError: unreadable, or of another shape; names the file.
    """
    try:
        voxels = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({error})") from error
    if voxels.shape != (1, 1, *QUASIRAW_SHAPE) and voxels.shape != QUASIRAW_SHAPE:
        raise ValueError(f"{path}: shape {voxels.shape}, expected (1, 1, 182, 218, 182)")
    return nibabel.Nifti1Image(voxels.reshape(QUASIRAW_SHAPE).astype(np.float32), QUASIRAW_AFFINE)


def _read_analyze(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of one 3-D volume in native byte order, and voxel sizes in mm."""
    try:
        # As Analyze whatever the header pretends: nibabel.load would take its origin as given.
        image = nibabel.AnalyzeImage.from_filename(path)
        voxels = np.asarray(image.dataobj)
    except (*READ_ERRORS, WrapStructError) as error:
        raise ValueError(f"{path}: not a readable Analyze image ({error})") from error
    if voxels.ndim < 3 or any(size != 1 for size in voxels.shape[3:]):
        raise ValueError(f"{path}: shape {voxels.shape}, expected one 3-D volume")
    voxels = voxels.reshape(voxels.shape[:3]).astype(voxels.dtype.newbyteorder("="))
    return voxels, np.array(image.header.get_zooms()[:3], float)
