"""Backend `fsl`: FSL's own fsl_anat, then one applywarp.

The result is that of the published script, which is fsl_anat with one more line: it warps the
bias-corrected brain to MNI152 with the coefficients of FNIRT, trilinearly. The line also works
after an unchanged fsl_anat, as long as that does not segment: segmentation replaces the brain by
one with FAST's bias correction. The brain is the inside of MNI152's mask, brought back to the scan
through FNIRT's warp, so it is known only where the whole of fsl_anat has run.

fsl_anat ends with exit status 0 even after a step that failed, so the files of each step are read.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

from data_preprocessing.pipeline.native import Native, flat_end, guess_contents, read_native
from data_preprocessing.pipeline.recipe import Identity, Mapped, Recipe
from utils.cli import raise_all
from utils.files import IMAGE_SUFFIXES
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, READ_ERRORS

PROGRAMS = ("fsl_anat", "fnirt", "applywarp")
STANDARD = "data/standard/MNI152_T1_2mm"
STANDARD_FILES = (f"{STANDARD}.nii.gz", f"{STANDARD}_brain_mask.nii.gz", "etc/fslversion")
FSL_ANAT_FLAGS = ("--noseg", "--nosubcortseg", "--clobber")
# MNI152's own brain fills 26 % of the grid.
LEAST_FILLED = 0.1
SHOWN_LINES = 5
AFFINE_FILE = "T1_to_MNI_lin.mat"
BRAIN = "T1_biascorr_brain.nii.gz"
ANAT = "T1.anat"  # the folder that fsl_anat makes for `-o T1`


def _read_voxels(path: Path) -> np.ndarray:
    """Voxels of any shape, float32; ValueError unless they are finite and not all 0."""
    voxels = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    if not np.isfinite(voxels).all():
        raise ValueError("NaN or infinite voxels, finite values expected")
    if not voxels.any():
        raise ValueError("0 everywhere")
    return voxels


def _read_on_grid(path: Path) -> np.ndarray:
    """(91, 109, 91) float32 voxels; ValueError off the MNI152 2 mm grid or hardly filled."""
    image = nibabel.load(path)
    if image.shape != GRID_SHAPE or not np.allclose(image.affine, GRID_AFFINE, atol=0.01):
        raise ValueError(
            f"shape {image.shape} and affine {image.affine[:3].round(3).tolist()}, expected "
            f"{GRID_SHAPE} and {GRID_AFFINE[:3].tolist()}"
        )
    voxels = _read_voxels(path)
    filled = np.count_nonzero(voxels) / voxels.size
    if not filled > LEAST_FILLED:
        raise ValueError(
            f"{filled:.1%} of the voxels are not 0, more than {LEAST_FILLED:.0%} expected"
        )
    return voxels


def _read_matrix(path: Path) -> np.ndarray:
    """A (4, 4) matrix as FLIRT writes it; ValueError unless it can be inverted."""
    matrix = np.loadtxt(path)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-6:
        raise ValueError("an invertible 4 by 4 matrix expected")
    return matrix


class Route(NamedTuple):
    """How the brain goes from fsl_anat's folder to the grid."""

    flag: str  # for applywarp, naming the transform
    transform: str  # the file that `flag` names, in fsl_anat's folder
    head: str  # the whole head on the grid that fsl_anat made with this transform
    brain: str  # the file that applywarp makes, without suffix
    kept_as: str  # suffix of the transform behind a scan's name
    read_transform: Callable[[Path], np.ndarray]  # raises ValueError for a wrong transform


ROUTES = {
    "deformable": Route(
        f"--warp={ANAT}/T1_to_MNI_nonlin_coeff", "T1_to_MNI_nonlin_coeff.nii.gz",
        "T1_to_MNI_nonlin.nii.gz", "T1_to_MNI_nonlin_brain", "_warpcoef.nii.gz", _read_voxels,
    ),
    "affine": Route(
        f"--premat={ANAT}/{AFFINE_FILE}", AFFINE_FILE,
        "T1_to_MNI_lin.nii.gz", "T1_to_MNI_lin_brain", "_affine.mat", _read_matrix,
    ),
}  # fmt: skip


def check(recipe: Recipe) -> None:
    """Raises one ValueError with everything that keeps FSL from following this recipe here."""
    problems = []
    if recipe.mask != "template":
        problems.append(
            f"mask {recipe.mask}: the fsl backend has the template's mask only, fsl_anat's brain "
            "is MNI152's; give --mask template, or --backend builtin"
        )
    if recipe.contents == "brain":
        problems.append(
            "contents brain: fsl_anat registers whole heads only and takes no extracted brains; "
            "give --backend builtin"
        )
    raise_all(problems + _installation_problems())


def _installation_problems() -> list[str]:
    """The parts of FSL that are missing on this machine."""
    if not os.environ.get("FSLDIR"):
        return [
            "FSLDIR is not set: install FSL (fsl.fmrib.ox.ac.uk) and export FSLDIR, or give "
            "--backend builtin"
        ]
    fsl = _fsl_dir()
    if any(character.isspace() for character in str(fsl)):
        return [
            f"FSLDIR is {str(fsl)!r}: FSL's scripts break on blanks in it, install it elsewhere"
        ]
    wanted = {fsl / "bin" / name: "program" for name in PROGRAMS}
    wanted |= {fsl / name: "file" for name in STANDARD_FILES}
    problems = [
        f"{path}: no such {kind}; is FSLDIR right?"
        for path, kind in wanted.items()
        if not (shutil.which(path) if kind == "program" else path.is_file())
    ]
    if not shutil.which("bc", path=_environment()["PATH"]):
        problems.append("bc is not installed: fsl_anat calculates with it")
    return problems


def identity(recipe: Recipe) -> Identity:
    """FSL's version, the hash of its MNI152 template, and the flags of both programs."""
    fsl = _fsl_dir()
    return Identity(
        versions={"fsl": (fsl / "etc/fslversion").read_text(encoding="utf-8").strip()},
        template_sha256=hashlib.sha256((fsl / f"{STANDARD}.nii.gz").read_bytes()).hexdigest(),
        parameters={
            "fsl_anat": list(FSL_ANAT_FLAGS),
            "applywarp": [ROUTES[recipe.registration].flag],
        },
    )


def map_scan(image: Path, recipe: Recipe, *, workspace: Path) -> Mapped:
    """Registers a whole head with fsl_anat and brings its brain to the grid.

    Args:
        image: a head, NIfTI or MGH.
        recipe: one that `check` accepts.
        workspace: a folder of this scan alone; its path may hold blanks.

    Raises:
        ValueError: an unreadable scan, an extracted brain, or a step that failed: names the scan,
            the step, what is wrong with its files, and the end of its log.
    """
    native = read_native(image)
    if recipe.contents == "auto" and guess_contents(native) == "brain":
        raise ValueError(
            f"{image}: looks like an extracted brain, a head expected: fsl_anat cannot register "
            "it; give --backend builtin, or --contents head if it is a head"
        )
    route, anat = ROUTES[recipe.registration], workspace / ANAT
    placed = _place(image, native, workspace=workspace)
    # Names from the workspace, where it runs: fsl_anat breaks on blanks in a path.
    fsl_anat = ["fsl_anat", "-i", placed.name, "-o", "T1", *FSL_ANAT_FLAGS]
    files = {
        AFFINE_FILE: _read_matrix,
        BRAIN: _read_voxels,
        route.head: _read_on_grid,
        route.transform: route.read_transform,
    }
    matrix, head, *_ = _run_step(fsl_anat, scan=image, workspace=workspace, files=files)
    reference, brain = _fsl_dir() / STANDARD, f"{ANAT}/T1_biascorr_brain"
    applywarp = ["applywarp", f"--ref={reference}", f"--in={brain}", route.flag]
    applywarp += [f"--out={ANAT}/{route.brain}"]  # the published script's one line
    made = {f"{route.brain}.nii.gz": _read_on_grid}
    (volume,) = _run_step(applywarp, scan=image, workspace=workspace, files=made)
    # Both transforms start from the scan as fsl_anat turned and cropped it.
    kept = {route.kept_as: anat / route.transform, "_orig2roi.mat": anat / "T1_orig2roi.mat"}
    kept = {suffix: path for suffix, path in kept.items() if path.is_file()}
    found, sizes = {"flirt_matrix": matrix.tolist()}, nibabel.load(anat / BRAIN).header.get_zooms()
    flat = flat_end(head != 0, np.array(sizes[:3]))
    return Mapped(volume, None, "head", found, native.notes, kept, flat_end_mm2=flat)


def _fsl_dir() -> Path:
    return Path(os.environ["FSLDIR"]).absolute()


def _environment() -> dict[str, str]:
    """The environment of FSL's programs: compressed output, one thread."""
    fsl = _fsl_dir()
    return os.environ | {
        "FSLDIR": str(fsl),
        "PATH": os.pathsep.join((os.environ.get("PATH", os.defpath), str(fsl / "bin"))),
        "FSLOUTPUTTYPE": "NIFTI_GZ",
        "OMP_NUM_THREADS": "1",
    }


def _place(image: Path, native: Native, *, workspace: Path) -> Path:
    """Puts a scan into the workspace under a plain name: linked where FSL can read it."""
    suffix = next((end for end in IMAGE_SUFFIXES if image.name.lower().endswith(end)), None)
    placed = workspace / f"in{suffix or '.nii.gz'}"
    if suffix:
        placed.symlink_to(image.absolute())
    else:
        nibabel.save(nibabel.Nifti1Image(native.voxels, native.affine), placed)
    return placed


def _run_step(
    argv: list[str], *, scan: Path, workspace: Path, files: dict[str, Callable[[Path], np.ndarray]]
) -> list[np.ndarray]:
    """Runs one of FSL's programs in the workspace and reads the files that it made.

    Args:
        argv: the program's name and its arguments.
        scan: for messages.
        workspace: the folder to run in.
        files: for each file in fsl_anat's folder a reader, which raises where the file is wrong.

    Returns:
        The results of the readers, in order.
    """
    done = subprocess.run(
        [str(_fsl_dir() / "bin" / argv[0]), *argv[1:]],
        cwd=workspace,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    found, problems, status = [], [], done.returncode
    if status:
        ended = f"signal {-status} (short of memory?)" if status < 0 else str(status)
        raise ValueError(f"{scan}: {argv[0]} ended with {ended}{_logs(workspace, done.stderr)}")
    for name, read in files.items():
        try:
            found.append(read(workspace / ANAT / name))
        except FileNotFoundError:
            problems.append(f"{name} was not made")
        except READ_ERRORS as error:
            problems.append(f"{name}: {error}")
    if problems:
        text = "; ".join(problems) + _logs(workspace, done.stderr)
        raise ValueError(f"{scan}: {argv[0]} failed: {text}")
    return found


def _logs(workspace: Path, stderr: str) -> str:
    """The last lines of fsl_anat's log, which lists the commands that it ran, and of the errors."""
    log = workspace / ANAT / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    ends = ""
    for name, content in (("log.txt", text), ("stderr", stderr)):
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        if lines:
            ends += f"; end of {name}: {' | '.join(lines[-SHOWN_LINES:])}"
    return ends
