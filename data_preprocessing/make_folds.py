r"""Deals a cohort out to the folds of a cross-validation: by person, balanced in age and sex.

    python -m data_preprocessing.make_folds --scan_folders data/train data/val \
        --labels data/Dataset.xls --output folds.csv

Scans are read by name only. How people are dealt out is described in utils/scans/split.py.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from utils.cli import add_label_flags, add_subject_pattern, new_parser, number, run_entry
from utils.files import as_spreadsheet_text, replacing, require_absent
from utils.people.codebook import FEMALE, MALE, parse_sex_codes
from utils.scans.cohort import require_teachable
from utils.scans.leakage import find_people
from utils.scans.split import deal_to_folds, describe_ages, read_scan_labels
from utils.scans.volumes import find_scans


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Deal scans out to folds: by person, balanced in age and sex.")
    parser.add_argument("--scan_folders", nargs="+", required=True, metavar="DIR", help="scans")
    add_label_flags(parser, required=True)
    add_subject_pattern(parser)
    parser.add_argument("--number", type=number(int, low=2), default=5, help="of folds")
    parser.add_argument("--seed", type=number(int, low=0), default=0, help="of the dealing")
    parser.add_argument("--output", required=True, metavar="CSV", help="the table to write")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    """Writes the table of scans and folds and returns it."""
    args = build_parser().parse_args(argv)
    require_absent(Path(args.output))
    scans = [scan for folder in args.scan_folders for scan in find_scans(folder)]
    sex_codes = parse_sex_codes(args.sex_codes)
    labels = read_scan_labels(scans, sheet=args.labels, sex_codes=sex_codes)
    person_of = find_people(list(labels), pattern=args.subject_pattern)
    # A person with several scans is dealt by the age and sex of the first of them.
    people = {
        person_of[scan]: (label.age, -1 if label.sex is None else label.sex)
        for scan, label in reversed(labels.items())
    }
    dealt = deal_to_folds(people, folds=args.number, seed=args.seed)
    folds = {scan: dealt[person_of[scan]] for scan in labels}
    for fold in range(args.number):
        rest = [scan for scan in labels if folds[scan] != fold]
        ages, others = [labels[scan].age for scan in rest], [person_of[scan] for scan in rest]
        require_teachable(ages, others, what=f"the scans outside of fold {fold}")
    with replacing(args.output) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("scan", "fold"))
        writer.writerows((as_spreadsheet_text(scan), fold) for scan, fold in sorted(folds.items()))
    for fold in range(args.number):
        inside = [label for scan, label in labels.items() if folds[scan] == fold]
        females, males = (sum(label.sex == sex for label in inside) for sex in (FEMALE, MALE))
        count = list(dealt.values()).count(fold)
        ages = describe_ages([label.age for label in inside], people=count)
        print(f"fold {fold}: {ages}, {females} female, {males} male")
    return folds


if __name__ == "__main__":
    run_entry(main)
