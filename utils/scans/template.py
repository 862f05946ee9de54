"""The template that scans are registered to: a brain in FSL's MNI152 space on the 2 mm grid.

FSL's own template may not be shipped here. This one is the ICBM 152 average that comes with
nilearn, warped into FSL's space by data_preprocessing/make_template.py; the NOTICE.txt beside the
files has its terms.
"""

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import nibabel
import numpy as np

FOLDER = Path(__file__).with_name("template_files")
BRAIN_FILE = FOLDER / "brain_2mm.nii.gz"
MASK_FILE = FOLDER / "brain_mask_2mm.nii.gz"
# The template's brightness in places that are white matter in anyone, once one voxel is taken off
# them, and in places that are mostly grey matter.
SURELY_WHITE = 205
MOSTLY_GREY = (164, 187)


@dataclass(frozen=True)
class Template:
    """The template on the MNI152 2 mm grid, (91, 109, 91) in LAS order; its arrays are read-only.

    Attributes:
        brain: float32 intensities, 0 outside the brain.
        mask: bool, the brain with its ventricles.
        sha256: of the voxels of both, the same however the files are compressed.
    """

    brain: np.ndarray
    mask: np.ndarray
    sha256: str

    @cached_property
    def around(self) -> np.ndarray:
        """Bool, the mask and one voxel around it: room for an affine fit's misses."""
        from scipy.ndimage import binary_dilation  # as long to import as all else of a scan

        return _read_only(binary_dilation(self.mask))

    @cached_property
    def white(self) -> np.ndarray:
        """Bool, where any registered brain has white matter."""
        from scipy.ndimage import binary_erosion

        return _read_only(binary_erosion(self.mask & (self.brain >= SURELY_WHITE)))

    @cached_property
    def grey(self) -> np.ndarray:
        """Bool, where a registered brain has mostly grey matter."""
        low, high = MOSTLY_GREY
        return _read_only(self.mask & (self.brain >= low) & (self.brain < high))


@cache
def load_template() -> Template:
    """The template, read once per process."""
    brain, mask = (np.asarray(nibabel.load(path).dataobj) for path in (BRAIN_FILE, MASK_FILE))
    digest = hashlib.sha256(brain.astype(np.uint8).tobytes() + mask.astype(np.uint8).tobytes())
    return Template(_read_only(brain.astype(np.float32)), _read_only(mask > 0), digest.hexdigest())


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
