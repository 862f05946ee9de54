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

FOLDER = Path(__file__).with_name("template_files")
BRAIN_FILE = FOLDER / "brain_2mm.nii.gz"
MASK_FILE = FOLDER / "brain_mask_2mm.nii.gz"


@dataclass(frozen=True)
class Template:
    """The template on the MNI152 2 mm grid, (91, 109, 91) in LAS order.

    Attributes:
        brain: float32 intensities, 0 outside the brain.
        mask: bool, the brain with its ventricles.
        sha256: of the voxels of both, the same however the files are compressed.
    """

    brain: np.ndarray
    mask: np.ndarray
    sha256: str


@cache
def load_template() -> Template:
    """The template, read once per process; its arrays are read-only."""
    brain, mask = (np.asarray(nibabel.load(path).dataobj) for path in (BRAIN_FILE, MASK_FILE))
    digest = hashlib.sha256(brain.astype(np.uint8).tobytes() + mask.astype(np.uint8).tobytes())
    brain, mask = brain.astype(np.float32), mask > 0
    brain.setflags(write=False)
    mask.setflags(write=False)
    return Template(brain, mask, digest.hexdigest())
