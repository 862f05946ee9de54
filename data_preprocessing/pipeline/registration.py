"""Affine and deformable registration to a template with picsl-greedy, one thread, reproducible.

Greedy (Yushkevich et al., github.com/pyushkevich/greedy) maps points of the fixed image, the
template, to points of the moving one, the scan: x -> A (x + u(x)), with u a displacement in mm on
the template's grid. Everything here is in memory; arrays are in nibabel's axis order, (x, y, z),
and affines in RAS mm.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

# ITK's world is LPS: left and posterior are positive.
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Without a seed two runs differ by 1 mm, with two threads by 0.2 mm.
REPRODUCIBLE = "-seed 1234 -threads 1 -V 0"
AFFINE = "-a -dof 12 -m NCC 2x2x2 -n 100x50x0 -ia-image-centers"
# Tried one after the other where the affine ends badly: 1,000 first guesses that are turned by 45
# degrees and moved by 20 mm (SD), for heads that lie askew; then any turn, for wrong headers.
SEARCHES = ("-search 1000 45 20 -det 1", "-search 1000 any 20 -det 1")
# Smoothing of 2.5 voxels a step, not 2: one head bent by 12 mm lands 0.92 mm apart in place of
# 1.21, another 1.74 in place of 1.97, at no cost. -wp 0: else warps are rounded to 0.1 voxels.
DEFORMABLE = "-m NCC 2x2x2 -n 60x30x10 -s 2.5vox 1vox -wp 0"


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

    greedy = Greedy3D()  # holds what its commands make, by name
    command = f"-i fixed moving {AFFINE} {search} {REPRODUCIBLE} -o affine"
    greedy.execute(command, fixed=fixed, moving=moving, affine=None)
    return Transform(np.array(greedy["affine"], dtype=float), None)


def register_deformable(
    fixed, moving, start: Transform, *, workspace: Path, parameters: str = DEFORMABLE
) -> Transform:
    """Adds the displacement that is left after `start`, the affine registration of these images.

    Args:
        fixed: as in `register_affine`.
        moving: the same.
        start: from `register_affine`.
        workspace: a folder for the matrix, which greedy takes from a file only.
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
    points = grid_points()
    if transform.displacement is not None:
        points = points + transform.displacement
    to_voxels = np.linalg.inv(affine) @ transform.affine
    voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    return ndimage.map_coordinates(
        volume, np.moveaxis(voxels, -1, 0), output=np.float32, order=order
    )


def grid_points() -> np.ndarray:
    """(91, 109, 91, 3) RAS mm of the voxels of the MNI152 2 mm grid."""
    voxels = np.stack(np.meshgrid(*map(np.arange, GRID_SHAPE), indexing="ij"), axis=-1)
    return voxels @ GRID_AFFINE[:3, :3].T + GRID_AFFINE[:3, 3]
