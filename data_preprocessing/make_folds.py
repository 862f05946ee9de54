r"""Deals a cohort out to folds for cross-validation: by person, balanced in age and sex.

    python -m data_preprocessing.make_folds --scan_folders data/train data/val \
        --labels data/Dataset.xls --output folds.csv

People are sorted by sex and age; of each run of neighbours every fold gets one, by lot.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.cli import add_label_flags, add_subject_pattern, new_parser, number, run_entry
from utils.scans.leakage import people_of


def deal(people: Mapping[str, tuple[float, int]], *, folds: int, seed: int = 0) -> dict[str, int]:
    """The fold of each person.

    Args:
        people: (age in years, sex) by person.
        folds: how many.
        seed: of the lot.

    Raises:
        ValueError: fewer people than folds, or fewer than two folds.
    """
    if not 2 <= folds <= len(people):
        raise ValueError(f"--number {folds}: at least 2 and at most {len(people)} people expected")
    order = sorted(people, key=lambda person: (*people[person][::-1], person))
    generator = np.random.default_rng(seed)
    dealt: dict[str, int] = {}
    for start in range(0, len(order), folds):
        together = order[start : start + folds]
        dealt |= zip(together, generator.permutation(folds)[: len(together)].tolist(), strict=True)
    return dealt


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Deal scans out to folds: by person, balanced in age and sex.")
    parser.add_argument("--scan_folders", nargs="+", required=True, metavar="DIR", help="scans")
    add_label_flags(parser, required=True)
    add_subject_pattern(parser)
    parser.add_argument("--number", type=number(int, low=2), default=5, help="of folds")
    parser.add_argument("--seed", type=number(int, low=0), default=0, help="of the lot")
    parser.add_argument("--output", required=True, metavar="CSV", help="the table to write")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    """Writes the table of scans and folds and returns it."""
    args = build_parser().parse_args(argv)
    from utils.files import as_spreadsheet_text, replacing, require_absent
    from utils.scans.cohort import describe, open_cohort
    from utils.scans.labels import parse_sex_codes, read_labels
    from utils.scans.volumes import InputRule

    require_absent(Path(args.output))
    labels = read_labels(args.labels, sex_codes=parse_sex_codes(args.sex_codes))
    scans = [
        scan
        for folder in args.scan_folders
        for scan in open_cohort(folder, labels, InputRule(any_grid=True), need_age=True)
    ]
    person_of = people_of([scan.subject_id for scan in scans], pattern=args.subject_pattern)
    # A person with several scans is dealt by the first of them.
    people = {
        person_of[scan.subject_id]: (scan.age, -1 if scan.sex is None else scan.sex)
        for scan in reversed(scans)
    }
    dealt = deal(people, folds=args.number, seed=args.seed)
    folds = {scan.subject_id: dealt[person_of[scan.subject_id]] for scan in scans}
    with replacing(args.output) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("scan", "fold"))
        writer.writerows((as_spreadsheet_text(scan), fold) for scan, fold in sorted(folds.items()))
    for fold in range(args.number):
        inside = [scan for scan in scans if folds[scan.subject_id] == fold]
        print(f"fold {fold}: {describe(inside)}")
    return folds


if __name__ == "__main__":
    run_entry(main)
