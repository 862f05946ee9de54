"""A folder of scans, each paired with its row of the label sheet and checked by its header."""

from dataclasses import dataclass
from pathlib import Path

from utils.cli import raise_all
from utils.scans.labels import Label, label_of
from utils.scans.volumes import (
    GRID_SHAPE,
    InputRule,
    find_scans,
    image_stem,
    open_scan,
)


@dataclass(frozen=True)
class Scan:
    """One scan of a cohort; age in years and sex (0 female, 1 male) are None where unknown.

    Attributes:
        orientation: the axis order it is stored in.
        shape: its voxels (D, H, W) once in LAS order, at the resolution of the file.
    """

    subject_id: str
    path: Path
    age: float | None
    sex: int | None
    orientation: str
    shape: tuple[int, ...] = GRID_SHAPE


def open_cohort(
    folder: str | Path,
    labels: dict[str, Label] | None,
    input_rule: InputRule,
    *,
    need_age: bool = False,
    need_sex: bool = False,
    smallest_side: int = 32,
) -> list[Scan]:
    """Pairs every scan of `folder` with its label and checks all of them before any work.

    Rows of scans elsewhere are normal: one sheet serves all folders.

    Args:
        folder: .nii.gz and .nii files, read in the order of their names.
        labels: from `read_labels`; None where there is no sheet.
        input_rule: decides whether other grids are let through.
        need_age: whether a scan without an age is a problem (training) or merely unknown.
        need_sex: the same for the sex.
        smallest_side: voxels that the network needs along each axis; 32 for the compact width.

    Raises:
        FileNotFoundError: no folder or no scan in it.
        ValueError: all problems of all scans at once.
    """
    scans: list[Scan] = []
    problems: list[str] = []
    for path in find_scans(folder):
        label = label_of(path, labels or {})
        age, sex = (label.age, label.sex) if label else (None, None)
        stem = image_stem(path.name)
        if label is None and (need_age or need_sex):
            problems.append(f"{path}: no row named {stem} in the label sheet")
        elif need_age and age is None:
            problems.append(f"{path}: row {label.row} gives no age, expected years")
        elif need_sex and sex is None:
            problems.append(
                f"{path}: row {label.row} gives no sex, expected 0 female or 1 male "
                "(or --use_sex false)"
            )
        try:
            opened = open_scan(path, any_grid=input_rule.any_grid)
        except ValueError as error:
            problems.append(str(error))
        else:
            scans.append(Scan(stem, path, age, sex, opened.orientation, opened.shape))
    raise_all(problems + _unfit_shapes(scans, input_rule, smallest_side))
    return scans


def _unfit_shapes(scans: list[Scan], input_rule: InputRule, smallest_side: int) -> list[str]:
    """What no batch or network can hold: too small at this resolution, or of several shapes."""
    problems = []
    firsts: dict[tuple[int, ...], Scan] = {}
    for scan in scans:
        firsts.setdefault(scan.shape, scan)
        shape = input_rule.input_shape(scan.shape)
        if min(shape) < smallest_side:
            problems.append(
                f"{scan.path}: the network's input would have {_by(shape)} voxels, at least "
                f"{smallest_side} a side expected"
            )
    if len(firsts) > 1:
        found = ", ".join(f"{_by(shape)} ({scan.path.name})" for shape, scan in firsts.items())
        problems.append(
            f"{scans[0].path.parent}: scans of differing shapes, {found}: one shape in a folder "
            "expected, since a batch holds one"
        )
    return problems


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def describe(scans: list[Scan]) -> str:
    """One line: how many scans, which ages and sexes, what was reoriented."""
    ages = [scan.age for scan in scans if scan.age is not None]
    text = f"{len(scans)} scans"
    if ages:
        text += f", {len(ages)} with an age ({min(ages):g} to {max(ages):g} years)"
    females = sum(scan.sex == 0 for scan in scans)
    males = sum(scan.sex == 1 for scan in scans)
    text += f", {females} female, {males} male"
    turned = [scan.orientation for scan in scans if scan.orientation != "LAS"]
    if turned:
        text += f"; {len(turned)} stored {'/'.join(sorted(set(turned)))}, put into LAS order"
    return text
