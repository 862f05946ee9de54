r"""Splits a folder of scans into train, val and test: by person, balanced in age, by a seed.

All scans of one person land in one fold, or the test would be about people seen in training.
People are sorted by age and cut into strata of neighbours, each of which is dealt out in the asked
fractions, so that all folds cover the same ages. Originals are read by name only: never moved,
changed or opened.

    python -m data_preprocessing.split_dataset --scan_folder scans --labels Dataset.xls \
        --output_dir folds --write links
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.cli import add_subject_pattern, new_parser, number, raise_all, run_entry
from utils.files import replacing, require_empty, write_tsv
from utils.scans.labels import label_of, parse_sex_codes, read_labels
from utils.scans.leakage import people_of
from utils.scans.volumes import find_scans, image_stem

FOLDS = ("train", "val", "test")
FRACTIONS = (0.7, 0.15, 0.15)


def split_by_person(
    ages: Mapping[str, float],
    *,
    person_of: Mapping[str, str],
    fractions: Sequence[float],
    seed: int,
) -> dict[str, list[str]]:
    """Deals people into folds so that each fold has its fraction of people of every age.

    A stratum is a run of neighbours in age (of a person scanned often: the mean age), as long as
    makes about one person of the smallest fold. In each stratum a fold gets its fraction rounded
    down or up; the folds furthest behind are rounded up, so that the whole adds up too.

    Args:
        ages: years, by scan.
        person_of: who was scanned, by scan.
        fractions: of people, for train, val and test; their sum is 1. A fold of 0 stays empty.
        seed: same seed, same split, whatever the order of `ages`.

    Returns:
        Sorted scans by fold: train, val, test.

    Raises:
        ValueError: fractions that are not three shares of 1, scans without person or age, or so
            few people that a fold would stay empty.
    """
    shares = _checked_fractions(fractions)
    scans_of = _scans_of_people(ages, person_of=person_of)
    people = sorted(
        scans_of, key=lambda person: (np.mean([ages[s] for s in scans_of[person]]), person)
    )
    rng = np.random.default_rng(seed)
    folds = {fold: [] for fold in FOLDS}
    for stratum, seats in _seats(people, shares=shares):
        for person, fold in zip(stratum, rng.permutation(np.repeat(FOLDS, seats)), strict=True):
            folds[str(fold)] += scans_of[person]
    empty = [fold for fold, share in zip(FOLDS, shares, strict=True) if share and not folds[fold]]
    if empty:
        raise ValueError(
            f"{len(people)} people are too few for fractions {' '.join(map(str, fractions))}: "
            f"{' and '.join(empty)} would stay empty; add people, or give 0 for a fold not needed"
        )
    return {fold: sorted(scans) for fold, scans in folds.items()}


def _scans_of_people(
    ages: Mapping[str, float], *, person_of: Mapping[str, str]
) -> dict[str, list[str]]:
    """Sorted scans by person; ValueError listing scans without a person or a usable age."""
    problems, scans_of = [], defaultdict(list)
    for scan in sorted(ages):
        if scan not in person_of:
            problems.append(f"{scan}: no person is known for it")
        elif not np.isfinite(ages[scan]):
            problems.append(f"{scan}: age {ages[scan]}, expected years")
        else:
            scans_of[person_of[scan]].append(scan)
    raise_all(problems)
    return scans_of


def _checked_fractions(fractions: Sequence[float]) -> np.ndarray:
    """The three fractions as an array; ValueError unless they are shares of one whole."""
    shares = np.asarray(fractions, dtype=float)
    # `not >=` also refuses NaN.
    if shares.shape != (len(FOLDS),) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(
            f"fractions: three shares of 1 for {', '.join(FOLDS)} expected, such as 0.7 0.15 0.15; "
            f"found {' '.join(map(str, fractions))}, sum {shares.sum():g}"
        )
    return shares


def _seats(people: list[str], *, shares: np.ndarray) -> list[tuple[list[str], np.ndarray]]:
    """Cuts people, sorted by age, into strata, each with the number of people for every fold."""
    smallest = shares[shares > 0].min()
    strata = np.array_split(np.arange(len(people)), max(1, len(people) // round(1 / smallest)))
    owed = np.zeros(len(FOLDS))
    dealt = []
    for stratum in strata:
        exact = shares * len(stratum)
        seats = np.floor(exact + 1e-9).astype(int)
        owed += exact - seats
        # A share that is whole already (0 included) is not rounded up.
        behind = np.where(exact - seats > 1e-9, owed, -np.inf)
        rounded_up = np.argsort(-behind, kind="stable")[: len(stratum) - seats.sum()]
        seats[rounded_up] += 1
        owed[rounded_up] -= 1
        dealt.append(([people[at] for at in stratum], seats))
    return dealt


def read_ages(
    scans: Sequence[Path], *, sheet: Path, sex_codes: dict[str, int] | None = None
) -> dict[str, float]:
    """Age in years by scan (name without image suffix).

    Raises:
        ValueError: scans without a row or an age in the sheet, all of them.
    """
    labels = read_labels(sheet, sex_codes=sex_codes)
    ages, problems = {}, []
    for scan in scans:
        label = label_of(scan, labels)
        if label is None:
            problems.append(f"{scan}: no row in {sheet}; an age in years expected")
        elif label.age is None:
            problems.append(f"{scan}: no age in {sheet}, row {label.row}; years expected")
        else:
            ages[image_stem(scan.name)] = label.age
    raise_all(problems)
    return ages


def write_lists(folds: dict[str, list[str]], *, path_of: dict[str, Path], output_dir: Path) -> None:
    """Writes train.txt, val.txt and test.txt: one absolute path a line."""
    for fold, scans in folds.items():
        with replacing(output_dir / f"{fold}.txt") as temporary:
            lines = "".join(f"{path_of[scan].absolute()}\n" for scan in scans)
            # The names' own bytes: these paths are read again.
            temporary.write_text(lines, encoding="utf-8", errors="surrogateescape")


def write_links(folds: dict[str, list[str]], *, path_of: dict[str, Path], output_dir: Path) -> None:
    """Makes train, val and test with a symbolic link, absolute, to each original."""
    for fold, scans in folds.items():
        folder = output_dir / fold
        folder.mkdir(parents=True)
        for scan in scans:
            # Absolute, not resolved: a scan that is a link itself (as in DataLad) keeps its name.
            (folder / path_of[scan].name).symlink_to(path_of[scan].absolute())


def write_table(
    path: Path,
    *,
    folds: dict[str, list[str]],
    ages: dict[str, float],
    person_of: dict[str, str],
) -> None:
    """Writes the split as a table: scan, person, age in years, fold."""
    rows = [
        (scan, person_of[scan], ages[scan], fold) for fold, scans in folds.items() for scan in scans
    ]
    write_tsv(path, [("scan", "person", "age", "fold"), *rows])


def describe(
    folds: dict[str, list[str]], *, ages: dict[str, float], person_of: dict[str, str]
) -> str:
    """One line a fold: scans, people, and mean, SD and range of age in years."""
    lines = []
    for fold, scans in folds.items():
        line = f"{fold:5}  {len(scans)} scans of {len({person_of[scan] for scan in scans})} people"
        if scans:
            years = np.array([ages[scan] for scan in scans])
            line += f", age {years.mean():.1f} (SD {years.std():.1f}, "
            line += f"{years.min():g} to {years.max():g}) years"
        lines.append(line)
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Split scans into train, val and test: by person, balanced in age.")
    parser.add_argument("--scan_folder", type=Path, required=True, help="holds .nii.gz or .nii")
    parser.add_argument("--labels", type=Path, required=True, help="sheet with ids and ages")
    parser.add_argument("--output_dir", type=Path, required=True, help="an empty or new folder")
    parser.add_argument(
        "--fractions",
        type=number(float, low=0, high=1),
        nargs=3,
        default=FRACTIONS,
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of the people, adding up to 1",
    )
    parser.add_argument("--seed", type=number(int, low=0), default=0, help="of the dealing")
    parser.add_argument(
        "--write",
        choices=("lists", "links"),
        default="links",
        help="lists: train.txt, val.txt, test.txt with paths; links: folders of symbolic links",
    )
    add_subject_pattern(parser)
    parser.add_argument(
        "--sex_codes", nargs="+", metavar="CODE=SEX", help="what the sheet's sex codes mean"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Reads names and ages, deals people out, and writes the folds."""
    args = build_parser().parse_args(argv)
    require_empty(args.output_dir)
    scans = find_scans(args.scan_folder)
    ages = read_ages(scans, sheet=args.labels, sex_codes=parse_sex_codes(args.sex_codes))
    path_of = {image_stem(path.name): path for path in scans}
    person_of = people_of(list(path_of), pattern=args.subject_pattern)
    folds = split_by_person(ages, person_of=person_of, fractions=args.fractions, seed=args.seed)

    write = {"lists": write_lists, "links": write_links}[args.write]
    write(folds, path_of=path_of, output_dir=args.output_dir)
    # Last: a folder with split.tsv is a finished one.
    write_table(args.output_dir / "split.tsv", folds=folds, ages=ages, person_of=person_of)
    print(describe(folds, ages=ages, person_of=person_of))


if __name__ == "__main__":
    run_entry(main)
