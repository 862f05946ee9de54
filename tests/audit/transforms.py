"""Reading back the transforms that the builtin backend keeps of a scan."""

from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from data_preprocessing.pipeline.builtin import AFFINE_SUFFIX, LPS, WARP_SUFFIX, Transform
from utils.scans.volumes import GRID_AFFINE


def load_transform(kept: dict[str, Path]) -> Transform:
    """The transform that `builtin.save_transform` wrote."""
    affine = np.loadtxt(kept[AFFINE_SUFFIX])
    if WARP_SUFFIX not in kept:
        return Transform(affine, None)
    vectors = np.asarray(nibabel.load(kept[WARP_SUFFIX]).dataobj, dtype=np.float32)[:, :, :, 0]
    return Transform(affine, vectors * np.diag(LPS)[:3].astype(np.float32))


def template_to_scan(points: np.ndarray, kept: dict[str, Path]) -> np.ndarray:
    """Where points of the template lie in the scan.

    Args:
        points: (N, 3) RAS mm in MNI152 space, on the grid.
        kept: files of a transform, as in `Mapped.kept`.

    Returns:
        (N, 3) RAS mm in the scan.
    """
    transform = load_transform(kept)
    if transform.displacement is not None:
        to_voxels = np.linalg.inv(GRID_AFFINE)
        voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        moved = [
            ndimage.map_coordinates(transform.displacement[..., axis], voxels.T, order=1)
            for axis in range(3)
        ]
        points = points + np.stack(moved, axis=-1)
    return points @ transform.affine[:3, :3].T + transform.affine[:3, 3]
