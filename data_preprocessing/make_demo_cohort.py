"""A labelled cohort of SYNTHETIC brains, so that every command can be tried without anyone's scans.

Nobody was scanned: each volume is the ICBM 152 average (its tissue maps come with nilearn; nothing
is downloaded) bent, aged and made noisy by chance. What ages, and by how much, is in `draw_ageing`:
ventricles widen, the cortex thins and recedes from the skull, grey/white contrast falls. These
directions are those of real brains; the amounts were chosen to make a task that a network can learn
and cannot finish. Errors on these volumes say nothing about errors on people.

    python -m data_preprocessing.make_demo_cohort --output_dir demo_cohort --scans 120
"""

import argparse
import functools
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from data_preprocessing.split_dataset import FOLDS, split_by_person
from utils.cli import new_parser, number, run_entry
from utils.files import replacing, require_absent, require_empty
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE

VOXEL_MM = 2.0
YOUNGEST, OLDEST = 18.0, 90.0  # years
FRACTIONS = (0.7, 0.15, 0.15)
DESCRIPTION = "synthetic, not a person"  # NIfTI's descrip field holds 80 bytes
PICTURE_AGES = (20.0, 55.0, 90.0)

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
        outer_csf: nearness of CSF other than the ventricles', 0 to 1: where the cortex can thin.
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
    """What a synthetic person's years have done.

    Attributes:
        ventricle_mm: how far the walls of the lateral ventricles moved outwards.
        recession_mm: how far the brain's surface moved away from the skull.
        thinning: share of CSF gained by grey matter that lies wholly beside CSF.
        white: intensity of white matter; grey matter lies at 0.65 at 18 years.
        grey: intensity of grey matter.
    """

    ventricle_mm: float
    recession_mm: float
    thinning: float
    white: float
    grey: float


@functools.cache
def load_template() -> Template:
    """Brings nilearn's ICBM 152 maps (1 mm, installed with it) to the MNI 2 mm grid, once a run."""
    # nilearn takes seconds to import, and `--help` needs none of it.
    from nilearn import datasets

    def on_grid(image: nib.Nifti1Image) -> np.ndarray:
        resampled = resample_from_to(image, (GRID_SHAPE, GRID_AFFINE), order=1)
        return np.asarray(resampled.dataobj, dtype=np.float32)

    # 0.2 is nilearn's own threshold of this template for its brain mask.
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
        # No head is 10 mm larger than the template's; the rest of the grid is not computed.
        near=ndimage.binary_dilation(mask, iterations=5),
        tissues=tissues,
        # Sulci are faint in the average, at most half CSF: twice the blur makes their middle 1.
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
    """Boolean volume of the lateral ventricles: the largest lake of CSF amid the head."""
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
    # Directions meet head-on along the middle of the region; smoothing keeps the warp from folding.
    push = ndimage.gaussian_filter(push, sigma=(0, 1.5, 1.5, 1.5))
    return (push / VOXEL_MM).astype(np.float32)


def draw_ageing(age: float, *, sex: int, rng: np.random.Generator) -> Ageing:
    """What `age` years (and chance) did to one synthetic person.

    One offset (SD 3 years) makes the whole brain look older or younger, as a real brain-age
    difference would; each feature also varies by itself (SD 7 years' worth), so no single one tells
    the age. Men's ventricles are a little wider, so that knowing the sex helps.
    The same draws are taken whatever the age: one generator state is one person, at any age.

    Args:
        age: years.
        sex: 0 female, 1 male.
        rng: this person's chance.
    """
    offset = 3.0 * rng.standard_normal()
    own_years = age + offset + 7.0 * rng.standard_normal(4)
    # 0 at 18 years, 1 at 90; may leave that range a little.
    ventricle, recession, thinning, contrast = (own_years - YOUNGEST) / (OLDEST - YOUNGEST)
    return Ageing(
        # Widening speeds up in later life, and hardly reverses below the youngest age.
        ventricle_mm=-1.0 + 1.8 * ventricle + 3.4 * max(ventricle, 0.0) ** 2 + 0.4 * sex,
        recession_mm=1.6 * recession,
        thinning=max(0.0, 0.05 + 0.75 * thinning),
        white=0.87 - 0.05 * contrast,
        grey=0.65 + 0.02 * contrast,
    )


def smooth_fields(rng: np.random.Generator, *, count: int, width_mm: float) -> np.ndarray:
    """Random smooth volumes, mean 0 and SD 1 at every voxel.

    Sums of Gaussian bumps on a coarse lattice; a bump is a product of three one-dimensional ones,
    which makes this three small matrix products instead of a filter over the grid.

    Args:
        rng: source of chance.
        count: how many.
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
    for (
        bump
    ) in bumps:  # (count, a, b, c) -> (count, b, c, X) -> (count, c, X, Y) -> (count, X, Y, Z)
        fields = np.tensordot(fields, bump, axes=([1], [1]))
    return fields


def _sample(volume: np.ndarray, *, points: np.ndarray, outside: float = 0.0) -> np.ndarray:
    """Values of `volume` at `points` (3, N) in voxels, linear between voxels."""
    return ndimage.map_coordinates(
        volume, points, order=1, mode="constant", cval=outside, output=np.float32
    )


def _head(
    template: Template, *, sex: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One person's head: which voxels lie in it, and where in the template each is found.

    Registration to the template takes most of the differences away; what it leaves is drawn here:
    size (SD 1.5 %, men 1.5 % larger) and shape (a few mm, broad and local).

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
    tissues = np.stack(
        [
            _sample(template.tissues[CSF], points=points, outside=1.0),
            _sample(template.tissues[GREY], points=points),
            _sample(template.tissues[WHITE], points=points),
        ]
    )
    lost = tissues[GREY] * np.clip(
        ageing.thinning * _sample(template.outer_csf, points=points), 0, 1
    )
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
        rng: this person's chance.

    Returns:
        (91, 109, 91) uint8 volume, 0 outside the head and at least 1 inside, and the scanner's
        arbitrary units per stored step, which differ between scans and say nothing about age.
    """
    ageing = draw_ageing(age, sex=sex, rng=rng)
    units_per_step = 600.0 * np.exp(0.4 * rng.standard_normal()) / STORED_PER_UNIT
    noise_sd = rng.uniform(0.015, 0.03)
    bias = np.exp(0.06 * smooth_fields(rng, count=1, width_mm=60.0)[0])
    head, points = _head(template, sex=sex, rng=rng)

    intensities = np.array([0.25, ageing.grey, ageing.white], dtype=np.float32)
    signal = (intensities @ _tissues_at(template, points=points, ageing=ageing)) * bias[head]
    # Noise of a magnitude image (Rician): the length of a signal with noise on both its parts.
    # Drawn for the whole grid, so that a voxel's noise does not depend on the ageing head's size.
    noise = noise_sd * rng.standard_normal((2, *GRID_SHAPE), dtype=np.float32)[:, head]
    magnitude = np.hypot(signal + noise[0], noise[1])

    volume = np.zeros(GRID_SHAPE, dtype=np.uint8)
    volume[head] = np.clip(np.rint(STORED_PER_UNIT * magnitude), 1, 255)
    return volume, float(units_per_step)


def person_generator(seed: int, *, person: int) -> np.random.Generator:
    """The chance of a person (1, 2, ...) of cohort `seed`, whoever else is made, and where.

    Person 0 is the cohort's own chance, of which ages and sexes are drawn.
    """
    return np.random.default_rng([seed, person])


def save_scan(volume: np.ndarray, *, path: Path, units_per_step: float) -> None:
    """Writes a uint8 volume on the MNI 2 mm grid, marked as synthetic in its header."""
    image = nib.Nifti1Image(volume, GRID_AFFINE)
    # With a slope of its own the volume is stored as it is, so that 0 is read as exactly 0.
    image.header.set_slope_inter(units_per_step, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(GRID_AFFINE, code="mni")
    image.set_qform(GRID_AFFINE, code="mni")
    image.header["descrip"] = DESCRIPTION
    with replacing(path) as temporary:
        nib.save(image, temporary)


def draw_people(scans: int, *, seed: int) -> dict[str, tuple[float, int]]:
    """Age in years (uniform, one decimal) and sex (as many women as men) of every synthetic id."""
    rng = person_generator(seed, person=0)
    ages = rng.uniform(YOUNGEST, OLDEST, size=scans)
    sexes = rng.permutation(np.arange(scans) % 2)
    return {
        f"demo-{index:04d}": (round(float(age), 1), int(sex))
        for index, (age, sex) in enumerate(zip(ages, sexes, strict=True), start=1)
    }


def make_cohort(output_dir: Path, *, scans: int, seed: int, jobs: int) -> None:
    """Writes `scans` volumes into train, val and test, the label sheet and a README.

    The folder appears whole or not at all.

    Args:
        output_dir: a folder that is empty or does not exist.
        scans: how many volumes, at least as many as fill three folders.
        seed: of everything; the same seed gives the same files whatever `jobs`.
        jobs: processes.

    Raises:
        FileExistsError: `output_dir` holds something.
        ValueError: too few scans for three folders.
    """
    require_empty(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".part-synthetic-", dir=output_dir.parent) as work:
        folder = Path(work) / output_dir.name
        _fill_cohort(folder, scans=scans, seed=seed, jobs=jobs)
        folder.replace(output_dir)


def _fill_cohort(output_dir: Path, *, scans: int, seed: int, jobs: int) -> None:
    """Writes the cohort into a new folder, the label sheet last."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    people = draw_people(scans, seed=seed)
    folds = split_by_person(
        {scan: age for scan, (age, _) in people.items()},
        person_of={scan: scan for scan in people},
        fractions=FRACTIONS,
        seed=seed,
    )
    fold_of = {scan: fold for fold in FOLDS for scan in folds[fold]}
    # First of all: whatever is found there later, after a crash too, says that it is synthetic.
    write_readme(output_dir / "README.txt", scans=scans, seed=seed, folder=output_dir.name)
    tasks = (
        delayed(_make_scan)(
            load_template(),
            path=output_dir / fold_of[scan] / f"{scan}.nii.gz",
            age=age,
            sex=sex,
            rng=person_generator(seed, person=index),
        )
        for index, (scan, (age, sex)) in enumerate(people.items(), start=1)
    )
    done = Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)
    for _ in tqdm(done, total=scans, desc="synthetic scans", disable=None):
        pass
    write_sheet(output_dir / "Dataset.xls", people=people)


def _make_scan(
    template: Template, *, path: Path, age: float, sex: int, rng: np.random.Generator
) -> None:
    """Makes and writes one scan; a function of its own so that another process can be given it."""
    volume, units_per_step = make_volume(template, age=age, sex=sex, rng=rng)
    save_scan(volume, path=path, units_per_step=units_per_step)


def write_sheet(path: Path, *, people: dict[str, tuple[float, int]]) -> None:
    """Writes the label sheet as the published code reads it: real BIFF .xls, no header row.

    Columns: file name, age in years, sex (0 female, 1 male).
    """
    import xlwt

    book = xlwt.Workbook()
    sheet = book.add_sheet(DESCRIPTION)
    for row, (scan, (age, sex)) in enumerate(people.items()):
        for column, value in enumerate((f"{scan}.nii.gz", age, sex)):
            sheet.write(row, column, value)
    with replacing(path) as temporary:
        book.save(str(temporary))


def write_readme(path: Path, *, scans: int, seed: int, folder: str) -> None:
    """Writes what the folder holds, that it is synthetic, and the command that makes it again."""
    command = (
        "python -m data_preprocessing.make_demo_cohort "
        f"--output_dir {shlex.quote(folder)} --scans {scans} --seed {seed}"
    )
    text = f"""SYNTHETIC brains: no person was scanned for any file in this folder.

{scans} T1-like volumes, made from the ICBM 152 average brain and its tissue maps as they come with
nilearn. With age the ventricles widen, the cortex thins and recedes, and the contrast of grey and
white matter falls; shape, size, brightness, bias field and noise vary by chance (seed {seed}).
For trying programs out only: an error in years measured here says nothing about any error on
people, and nothing medical follows from it.

Made in the TSAN project by
    {command}

train, val, test   brains without skull on the MNI152 2 mm grid (91 x 109 x 91, LAS), 0 outside
Dataset.xls        no header row: file name, age in years, sex (0 female, 1 male)
"""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def draw_picture(path: Path, *, seed: int) -> None:
    """Draws one synthetic person at three ages, in three planes through the ventricles.

    Raises:
        FileExistsError: `path` exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    require_absent(path)
    template = load_template()
    figure = Figure(figsize=(7.2, 7.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("synthetic demo brains: one simulated person, three ages", color="white")
    panels = figure.subplots(len(PICTURE_AGES), 3)
    for row, age in zip(panels, PICTURE_AGES, strict=True):
        volume, _ = make_volume(template, age=age, sex=0, rng=person_generator(seed, person=1))
        # Planes at z = 18, y = -12 and x = -10 mm; arrays run left, anterior, superior.
        planes = {
            "axial": volume[:, :, 45],
            "coronal": volume[:, 57, :],
            "sagittal": volume[50, :, :],
        }
        for panel, (name, plane) in zip(row, planes.items(), strict=True):
            # Six voxels of margin, which no head reaches, are left out left and right.
            panel.imshow(plane[6:-6].T, origin="lower", cmap="gray", vmin=0, vmax=190)
            panel.set_title(f"{age:.0f} years, {name}", color="white", fontsize=9)
            panel.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Make a cohort of SYNTHETIC brains with ages, for trying everything out.")
    parser.add_argument("--output_dir", type=Path, help="an empty or new folder for the cohort")
    parser.add_argument(
        "--scans", type=number(int, low=5, high=65536), default=120, help="number of volumes"
    )
    parser.add_argument(
        "--seed",
        # Larger seeds would run into the person's number and repeat other cohorts' people.
        type=number(int, low=0, high=2**32 - 1),
        default=0,
        help="of everything: the same seed gives the same files",
    )
    parser.add_argument(
        "--jobs", type=number(int, low=1), default=os.cpu_count() or 1, help="processes to use"
    )
    parser.add_argument(
        "--picture", type=Path, help="a .png to draw one simulated person at three ages"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the cohort, the picture, or both."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.output_dir is None and args.picture is None:
        parser.error("nothing to make: give --output_dir, --picture or both")
    if args.picture is not None:
        if args.picture.suffix.lower() != ".png":
            parser.error(f"argument --picture: a name ending in .png expected, got {args.picture}")
        require_absent(args.picture)
    if args.output_dir is not None:
        make_cohort(args.output_dir, scans=args.scans, seed=args.seed, jobs=args.jobs)
        print(f"{args.scans} SYNTHETIC scans and Dataset.xls written to {args.output_dir}")
    if args.picture is not None:
        draw_picture(args.picture, seed=args.seed)
        print(f"picture of SYNTHETIC brains written to {args.picture}")


if __name__ == "__main__":
    run_entry(main)
