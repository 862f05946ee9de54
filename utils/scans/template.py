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
WHITE_FROM = 205  # brightness of the template's white matter, before one voxel is taken off it


@dataclass(frozen=True)
class Template:
    """The template on the MNI152 2 mm grid, (91, 109, 91) in LAS order.

    Attributes:
        brain: float32 intensities, 0 outside the brain.
        mask: bool, the brain with its ventricles.
        around: bool, the mask and one voxel around it: room for an affine fit's misses.
        white_matter: bool, where any brain has white matter once it is registered.
        sha256: of the voxels of both, the same however the files are compressed.
    """

    brain: np.ndarray
    mask: np.ndarray
    around: np.ndarray
    white_matter: np.ndarray
    sha256: str


@cache
def load_template() -> Template:
    """The template, read once per process; its arrays are read-only."""
    brain, mask = (np.asarray(nibabel.load(path).dataobj) for path in (BRAIN_FILE, MASK_FILE))
    digest = hashlib.sha256(brain.astype(np.uint8).tobytes() + mask.astype(np.uint8).tobytes())
    brain, mask = brain.astype(np.float32), mask > 0
    around, white_matter = binary_dilation(mask), binary_erosion(mask & (brain >= WHITE_FROM))
    for array in (brain, mask, around, white_matter):
        array.setflags(write=False)
    return Template(brain, mask, around, white_matter, digest.hexdigest())
