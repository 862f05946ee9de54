"""The template that scans are registered to: a brain in FSL's MNI152 space on the 2 mm grid.

FSL's own template may not be shipped here. This one is the ICBM 152 average that comes with
nilearn, warped into FSL's space by data_preprocessing/make_template.py; the NOTICE.txt beside the
files has its terms.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

FOLDER = Path(__file__).with_name("template_files")
BRAIN_FILE = FOLDER / "brain_2mm.nii.gz"
MASK_FILE = FOLDER / "brain_mask_2mm.nii.gz"
# The template's brightness in places that are white matter in anyone, once one voxel is taken off
# them, and in places that are mostly grey matter.
WHITE_FROM = 205
GREY = (164, 187)


@dataclass(frozen=True)
class Template:
    """The template on the MNI152 2 mm grid, (91, 109, 91) in LAS order.

    Attributes:
        brain: float32 intensities, 0 outside the brain.
        mask: bool, the brain with its ventricles.
        around: bool, the mask and one voxel around it: room for an affine fit's misses.
        white: bool, where any registered brain has white matter.
        grey: bool, where it has mostly grey matter.
        sha256: of the voxels of both, the same however the files are compressed.
    """

    brain: np.ndarray
    mask: np.ndarray
    around: np.ndarray
    white: np.ndarray
    grey: np.ndarray
    sha256: str


@cache
def load_template() -> Template:
    """The template, read once per process; its arrays are read-only."""
    brain, mask = (np.asarray(nibabel.load(path).dataobj) for path in (BRAIN_FILE, MASK_FILE))
    digest = hashlib.sha256(brain.astype(np.uint8).tobytes() + mask.astype(np.uint8).tobytes())
    brain, mask = brain.astype(np.float32), mask > 0
    white = binary_erosion(mask & (brain >= WHITE_FROM))
    grey = mask & (brain >= GREY[0]) & (brain < GREY[1])
    arrays = (brain, mask, binary_dilation(mask), white, grey)
    for array in arrays:
        array.setflags(write=False)
    return Template(*arrays, digest.hexdigest())
