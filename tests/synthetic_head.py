"""A synthetic head around the shipped template's brain: CSF, skull, scalp; nobody was scanned."""

import nibabel
import numpy as np
from scipy import ndimage

from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE

PAD = 12  # voxels of 2 mm around the grid, where skull and scalp find room


def rotation(degrees: float, axis: int) -> np.ndarray:
    """(4, 4) about one of the world's axes."""
    turn = np.deg2rad(degrees)
    first, second = (other for other in range(3) if other != axis)
    matrix = np.eye(4)
    matrix[[first, second], [first, second]] = np.cos(turn)
    matrix[first, second], matrix[second, first] = -np.sin(turn), np.sin(turn)
    return matrix


def make_head(
    *, stripped: bool = False, placed: np.ndarray | None = None, seed: int = 0
) -> nibabel.Nifti1Image:
    """A head of 2 mm voxels, or its brain alone.

    Args:
        stripped: whether skull and scalp are left out.
        placed: (4, 4) moves the head in the world through its header: RAS mm to RAS mm.
        seed: of the noise.
    """
    template = load_template()
    brain, mask = np.pad(template.brain, PAD), np.pad(template.mask, PAD)
    affine = GRID_AFFINE.copy()
    affine[:3, 3] -= GRID_AFFINE[:3, :3] @ ([PAD] * 3)
    rng = np.random.default_rng(seed)
    if stripped:
        head = np.where(mask, np.maximum(brain, 8), 0)
    else:
        distance = ndimage.distance_transform_edt(~mask)  # voxels of 2 mm from the brain
        head = np.select(
            [mask, distance < 1.5, distance < 4, distance < 8], [np.maximum(brain, 8), 40, 12, 230]
        )
    noisy = np.hypot(head + rng.normal(0, 3, head.shape), rng.normal(0, 3, head.shape))
    voxels = np.where(head > 0, noisy, 0) if stripped else noisy
    return nibabel.Nifti1Image(
        voxels.astype(np.float32), affine if placed is None else placed @ affine
    )
