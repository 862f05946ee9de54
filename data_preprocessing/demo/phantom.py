"""A synthetic brain: the ICBM 152 average, bent, aged and made noisy by chance.

nilearn brings the average and its tissue maps; nothing is downloaded. `draw_ageing` says what ages,
and by how much: ventricles widen, the cortex thins and recedes from the skull, grey/white contrast
falls. These directions are those of real brains. The amounts were chosen to make a task that a
network can learn but not finish, so errors on these volumes say nothing about errors on people.
"""

import functools
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

VOXEL_MM = 2.0
YOUNGEST, OLDEST = 18.0, 90.0  # years
CSF, GREY, WHITE = 0, 1, 2
# The template is a blur of 152 brains: raising its probabilities to a power gives back the tissue
# borders of one brain.
SHARPNESS = 1.7
# Stored value of intensity 1; white matter (0.87) keeps room for bias and noise within 8 bits.
STORED_PER_UNIT = 190.0


@dataclass(frozen=True)
class Template:
    """What every synthetic brain is made from; volumes are (91, 109, 91) on the MNI 2 mm grid.

    Attributes:
        mask: boolean, the inside of the skull.
        near: boolean, every voxel that lies in some person's head.
        tissues: (3, 91, 109, 91) probabilities of CSF, grey and white matter, adding up to 1;
            outside the brain everything is CSF.
        outer_csf: 0 to 1, how near CSF outside the ventricles is: where the cortex can thin.
        ventricle_push: (3, 91, 109, 91) voxels per mm, pointing away from the lateral ventricles.
        surface_push: (3, 91, 109, 91) voxels per mm, pointing out of the head.
    """

    mask: np.ndarray
    near: np.ndarray
    tissues: np.ndarray
    outer_csf: np.ndarray
    ventricle_push: np.ndarray
    surface_push: np.ndarray


@dataclass(frozen=True)
class Ageing:
    """How a synthetic person's brain has aged.

    Attributes:
        ventricle_mm: how far the walls of the lateral ventricles moved outwards.
        recession_mm: how far the brain's surface moved away from the skull.
        thinning: share of grey matter that becomes CSF where `outer_csf` is 1.
        white: intensity of white matter.
        grey: intensity of grey matter, 0.65 at 18 years.
    """

    ventricle_mm: float
    recession_mm: float
    thinning: float
    white: float
    grey: float


@functools.cache
def load_template() -> Template:
    """Brings nilearn's ICBM 152 maps (1 mm) to the MNI 2 mm grid, once per process."""
    # Importing nilearn takes seconds, which --help should not wait for.
    from nilearn import datasets

    def on_grid(image: nib.Nifti1Image) -> np.ndarray:
        resampled = resample_from_to(image, (GRID_SHAPE, GRID_AFFINE), order=1)
        return np.asarray(resampled.dataobj, dtype=np.float32)

    # nilearn makes its own brain mask of this template with the threshold 0.2.
    mask = _largest_part(
        ndimage.binary_fill_holes(on_grid(datasets.load_mni152_template(resolution=1)) > 0.2)
    )
    grey = on_grid(datasets.load_mni152_gm_template(resolution=1)) * mask
    white = on_grid(datasets.load_mni152_wm_template(resolution=1)) * mask
    csf = np.clip(1 - grey - white, 0, 1)
    tissues = np.stack([csf, grey, white])
    tissues /= tissues.sum(axis=0)

    ventricles = _lateral_ventricles(tissues[CSF])
    beyond_ventricles = ~ndimage.binary_dilation(ventricles, iterations=3)
    return Template(
        mask=mask,
        # No head reaches 10 mm beyond the template's; the rest of the grid is not computed.
        near=ndimage.binary_dilation(mask, iterations=5),
        tissues=tissues,
        # Sulci are faint in the average, at most half CSF: doubled, their middle is 1.
        outer_csf=np.clip(2 * ndimage.gaussian_filter(tissues[CSF] * beyond_ventricles, 1.0), 0, 1),
        ventricle_push=_push_from(ventricles, reach_mm=16.0),
        surface_push=_push_from(mask, reach_mm=12.0),
    )


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """Keeps the largest connected part of a boolean volume."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def _lateral_ventricles(csf: np.ndarray) -> np.ndarray:
    """Boolean volume of the lateral ventricles: the largest connected CSF amid the head."""
    voxels = np.indices(GRID_SHAPE, dtype=np.float32)
    x, y, z = (
        GRID_AFFINE[axis, axis] * voxels[axis] + GRID_AFFINE[axis, 3] for axis in range(3)
    )  # mm from the anterior commissure: right, anterior, superior
    middle = (np.abs(x) < 42) & (y > -52) & (y < 34) & (z > 1) & (z < 36)
    return _largest_part((csf > 0.5) & middle)


def _push_from(region: np.ndarray, *, reach_mm: float) -> np.ndarray:
    """A smooth field that points away from the surface of `region`, strongest at the surface.

    Args:
        region: boolean volume.
        reach_mm: distance from the surface at which the push has fallen to 1/e.

    Returns:
        (3, *region.shape) voxels per mm of push at the surface.
    """
    outside = ndimage.distance_transform_edt(~region)
    inside = ndimage.distance_transform_edt(region)
    distance_mm = VOXEL_MM * (outside - inside)
    direction = np.stack(np.gradient(ndimage.gaussian_filter(distance_mm, 1.0), VOXEL_MM))
    push = direction * np.exp(-((distance_mm / reach_mm) ** 2))
    # Opposite directions meet in the middle of the region; smoothing keeps the warp from folding.
    push = ndimage.gaussian_filter(push, sigma=(0, 1.5, 1.5, 1.5))
    return (push / VOXEL_MM).astype(np.float32)


def draw_ageing(age: float, *, sex: int, rng: np.random.Generator) -> Ageing:
    """Draws how one synthetic person's brain has aged.

    One offset (SD 3 years) makes the whole brain look older or younger, as a real brain-age
    difference would. Each feature also varies by itself (SD 7 years), so no single feature tells
    the age. Men's ventricles are a little wider, so that knowing the sex helps.
    The draws do not depend on the age: one generator state is one person, at any age.

    Args:
        age: years.
        sex: 0 female, 1 male.
        rng: the random generator of this person.
    """
    offset = 3.0 * rng.standard_normal()
    own_years = age + offset + 7.0 * rng.standard_normal(4)
    # 0 at 18 years, 1 at 90; a little below or above for some.
    ventricle, recession, thinning, contrast = (own_years - YOUNGEST) / (OLDEST - YOUNGEST)
    return Ageing(
        # Ventricles widen faster in later life, and hardly narrow below the youngest age.
        ventricle_mm=-1.0 + 1.8 * ventricle + 3.4 * max(ventricle, 0.0) ** 2 + 0.4 * sex,
        recession_mm=1.6 * recession,
        thinning=max(0.0, 0.05 + 0.75 * thinning),
        white=0.87 - 0.05 * contrast,
        grey=0.65 + 0.02 * contrast,
    )


def smooth_fields(rng: np.random.Generator, *, count: int, width_mm: float) -> np.ndarray:
    """Random smooth volumes, mean 0 and SD 1 at every voxel.

    Sums of Gaussian bumps on a coarse lattice. A bump is a product of three one-dimensional ones,
    so three small matrix products do the work of a filter over the whole grid.

    Args:
        rng: random generator.
        count: how many volumes.
        width_mm: SD of a bump, and the distance between neighbours.

    Returns:
        (count, 91, 109, 91) float32.
    """
    bumps = []
    for length in GRID_SHAPE:
        voxels = VOXEL_MM * np.arange(length)[:, None]
        centres = np.arange(-width_mm, VOXEL_MM * length + width_mm, width_mm)[None]
        bump = np.exp(-0.5 * ((voxels - centres) / width_mm) ** 2)
        bumps.append((bump / np.linalg.norm(bump, axis=1, keepdims=True)).astype(np.float32))
    fields = rng.standard_normal((count, *(bump.shape[1] for bump in bumps)), dtype=np.float32)
    # (count, a, b, c) -> (count, b, c, X) -> (count, c, X, Y) -> (count, X, Y, Z)
    for bump in bumps:
        fields = np.tensordot(fields, bump, axes=([1], [1]))
    return fields


def _sample(volume: np.ndarray, *, points: np.ndarray, outside: float = 0.0) -> np.ndarray:
    """Values of `volume` at `points` (3, N) in voxels, linear between voxels."""
    return ndimage.map_coordinates(
        volume, points, order=1, mode="constant", cval=outside, output=np.float32
    )


def _draw_head(
    template: Template, *, sex: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One person's head: which voxels lie in it, and where in the template each is found.

    Registration to the template takes most differences between heads away. What it leaves is drawn
    here: size (SD 1.5 %, men 1.5 % larger) and shape (a few mm, broad and local).

    Returns:
        The boolean (91, 109, 91) inside of the skull, and (3, N) template positions in voxels of
        its N voxels, in C order.
    """
    size = np.exp(0.015 * rng.standard_normal() + 0.015 * (sex - 0.5))
    broad = smooth_fields(rng, count=3, width_mm=32.0)
    local = smooth_fields(rng, count=3, width_mm=14.0)
    near = template.near
    voxels = np.stack(np.nonzero(near)).astype(np.float32)
    centre = np.array(ndimage.center_of_mass(template.mask), dtype=np.float32)[:, None]
    warp_mm = 1.8 * broad[:, near] + 0.9 * local[:, near]
    points = centre + (voxels - centre) / np.float32(size) + warp_mm / VOXEL_MM
    inside = _sample(template.mask.astype(np.float32), points=points) > 0.5
    head = np.zeros(GRID_SHAPE, dtype=bool)
    head[near] = inside
    return head, points[:, inside]


def _tissues_at(template: Template, *, points: np.ndarray, ageing: Ageing) -> np.ndarray:
    """(3, N) probabilities of CSF, grey and white matter at template positions, after ageing."""
    # Reading nearer to the ventricles widens them; reading nearer to the skull makes room there.
    ventricle_push = np.stack([_sample(part, points=points) for part in template.ventricle_push])
    surface_push = np.stack([_sample(part, points=points) for part in template.surface_push])
    points = points - ageing.ventricle_mm * ventricle_push + ageing.recession_mm * surface_push
    # Outside the grid everything is CSF.
    tissues = np.stack([
        _sample(part, points=points, outside=float(tissue == CSF))
        for tissue, part in enumerate(template.tissues)
    ])  # fmt: skip
    thinning = ageing.thinning * _sample(template.outer_csf, points=points)
    lost = tissues[GREY] * np.clip(thinning, 0, 1)
    tissues[CSF] += lost
    tissues[GREY] -= lost
    tissues **= SHARPNESS
    return tissues / tissues.sum(axis=0)


def make_volume(
    template: Template, *, age: float, sex: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """One synthetic T1-weighted brain without skull.

    The same generator state gives the same person, head and noise at any age and sex.

    Args:
        template: from `load_template`.
        age: years.
        sex: 0 female, 1 male.
        rng: the random generator of this person.

    Returns:
        (91, 109, 91) uint8 volume, 0 outside the head and at least 1 inside; and the scanner's
        arbitrary units per stored step, which differ between scans and say nothing about age.
    """
    ageing = draw_ageing(age, sex=sex, rng=rng)
    units_per_step = 600.0 * np.exp(0.4 * rng.standard_normal()) / STORED_PER_UNIT
    noise_sd = rng.uniform(0.015, 0.03)
    bias = np.exp(0.06 * smooth_fields(rng, count=1, width_mm=60.0)[0])
    head, points = _draw_head(template, sex=sex, rng=rng)

    intensities = np.array([0.25, ageing.grey, ageing.white], dtype=np.float32)
    signal = (intensities @ _tissues_at(template, points=points, ageing=ageing)) * bias[head]
    # Noise of a magnitude image (Rician): the length of a signal with noise on both its parts. It
    # is drawn for the whole grid, so that a voxel's noise does not depend on the head's size.
    noise = noise_sd * rng.standard_normal((2, *GRID_SHAPE), dtype=np.float32)[:, head]
    magnitude = np.hypot(signal + noise[0], noise[1])

    volume = np.zeros(GRID_SHAPE, dtype=np.uint8)
    volume[head] = np.clip(np.rint(STORED_PER_UNIT * magnitude), 1, 255)
    return volume, float(units_per_step)
