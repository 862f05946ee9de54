r"""Splits a folder of scans into train, val and test: by person, balanced in age, by a seed.

Originals are read by name only: never moved, changed or opened. How people are dealt out is
described in utils/scans/split.py.

    python -m data_preprocessing.split_dataset --scan_folder scans --labels Dataset.xls \
        --output_dir folds --write links
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.cli import add_subject_pattern, new_parser, number, run_entry
from utils.files import image_stem, replacing, require_empty, write_tsv
from utils.people.codebook import parse_sex_codes
from utils.scans.cohort import require_teachable
from utils.scans.leakage import find_people
from utils.scans.split import FRACTIONS, describe_ages, read_scan_labels, split_by_person
from utils.scans.volumes import find_scans


def write_lists(parts: dict[str, list[str]], *, path_of: dict[str, Path], output_dir: Path) -> None:
    """Writes train.txt, val.txt and test.txt with one absolute path per line."""
    for part, scans in parts.items():
        with replacing(output_dir / f"{part}.txt") as temporary:
            lines = "".join(f"{path_of[scan].absolute()}\n" for scan in scans)
            # File names keep their bytes, UTF-8 or not: programs open these paths.
            temporary.write_text(lines, encoding="utf-8", errors="surrogateescape")


def write_links(parts: dict[str, list[str]], *, path_of: dict[str, Path], output_dir: Path) -> None:
    """Makes train, val and test with a symbolic link, absolute, to each original."""
    for part, scans in parts.items():
        folder = output_dir / part
        folder.mkdir(parents=True)
        for scan in scans:
            # Absolute, not resolved: a scan that is a link itself (as in DataLad) keeps its name.
            (folder / path_of[scan].name).symlink_to(path_of[scan].absolute())


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Split scans into train, val and test: by person, balanced in age.")
    parser.add_argument("--scan_folder", type=Path, required=True, help="holds .nii.gz or .nii")
    parser.add_argument(
        "--labels", nargs="+", required=True, metavar="SHEET", help="sheets with ids and ages"
    )
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
    """Reads names and ages, deals people out, and writes the three parts and their table."""
    args = build_parser().parse_args(argv)
    require_empty(args.output_dir)
    scans = find_scans(args.scan_folder)
    sex_codes = parse_sex_codes(args.sex_codes)
    labels = read_scan_labels(scans, sheets=args.labels, sex_codes=sex_codes)
    ages = {scan: label.age for scan, label in labels.items()}
    path_of = {image_stem(path.name): path for path in scans}
    person_of = find_people(list(path_of), pattern=args.subject_pattern)
    parts = split_by_person(ages, person_of=person_of, fractions=args.fractions, seed=args.seed)
    if train := parts["train"]:
        try:
            people = [person_of[scan] for scan in train]
            require_teachable([ages[scan] for scan in train], people, what="train")
        except ValueError as error:  # the parts may be meant for another use
            print(f"note: {error}")

    write = {"lists": write_lists, "links": write_links}[args.write]
    write(parts, path_of=path_of, output_dir=args.output_dir)
    rows = [(s, person_of[s], ages[s], part) for part, scans in parts.items() for s in scans]
    # Written last: a folder with split.tsv is complete.
    write_tsv(args.output_dir / "split.tsv", [("scan", "person", "age", "fold"), *rows])
    for part, scans in parts.items():
        people = len({person_of[scan] for scan in scans})
        print(f"{part:5}  {describe_ages([ages[scan] for scan in scans], people=people)}")


if __name__ == "__main__":
    run_entry(main)
