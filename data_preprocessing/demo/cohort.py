"""A labelled cohort of synthetic brains: who is in it, its folders, its sheet and a picture."""

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from data_preprocessing.demo.phantom import OLDEST, YOUNGEST, Template, load_template, make_volume
from utils.files import replacing, require_absent, require_empty, write_xls
from utils.results.plots import Figure, FigureCanvasAgg
from utils.scans.split import FRACTIONS, split_by_person
from utils.scans.volumes import GRID_AFFINE

DESCRIPTION = "synthetic, not a person"  # NIfTI's field descrip holds 80 bytes
PICTURE_AGES = (20.0, 55.0, 90.0)
README = """SYNTHETIC brains: no person was scanned for any file in this folder.

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


def person_generator(seed: int, *, person: int) -> np.random.Generator:
    """The random generator of a person (1, 2, ...) of cohort `seed`, whoever else is made.

    Person 0 is the cohort itself, whose generator draws ages and sexes.
    """
    return np.random.default_rng([seed, person])


def draw_people(scans: int, *, seed: int) -> dict[str, tuple[float, int]]:
    """Age in years (uniform, one decimal) and sex (as many women as men) of every synthetic id."""
    rng = person_generator(seed, person=0)
    ages = rng.uniform(YOUNGEST, OLDEST, size=scans)
    sexes = rng.permutation(np.arange(scans) % 2)
    return {
        f"demo-{index:04d}": (round(float(age), 1), int(sex))
        for index, (age, sex) in enumerate(zip(ages, sexes, strict=True), start=1)
    }


def make_scan(
    template: Template, *, path: Path, age: float, sex: int, rng: np.random.Generator
) -> None:
    """Makes one person's scan and writes it, marked as synthetic in its header."""
    volume, units_per_step = make_volume(template, age=age, sex=sex, rng=rng)
    image = nib.Nifti1Image(volume, GRID_AFFINE)
    # A given slope has nibabel store the volume unscaled, so 0 is read as exactly 0.
    image.header.set_slope_inter(units_per_step, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(GRID_AFFINE, code="mni")
    image.set_qform(GRID_AFFINE, code="mni")
    image.header["descrip"] = DESCRIPTION
    with replacing(path) as temporary:
        nib.save(image, temporary)


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


def _fill_cohort(folder: Path, *, scans: int, seed: int, jobs: int) -> None:
    """Writes the cohort into a new folder, the label sheet last."""
    people = draw_people(scans, seed=seed)
    parts = split_by_person(
        {scan: age for scan, (age, _) in people.items()},
        person_of={scan: scan for scan in people},
        fractions=FRACTIONS,
        seed=seed,
    )
    part_of = {scan: part for part, inside in parts.items() for scan in inside}
    command = (
        "python -m data_preprocessing.make_demo_cohort "
        f"--output_dir {shlex.quote(folder.name)} --scans {scans} --seed {seed}"
    )
    # Written first: whatever a crash leaves in the folder, this file says that it is synthetic.
    with replacing(folder / "README.txt") as temporary:
        text = README.format(scans=scans, seed=seed, command=command)
        temporary.write_text(text, encoding="utf-8")
    tasks = (
        delayed(make_scan)(
            load_template(),
            path=folder / part_of[scan] / f"{scan}.nii.gz",
            age=age,
            sex=sex,
            rng=person_generator(seed, person=index),
        )
        for index, (scan, (age, sex)) in enumerate(people.items(), start=1)
    )
    done = Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)
    for _ in tqdm(done, total=scans, desc="synthetic scans", disable=None):
        pass
    rows = [(f"{scan}.nii.gz", age, sex) for scan, (age, sex) in people.items()]
    write_xls(folder / "Dataset.xls", rows, title=DESCRIPTION)


def draw_picture(path: Path, *, seed: int) -> None:
    """Draws one synthetic person at three ages, in three planes through the ventricles.

    Raises:
        FileExistsError: `path` exists.
    """
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
            # The first and last six voxels, which no head reaches, are left out.
            panel.imshow(plane[6:-6].T, origin="lower", cmap="gray", vmin=0, vmax=190)
            panel.set_title(f"{age:.0f} years, {name}", color="white", fontsize=9)
            panel.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)
