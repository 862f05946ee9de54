"""The default backend: pip packages alone, no FSL, nothing downloaded, bitwise reproducible.

    read -> brain mask (deepbet) -> crop to the brain -> bias field (N4, SimpleITK)
         -> affine, then deformable registration to the template (greedy) -> one interpolation

Every step uses one thread: scans are done side by side in processes instead. docs/preprocess.md
says how the output differs from FSL's, docs/LOG.md which settings were compared.

Greedy (Yushkevich et al., github.com/pyushkevich/greedy) maps points of the fixed image, the
template, to points of the moving one, the scan: x -> A (x + u(x)), with u a displacement in mm on
the template's grid. Arrays are in nibabel's axis order, (x, y, z), and affines in RAS mm.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from data_preprocessing.pipeline.native import (
    Native,
    flat_end,
    foreground,
    guess_contents,
    read_native,
)
from data_preprocessing.pipeline.quality import correlation
from data_preprocessing.pipeline.recipe import INSTALL, Identity, Mapped, Recipe
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

ENGINES = {"deepbet": "deepbet", "SimpleITK": "SimpleITK", "picsl_greedy": "picsl-greedy"}
MARGIN = 12.0  # mm kept around the brain
# Four levels over-correct weak fields; 6 mm takes a third of the time of 4 mm and is as good.
N4_ITERATIONS = (50, 50, 50)
N4_SPACING = 6.0  # mm
N4_THRESHOLD = 1e-4
# Where the correlation after the affine step is lower than this, it is tried from other first
# guesses. Good affines reach 0.41 to 0.70 (the brains of the old and ill at the lower end), failed
# ones 0.2 to 0.35.
SEARCH_BELOW = 0.45
# ITK's world is LPS: left and posterior are positive.
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Without a seed two runs differ by 1 mm, with two threads by 0.2 mm.
REPRODUCIBLE = "-seed 1234 -threads 1 -V 0"
AFFINE = "-a -dof 12 -m NCC 2x2x2 -n 100x50x0 -ia-image-centers"
# Tried one after the other where the affine ends badly: 1,000 first guesses that are turned by 45
# degrees and moved by 20 mm (SD), for heads that lie askew; then any turn, for wrong headers.
SEARCHES = ("-search 1000 45 20 -det 1", "-search 1000 any 20 -det 1")
# Smoothing by 2.5 voxels per step instead of 2 costs nothing: one head bent by 12 mm lands 0.92 mm
# apart instead of 1.21, another 1.74 instead of 1.97. Without -wp 0, greedy rounds warps to 0.1
# voxels.
DEFORMABLE = "-m NCC 2x2x2 -n 60x30x10 -s 2.5vox 1vox -wp 0"
AFFINE_SUFFIX, WARP_SUFFIX = "_affine.txt", "_warp.nii.gz"


@dataclass(frozen=True)
class Transform:
    """From the template to a scan.

    Attributes:
        affine: (4, 4) float64, template RAS mm to scan RAS mm.
        displacement: (X, Y, Z, 3) float32 on the template's grid, RAS mm, added before the affine;
            None for an affine registration.
    """

    affine: np.ndarray
    displacement: np.ndarray | None


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
        "affine": AFFINE,
        "searches": list(SEARCHES),
        "search_below": SEARCH_BELOW,
    }
    if recipe.registration == "deformable":
        parameters["deformable"] = DEFORMABLE
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
    contents = guess_contents(native) if recipe.contents == "auto" else recipe.contents
    with engines_contained(workspace / "engines.log"):
        mask = find_brain(image, native, contents)
        if contents == "brain":  # faint voxels around it would pass the template's mask
            native.voxels = native.voxels * mask
        flat_end_mm2 = flat_end(mask, native.voxel_size)
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
        {**summarise(transform, template.mask), "searched": searched},
        notes,
        save_transform(transform, workspace),
        flat_end_mm2,
    )


def find_brain(image: Path, native: Native, contents: str) -> np.ndarray:
    """The brain's mask, (X, Y, Z) bool; `image` is named where a head has none."""
    if contents == "brain":
        return ndimage.binary_fill_holes(foreground(native))
    found = _deepbet().run(nibabel.Nifti1Image(native.voxels, native.affine))[1]
    mask = np.asarray(found.dataobj) > 0
    if not mask.any():
        raise ValueError(f"{image}: no brain found in it; a T1-weighted head expected")
    return mask


@cache
def _deepbet():
    """The network, loaded once per process; its weights come with the package."""
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
    template, brain = load_template(), native.voxels * mask
    fixed, moving = to_itk(template.brain, GRID_AFFINE), to_itk(brain, native.affine)
    tried = []
    for search in ("", *SEARCHES):
        found = register_affine(fixed, moving, search=search)
        tried.append((correlation(resample(brain, native.affine, found), template), found))
        if tried[-1][0] >= SEARCH_BELOW:
            break
    best = max(tried, key=lambda one: one[0])[1]
    if kind == "deformable":
        best = register_deformable(fixed, moving, best, workspace=workspace)
    return best, len(tried) > 1


def to_itk(volume: np.ndarray, affine: np.ndarray):
    """A SimpleITK image of a (X, Y, Z) volume whose affine has no shear."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.T))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    placed = LPS @ affine
    image.SetSpacing(spacing.tolist())
    image.SetDirection((placed[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(placed[:3, 3].tolist())
    return image


def register_affine(fixed, moving, *, search: str = "") -> Transform:
    """Registers a brain to the template's with 12 degrees of freedom.

    Args:
        fixed: SimpleITK float32 image, the template.
        moving: SimpleITK float32 image, a brain, cropped to it: its centre is the first guess.
        search: greedy's flags for other first guesses, one of SEARCHES.
    """
    from picsl_greedy import Greedy3D

    greedy = Greedy3D()  # keeps the results of its commands by name
    command = f"-i fixed moving {AFFINE} {search} {REPRODUCIBLE} -o affine"
    greedy.execute(command, fixed=fixed, moving=moving, affine=None)
    return Transform(np.array(greedy["affine"], dtype=float), None)


def register_deformable(
    fixed, moving, start: Transform, *, workspace: Path, parameters: str = DEFORMABLE
) -> Transform:
    """Adds the displacement that remains after `start`, the affine registration of these images.

    Args:
        fixed: as in `register_affine`.
        moving: as in `register_affine`.
        start: from `register_affine`.
        workspace: a folder for the matrix, which greedy reads from a file only.
        parameters: greedy's flags.
    """
    import SimpleITK
    from picsl_greedy import Greedy3D

    matrix = workspace / "start.mat"
    np.savetxt(matrix, start.affine, fmt="%.17g")
    greedy = Greedy3D()
    command = f"-i fixed moving -it '{matrix}' {parameters} {REPRODUCIBLE} -o warp"
    greedy.execute(command, fixed=fixed, moving=moving, warp=None)
    warp = SimpleITK.GetArrayFromImage(greedy["warp"]).transpose(2, 1, 0, 3)
    return Transform(start.affine, (warp * np.diag(LPS)[:3]).astype(np.float32))


def resample(
    volume: np.ndarray, affine: np.ndarray, transform: Transform, *, order: int = 1
) -> np.ndarray:
    """Reads a scan at the points of the template's grid, in one interpolation.

    Args:
        volume: (X, Y, Z) voxels of the scan.
        affine: (4, 4) of the scan, voxels to RAS mm.
        transform: from the template to the scan.
        order: of the spline; 1 is trilinear, 0 takes the nearest voxel.

    Returns:
        float32 on the MNI152 2 mm grid, (91, 109, 91) in LAS order; 0 beyond the scan.
    """
    indices = np.stack(np.meshgrid(*map(np.arange, GRID_SHAPE), indexing="ij"), axis=-1)
    points = indices @ GRID_AFFINE[:3, :3].T + GRID_AFFINE[:3, 3]
    if transform.displacement is not None:
        points = points + transform.displacement
    to_voxels = np.linalg.inv(affine) @ transform.affine
    voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    return ndimage.map_coordinates(
        volume, np.moveaxis(voxels, -1, 0), output=np.float32, order=order
    )


def summarise(transform: Transform, inside: np.ndarray) -> dict:
    """Plain numbers that tell a sane transform from a wild one; `inside` is the brain's mask."""
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
    """Local change of volume of x + u(x), (91, 109, 91); at 0 and below the map folds."""
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
        vectors = transform.displacement * np.diag(LPS)[:3].astype(np.float32)
        image = nibabel.Nifti1Image(vectors[:, :, :, None, :], GRID_AFFINE)
        image.header.set_intent("vector")
        image.to_filename(kept[WARP_SUFFIX])
    return kept


@contextmanager
def engines_contained(log: Path) -> Iterator[None]:
    """Gives torch and ITK one thread each, and sends what engines print to a file.

    The results depend on the number of threads. The engines print past Python, straight to the
    descriptors 1 and 2.
    """
    import SimpleITK
    import torch

    torch_threads = torch.get_num_threads()
    itk_threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    with log.open("ab") as file:
        try:
            for descriptor, _ in saved:
                os.dup2(file.fileno(), descriptor)
            torch.set_num_threads(1)
            SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
            yield
        finally:
            for descriptor, copy in saved:
                os.dup2(copy, descriptor)
                os.close(copy)
            torch.set_num_threads(torch_threads)
            SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(itk_threads)
