"""The default backend: pip packages alone, no FSL, nothing downloaded, bitwise reproducible.

    read -> brain mask (deepbet) -> crop to the brain -> bias field (N4, SimpleITK)
         -> affine, then deformable registration to the template (greedy) -> one interpolation

All steps use one thread: scans are done side by side in processes instead. docs/preprocess.md says
how the output differs from FSL's, docs/LOG.md which settings were compared.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from data_preprocessing.pipeline import registration
from data_preprocessing.pipeline.native import Native, foreground, read_native, seen_contents
from data_preprocessing.pipeline.quality import correlation
from data_preprocessing.pipeline.recipe import INSTALL, Identity, Mapped, Recipe
from data_preprocessing.pipeline.registration import (
    Transform,
    register_affine,
    register_deformable,
    resample,
    to_itk,
)
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE

ENGINES = {"deepbet": "deepbet", "SimpleITK": "SimpleITK", "picsl_greedy": "picsl-greedy"}
MARGIN = 12.0  # mm kept around the brain
# Four levels over-correct weak fields; at 6 mm a third of the time of 4 mm, as good.
N4_ITERATIONS = (50, 50, 50)
N4_SPACING = 6.0  # mm
N4_THRESHOLD = 1e-4
# Correlation after the affine step below which it is tried from other first guesses. Good affines
# reach 0.41 to 0.70, with the brains of the old and ill at the lower end; failed ones 0.2 to 0.35.
SEARCH_BELOW = 0.45
AFFINE_SUFFIX, WARP_SUFFIX = "_affine.txt", "_warp.nii.gz"


def check(recipe: Recipe) -> None:
    """Raises ValueError if a package is missing, with the command that installs it."""
    missing = [name for module, name in ENGINES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise ValueError(f"--backend builtin needs {', '.join(missing)}: {INSTALL}")


def identity(recipe: Recipe) -> Identity:
    """Versions, template and parameters of `recipe`."""
    parameters = {
        "bias_field": {"iterations": list(N4_ITERATIONS), "spacing_mm": N4_SPACING},
        "margin_mm": MARGIN,
        "affine": registration.AFFINE,
        "searches": list(registration.SEARCHES),
        "search_below": SEARCH_BELOW,
    }
    if recipe.registration == "deformable":
        parameters["deformable"] = registration.DEFORMABLE
    versions = {name: version(name) for name in ENGINES.values()}
    return Identity(versions, load_template().sha256, parameters)


def map_scan(image: Path, recipe: Recipe, *, workspace: Path) -> Mapped:
    """Brings one scan onto the grid.

    Args:
        image: any NIfTI or MGH file.
        recipe: of backend `builtin`.
        workspace: a folder for the transform and the engines' log.

    Raises:
        ValueError: the scan cannot be read, or no brain is found in it.
        RuntimeError: an engine failed.
    """
    native = read_native(image)
    contents = seen_contents(native) if recipe.contents == "auto" else recipe.contents
    with single_threaded(), engine_output_to(workspace / "engines.log"):
        mask = find_brain(image, native, contents)
        if contents == "brain":  # what is faint around it would pass the template's mask
            native.voxels = native.voxels * mask
        native, mask = crop(native, mask)
        native.voxels = correct_bias(native, mask)
        transform, searched = align(native, mask, recipe.registration, workspace=workspace)
    notes = list(native.notes)
    if searched:
        notes.append("the first registration was poor: wider searches were tried")
    template = load_template()
    brain = resample(mask.astype(np.float32), native.affine, transform) > 0.5
    volume = resample(native.voxels, native.affine, transform)
    volume *= template.mask if recipe.mask == "template" else brain
    return Mapped(
        volume,
        brain,
        contents,
        {**summary(transform, template.mask), "searched": searched},
        notes,
        save_transform(transform, workspace),
    )


def find_brain(image: Path, native: Native, contents: str) -> np.ndarray:
    """The brain's mask, bool on the scan's voxels.

    Args:
        image: the file, for the message.
        native: the scan.
        contents: `brain` where it is extracted already, else `head`.
    """
    if contents == "brain":
        return ndimage.binary_fill_holes(foreground(native))
    found = _deepbet().run(nibabel.Nifti1Image(native.voxels, native.affine))[1]
    mask = np.asarray(found.dataobj) > 0
    if not mask.any():
        raise ValueError(f"{image}: no brain found in it; a T1-weighted head expected")
    return mask


@cache
def _deepbet():
    """The network, loaded once a process; its weights come with the package."""
    from deepbet import BrainExtraction

    return BrainExtraction(no_gpu=True)


def crop(native: Native, mask: np.ndarray) -> tuple[Native, np.ndarray]:
    """The block around the brain, with a margin; a neck would mislead the first guess."""
    margins = np.ceil(MARGIN / native.voxel_size).astype(int)
    block = tuple(
        slice(max(0, places.min() - margin), places.max() + margin + 1)
        for places, margin in zip(np.nonzero(mask), margins, strict=True)
    )
    affine = native.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in block]
    return Native(native.voxels[block], affine, native.notes), mask[block]


def correct_bias(native: Native, mask: np.ndarray) -> np.ndarray:
    """Intensities divided by the smooth field that N4 finds inside the brain, its median 1."""
    import SimpleITK

    head = to_itk(native.voxels, native.affine)
    shrink = [max(1, round(N4_SPACING / size)) for size in native.voxel_size]
    n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(N4_ITERATIONS)
    n4.SetConvergenceThreshold(N4_THRESHOLD)
    inside = to_itk(mask.astype(np.uint8), native.affine)
    n4.Execute(SimpleITK.Shrink(head, shrink), SimpleITK.Shrink(inside, shrink))
    field = SimpleITK.GetArrayFromImage(n4.GetLogBiasFieldAsImage(head)).T
    # Far from the mask the spline is extrapolated.
    field = np.clip(field - np.median(field[mask]), -3, 3)
    return (native.voxels / np.exp(field)).astype(np.float32)


def align(
    native: Native, mask: np.ndarray, kind: str, *, workspace: Path
) -> tuple[Transform, bool]:
    """The registration to the template, and whether wider searches were needed."""
    template = load_template()
    brain = native.voxels * mask
    fixed, moving = to_itk(template.brain, GRID_AFFINE), to_itk(brain, native.affine)

    def likeness(transform: Transform) -> float:
        return correlation(resample(brain, native.affine, transform), template)

    best = register_affine(fixed, moving)
    searched = likeness(best) < SEARCH_BELOW
    for search in registration.SEARCHES:
        if likeness(best) < SEARCH_BELOW:
            best = max(best, register_affine(fixed, moving, search=search), key=likeness)
    if kind == "deformable":
        best = register_deformable(fixed, moving, best, workspace=workspace)
    return best, searched


def summary(transform: Transform, inside: np.ndarray) -> dict:
    """Plain numbers that tell a sane transform from a wild one.

    Args:
        transform: from the template to the scan.
        inside: (91, 109, 91) bool, where the displacement is looked at.
    """
    linear = transform.affine[:3, :3]
    left, scales, right = np.linalg.svd(linear)
    rotation = left @ right
    cosine = (np.trace(rotation) - 1) / 2
    numbers = {
        "affine": transform.affine.round(6).tolist(),
        "rotation_degrees": round(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), 2),
        "scales": scales.round(4).tolist(),
        "shift_mm": transform.affine[:3, 3].round(2).tolist(),
    }
    if transform.displacement is not None:
        length = np.linalg.norm(transform.displacement, axis=-1)[inside]
        jacobian = jacobian_determinant(transform.displacement)[inside]
        numbers |= {
            "displacement_mean_mm": round(float(length.mean()), 3),
            "displacement_max_mm": round(float(length.max()), 3),
            "jacobian_min": round(float(jacobian.min()), 4),
            "jacobian_max": round(float(jacobian.max()), 4),
        }
    return numbers


def jacobian_determinant(displacement: np.ndarray) -> np.ndarray:
    """Local change of volume of x + u(x), (91, 109, 91); 0 and below is a fold."""
    steps = np.diag(GRID_AFFINE)[:3]
    gradient = np.stack(np.gradient(displacement.astype(float), *steps, axis=(0, 1, 2)), axis=-1)
    return np.linalg.det(np.eye(3) + gradient)


def save_transform(transform: Transform, workspace: Path) -> dict[str, Path]:
    """Writes the affine (4x4 text, template to scan, RAS mm) and the displacement.

    The displacement is a NIfTI vector image in LPS mm, as ITK, ANTs and greedy read it.
    """
    kept = {AFFINE_SUFFIX: workspace / "affine.txt"}
    np.savetxt(kept[AFFINE_SUFFIX], transform.affine, fmt="%.10g")
    if transform.displacement is not None:
        kept[WARP_SUFFIX] = workspace / "warp.nii.gz"
        vectors = transform.displacement * np.diag(registration.LPS)[:3].astype(np.float32)
        image = nibabel.Nifti1Image(vectors[:, :, :, None, :], GRID_AFFINE)
        image.header.set_intent("vector")
        image.to_filename(kept[WARP_SUFFIX])
    return kept


def load_transform(kept: dict[str, Path]) -> Transform:
    """The transform that `save_transform` wrote."""
    affine = np.loadtxt(kept[AFFINE_SUFFIX])
    if WARP_SUFFIX not in kept:
        return Transform(affine, None)
    vectors = np.asarray(nibabel.load(kept[WARP_SUFFIX]).dataobj, dtype=np.float32)[:, :, :, 0]
    return Transform(affine, vectors * np.diag(registration.LPS)[:3].astype(np.float32))


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


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for torch and ITK, as the results depend on their number."""
    import SimpleITK
    import torch

    torch_threads = torch.get_num_threads()
    itk_threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(itk_threads)


@contextmanager
def engine_output_to(log: Path) -> Iterator[None]:
    """Sends what the engines print past Python, on descriptors 1 and 2, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    with log.open("ab") as file:
        for descriptor, _ in saved:
            os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            for descriptor, copy in saved:
                os.dup2(copy, descriptor)
                os.close(copy)
