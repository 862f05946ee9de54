"""Backend `resample`: scans that lie in MNI152 space (NLin6Asym) already, on another grid.

Examples are TemplateFlow's 2 mm grid, whose first axis runs the other way, and grids of 1 and 3 mm.
Nothing is registered: a scan is interpolated once (trilinear), and not at all where only the order
of its axes differs.
"""

import re
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from data_preprocessing.pipeline.native import (
    Native,
    flat_end,
    foreground,
    guess_contents,
    read_native,
)
from data_preprocessing.pipeline.recipe import Identity, Mapped, Recipe
from utils.people.bids_names import BIDS_LABEL
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

# The grid with its first axis from left to right, as `read_native` orders axes.
FLIPPED_AFFINE = GRID_AFFINE @ [
    [-1, 0, 0, GRID_SHAPE[0] - 1],
    [0, 1, 0, 0],
    [0, 0, 1, 0],
    [0, 0, 0, 1],
]
SPACE = "MNI152NLin6Asym"  # what BIDS calls the space of FSL's templates
ROUNDING = 0.01  # mm for affines, voxels for the edge of the field of view


def check(recipe: Recipe) -> None:
    """Raises ValueError where a head is to keep the subject's own brain, which is not known."""
    if recipe.mask == "subject" and recipe.contents == "head":
        raise ValueError(
            "mask subject with contents head: the resample backend extracts no brains; give --mask "
            "template, or --backend builtin"
        )


def identity(recipe: Recipe) -> Identity:
    """The packages that interpolate, the template whose mask is used, and the interpolation."""
    return Identity(
        versions={name: version(name) for name in ("nibabel", "scipy")},
        template_sha256=load_template().sha256,
        parameters={"interpolation": "trilinear"},
    )


def map_scan(image: Path, recipe: Recipe, *, workspace: Path) -> Mapped:
    """Brings a scan from its own grid to the network's; intensities stay as they are.

    Args:
        image: a head or brain in MNI152 space, NIfTI or MGH.
        recipe: one that `check` accepts.
        workspace: not used, nothing is written.

    Raises:
        ValueError: a file name with another space; an unreadable scan; a field of view that lacks
            a part of the template's brain; a head where only the scan's own brain should be kept;
            or nothing but 0 in the brain.
    """
    space = re.search(rf"_space-({BIDS_LABEL})", image.name)  # in names of BIDS
    if space and space[1] != SPACE:
        raise ValueError(
            f"{image}: its name says space {space[1]}, {SPACE} expected: other templates lie "
            "millimetres away; give --backend builtin"
        )
    native = read_native(image, rescale=False)
    template = load_template()
    _require_whole_brain(image, native, template.mask)
    contents = guess_contents(native) if recipe.contents == "auto" else recipe.contents
    if contents == "head" and recipe.mask == "subject":
        raise ValueError(
            f"{image}: looks like a whole head, --mask subject needs an extracted brain; give "
            "--mask template, or --contents brain if it is one"
        )
    voxels, brain, flat, shares = native.voxels, None, None, _shares_voxels(native)
    if contents == "brain":
        own = ndimage.binary_fill_holes(foreground(native))
        flat = flat_end(own, native.voxel_size)
        brain = _on_grid(native, own.astype(np.float32)) > 0.5
        voxels = voxels * own  # faint voxels around it would pass the template's mask
    volume = _on_grid(native, voxels)
    volume *= template.mask if recipe.mask == "template" else brain
    if not volume.any():
        raise ValueError(f"{image}: 0 everywhere in the template's brain; is it in MNI152 space?")
    found = {"from_affine": native.affine.round(6).tolist(), "interpolated": not shares}
    return Mapped(volume, brain, contents, found, native.notes, flat_end_mm2=flat)


def _require_whole_brain(image: Path, native: Native, mask: np.ndarray) -> None:
    """Raises ValueError if part of the template's brain lies beyond the scan's outermost voxels."""
    to_voxels = np.linalg.inv(native.affine) @ GRID_AFFINE
    places = np.argwhere(mask) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    last = np.array(native.voxels.shape) - 1
    outside = ((places < -ROUNDING) | (places > last + ROUNDING)).any(axis=1).mean()
    if outside:
        raise ValueError(
            f"{image}: its field of view leaves out {outside:.1%} of the brain of MNI152; found "
            f"shape {native.voxels.shape}, affine {native.affine[:3].round(3).tolist()}; the "
            "resample backend is for scans in MNI152 space, give --backend builtin for others"
        )


def _shares_voxels(native: Native) -> bool:
    """Whether the scan differs from the grid by the direction of its first axis at most."""
    return native.voxels.shape == GRID_SHAPE and np.allclose(
        native.affine, FLIPPED_AFFINE, atol=ROUNDING
    )


def _on_grid(native: Native, voxels: np.ndarray) -> np.ndarray:
    """(91, 109, 91) float32 of `voxels`, float32 on the scan's grid."""
    if _shares_voxels(native):
        return voxels[::-1].copy()
    resampled = resample_from_to(
        nibabel.Nifti1Image(voxels, native.affine), (GRID_SHAPE, GRID_AFFINE), order=1
    )
    return np.asarray(resampled.dataobj)
