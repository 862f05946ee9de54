"""Folders of scans, each paired with its row of the label sheet and checked by its header.

Also whether scans of these ages and people can teach a network an age, and judge it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cli import raise_all
from utils.files import image_stem
from utils.people.codebook import FEMALE, MALE
from utils.people.labels import LabelSheet
from utils.people.matching import Label
from utils.scans.volumes import GRID_SHAPE, InputRule, find_scans, open_scan

UNKNOWN_SITE = "n/a"


@dataclass(frozen=True)
class Scan:
    """One scan of a cohort; age in years and sex (0 female, 1 male) are None where unknown.

    Attributes:
        orientation: the axis order of the file.
        shape: voxels (D, H, W) in LAS order, at the resolution of the file.
        site: where, or by which scanner, as the sheet says; None where unknown.
    """

    subject_id: str
    path: Path
    age: float | None
    sex: int | None
    orientation: str
    shape: tuple[int, ...] = GRID_SHAPE
    site: str | None = None


def open_cohort(
    folders: str | Path | Sequence[str | Path],
    labels: LabelSheet | None,
    input_rule: InputRule,
    *,
    need_age: bool = False,
    need_sex: bool = False,
    smallest_side: int = 32,
) -> list[Scan]:
    """Pairs every scan of the folders with its label and checks all headers before any work.

    The sheet may have rows of scans in other folders.

    Args:
        folders: one or several; .nii.gz and .nii files, folder by folder in the order of names.
        labels: from `read_labels`; None where there is no sheet.
        input_rule: decides whether other grids are accepted.
        need_age: whether a scan without an age is a problem (training) or merely unknown.
        need_sex: the same for the sex.
        smallest_side: voxels that the network needs along each axis; 32 for the compact width.

    Raises:
        FileNotFoundError: no folder or no scan in it.
        ValueError: two scans of one name; or all problems of all scans at once.
    """
    scans, problems = [], []
    firsts: dict[tuple[int, ...], Path] = {}
    folders = [folders] if isinstance(folders, (str, Path)) else folders
    for path in find_scans(*folders):
        label = labels.find(path) if labels else None
        if problem := _missing_label(path, label, need_age, need_sex):
            problems.append(f"{path}: {problem}")
        try:
            _, orientation, shape = open_scan(path, any_grid=input_rule.any_grid)
        except ValueError as error:
            problems.append(str(error))
            continue
        if min(input_rule.input_shape(shape)) < smallest_side:
            problems.append(
                f"{path}: the network's input would have {_by(input_rule.input_shape(shape))} "
                f"voxels, at least {smallest_side} a side expected"
            )
        firsts.setdefault(shape, path)
        age, sex, site = (label.age, label.sex, label.site) if label else (None, None, None)
        scans.append(Scan(image_stem(path.name), path, age, sex, orientation, shape, site))
    if len(firsts) > 1:
        found = ", ".join(f"{_by(shape)} ({path.name})" for shape, path in firsts.items())
        where = ", ".join(map(str, folders))
        problems.append(f"{where}: scans of differing shapes, {found}: one expected")
    raise_all(problems)
    return scans


def _missing_label(path: Path, label: Label | None, need_age: bool, need_sex: bool) -> str:
    """What training needs and the label sheet lacks; empty where it has it."""
    if label is None and (need_age or need_sex):
        return f"no row named {image_stem(path.name)} in the label sheet"
    if need_age and label.age is None:
        doubt = label.doubt and f" ({label.doubt})"
        return f"row {label.row} gives no age, expected years{doubt}; see {label.source}"
    if need_sex and label.sex is None:
        expected = "expected 0 female or 1 male (or --use_sex false)"
        return f"row {label.row} gives no sex, {expected}; see {label.source}"
    return ""


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def describe(scans: list[Scan]) -> str:
    """One line: how many scans, their ages and sexes, and how many were reoriented.

    One more line for each site, where any is known.
    """
    text = _describe_people(scans)
    turned = [scan.orientation for scan in scans if scan.orientation != "LAS"]
    if turned:
        text += f"; {len(turned)} stored {'/'.join(sorted(set(turned)))}, put into LAS order"
    sites = group_by_site(scans).items()
    lines = [f"  site {site}: {_describe_people([scans[i] for i in at])}" for site, at in sites]
    return "\n".join([text, *lines])


def _describe_people(scans: Sequence[Scan]) -> str:
    ages = [scan.age for scan in scans if scan.age is not None]
    text = f"{len(scans)} scans"
    if ages:
        text += f", {len(ages)} with an age ({min(ages):g} to {max(ages):g} years)"
    females, males = (sum(scan.sex == sex for scan in scans) for sex in (FEMALE, MALE))
    return f"{text}, {females} female, {males} male"


def group_by_site(scans: Sequence[Scan]) -> dict[str, list[int]]:
    """The places of the scans of each site, by its name; `n/a` for those of unknown site.

    Empty where no site is known.
    """
    groups: dict[str, list[int]] = {}
    for name in [*sorted({scan.site for scan in scans if scan.site}), None]:
        places = [place for place, scan in enumerate(scans) if scan.site == name]
        groups |= {name or UNKNOWN_SITE: places} if places else {}
    return {} if list(groups) == [UNKNOWN_SITE] else groups


def require_teachable(ages: Sequence[float], people: Collection[str], *, what: str) -> None:
    """Refuses scans from which nothing can learn how brains change with age.

    Args:
        ages: of the scans, in years.
        people: who was scanned, of each scan.
        what: the scans, as the message calls them.

    Raises:
        ValueError: one scan, one age, or one person.
    """
    found = ""
    if len(ages) < 2:
        found = f"{len(ages)} scan"
    elif len(set(ages)) == 1:
        found = f"all {len(ages)} scans are of the age {ages[0]:g}"
    elif len(set(people)) == 1:
        found = f"all {len(ages)} scans are of one person, {next(iter(people))}"
    if found:
        raise ValueError(
            f"{what}: {found}: nothing about age can be learnt from that; scans of several people "
            "of several ages expected"
        )


def note_weak_cohorts(train: Sequence[Scan], validation: Sequence[Scan]) -> None:
    """Prints what labelled training scans cannot teach, and validation scans cannot judge."""
    ages = [sorted(scan.age for scan in scans) for scans in (train, validation)]
    (youngest, *_, oldest), known = ages[0], ages[1]
    notes = []
    if len({scan.sex for scan in train}) == 1 and train[0].sex is not None:
        sex, other = ("women", "men") if train[0].sex == FEMALE else ("men", "women")
        notes.append(f"all training scans are of {sex}: the ages of {other} will be guesses")
    if len(known) == 1:
        notes.append("one validation scan: the epoch that suits this scan will be kept as the best")
    elif known[0] == known[-1]:
        notes.append(
            f"all validation scans are of the age {known[0]:g}: a network that gives this age to "
            "everybody would look perfect"
        )
    if known[-1] < youngest or known[0] > oldest:
        notes.append(
            f"no validation scan has an age of the training scans ({known[0]:g} to {known[-1]:g}, "
            f"{youngest:g} to {oldest:g} years): networks do not predict beyond the ages they know"
        )
    for note in notes:
        print(f"note: {note}")
