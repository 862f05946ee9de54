r"""Deals a cohort out to the folds of a cross-validation: by person, balanced in age and sex.

    python -m data_preprocessing.make_folds --scan_folders data/train data/val \
        --labels data/Dataset.xls --output folds.csv

Where sites are known, each fold has its share of each site; or, with `--hold_out site`, each fold
is a site. Scans are read by name only. How people are dealt out is described in
utils/scans/split.py.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.cli import add_label_flags, add_subject_pattern, new_parser, number, run_entry
from utils.files import as_spreadsheet_text, replacing, require_absent
from utils.people.codebook import FEMALE, MALE, parse_sex_codes
from utils.people.matching import Label
from utils.scans.cohort import UNKNOWN_SITE, require_teachable
from utils.scans.leakage import find_people
from utils.scans.split import deal_to_folds, describe_ages, hold_out_sites, read_scan_labels
from utils.scans.volumes import find_scans


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Deal scans out to folds: by person, balanced in age and sex.")
    parser.add_argument("--scan_folders", nargs="+", required=True, metavar="DIR", help="scans")
    add_label_flags(parser, required=True)
    add_subject_pattern(parser)
    parser.add_argument("--number", type=number(int, low=2), default=5, help="of folds")
    parser.add_argument(
        "--hold_out", choices=("site",), help="make each site a fold of its own, whatever --number"
    )
    parser.add_argument("--seed", type=number(int, low=0), default=0, help="of the dealing")
    parser.add_argument("--output", required=True, metavar="CSV", help="the table to write")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    """Writes the table of scans and folds and returns it."""
    args = build_parser().parse_args(argv)
    require_absent(Path(args.output))
    scans = find_scans(*args.scan_folders)
    sex_codes = parse_sex_codes(args.sex_codes)
    labels = read_scan_labels(scans, sheets=args.labels, sex_codes=sex_codes, site=args.site)
    person_of = find_people(list(labels), pattern=args.subject_pattern)
    folds = deal(args, labels, person_of)
    numbers = sorted(set(folds.values()))
    for fold in numbers:
        rest = [scan for scan in labels if folds[scan] != fold]
        ages, others = [labels[scan].age for scan in rest], [person_of[scan] for scan in rest]
        require_teachable(ages, others, what=f"the scans outside of fold {fold}")
    with replacing(args.output) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("scan", "fold"))
        writer.writerows((as_spreadsheet_text(scan), fold) for scan, fold in sorted(folds.items()))
    for fold in numbers:
        inside = {scan: label for scan, label in labels.items() if folds[scan] == fold}
        print(f"fold {fold}: {describe(inside, person_of)}")
    return folds


def deal(
    args: argparse.Namespace, labels: Mapping[str, Label], person_of: Mapping[str, str]
) -> dict[str, int]:
    """The fold of each scan, by person or by site as `--hold_out` says."""
    site_of = {scan: label.site or "" for scan, label in labels.items()}
    if args.hold_out:
        return hold_out_sites(site_of, person_of)
    # A person with several scans is dealt by the age, sex and site of the first of them.
    people = {
        person_of[scan]: (label.age, -1 if label.sex is None else label.sex)
        for scan, label in reversed(labels.items())
    }
    site_of_person = {person_of[scan]: site for scan, site in reversed(site_of.items())}
    dealt = deal_to_folds(people, folds=args.number, seed=args.seed, site_of=site_of_person)
    return {scan: dealt[person_of[scan]] for scan in labels}


def describe(inside: Mapping[str, Label], person_of: Mapping[str, str]) -> str:
    """How many scans, people, women, men and, where they are known, scans of each site."""
    labels = list(inside.values())
    people = len({person_of[scan] for scan in inside})
    females, males = (sum(label.sex == sex for label in labels) for sex in (FEMALE, MALE))
    text = describe_ages([label.age for label in labels], people=people)
    text += f", {females} female, {males} male"
    sites = Counter(label.site or UNKNOWN_SITE for label in labels)
    if set(sites) == {UNKNOWN_SITE}:
        return text
    return (
        f"{text}; {', '.join(f'{count} of site {site}' for site, count in sorted(sites.items()))}"
    )


if __name__ == "__main__":
    run_entry(main)
