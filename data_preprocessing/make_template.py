"""Makes the shipped template: nilearn's ICBM 152 brain, warped into FSL's MNI152 space.

The two spaces differ by 2 mm on average and 8 mm at most, so a network trained on scans in one
space must not be given scans in the other. FSL's brain serves only to find the warp: the
intensities and the mask that are written are nilearn's.

    python -m data_preprocessing.make_template --fsl_brain MNI152_T1_2mm_brain.nii.gz \
        --output_dir template
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from data_preprocessing.pipeline.builtin import (
    register_affine,
    register_deformable,
    resample,
    to_itk,
)
from utils.cli import new_parser, run_entry
from utils.files import replacing
from utils.scans.template import BRAIN_FILE, MASK_FILE
from utils.scans.volumes import GRID_AFFINE, decode

# Both are averages of many brains: smooth, and so alike that a fine warp is safe.
SMOOTHING = 0.7  # SD in voxels of 1 mm
FINE = "-m NCC 2x2x2 -n 100x60x20 -s 1.732vox 0.7071vox -wp 0"


def warp_template(fsl_brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The template of nilearn in FSL's space.

    Args:
        fsl_brain: (91, 109, 91) on the grid, FSL's MNI152_T1_2mm_brain.

    Returns:
        Brain, uint8 from 0 to 255, and mask, uint8 0 and 1; both on the grid.
    """
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=1)
    mask = datasets.load_mni152_brain_mask(resolution=1)
    brain = ndimage.gaussian_filter(image.get_fdata(dtype=np.float32), SMOOTHING)
    fixed, moving = to_itk(fsl_brain, GRID_AFFINE), to_itk(1000 * brain, image.affine)
    with tempfile.TemporaryDirectory() as folder:
        transform = register_deformable(
            fixed, moving, register_affine(fixed, moving), workspace=Path(folder), parameters=FINE
        )
    inside = resample(mask.get_fdata(dtype=np.float32), mask.affine, transform) > 0.5
    warped = resample(brain, image.affine, transform)
    scaled = np.clip(np.round(warped * (255 / warped[inside].max())), 0, 255)
    return (scaled * inside).astype(np.uint8), inside.astype(np.uint8)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Warp nilearn's ICBM 152 template into FSL's MNI152 space.")
    parser.add_argument(
        "--fsl_brain", type=Path, required=True, help="FSL's MNI152_T1_2mm_brain.nii.gz"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="for the two files")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Makes both files and prints how well they agree with FSL's."""
    args = build_parser().parse_args(argv)
    fsl_brain = decode(args.fsl_brain)
    volumes = warp_template(fsl_brain)
    for volume, name in zip(volumes, (BRAIN_FILE.name, MASK_FILE.name), strict=True):
        image = nibabel.Nifti1Image(volume, GRID_AFFINE)
        image.set_sform(GRID_AFFINE, code="mni")
        image.set_qform(GRID_AFFINE, code="mni")
        with replacing(args.output_dir / name) as temporary:
            image.to_filename(temporary)
    inside = volumes[1] > 0
    correlation = np.corrcoef(volumes[0][inside], fsl_brain[inside])[0, 1]
    print(f"correlation with FSL's brain inside the mask: {correlation:.3f}")


if __name__ == "__main__":
    run_entry(main)
