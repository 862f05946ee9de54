r"""Makes a label sheet and a folder of scans from a public cohort as somebody downloaded it.

    python -m data_preprocessing.datasets oasis3 --scan_folder OASIS3 --output_dir oasis3 \
        --tables OASIS3_demographics.csv OASIS3_UDSb4_cdr.csv

Nothing is downloaded, moved or changed. The output holds
    scans/              a link to each scan, each under its own name (OASIS-1: healthy/, retest/,
                        dementia/); files that do not state an orientation are converted
    Dataset.xls         as published, no header: file name, age in years, sex (0 female, 1 male)
    participants.tsv    participant_id (the name), age at the scan, sex, person, session, group,
                        site, source
    left_out.tsv        every row without a scan, every scan without a row or a usable age, and
                        every further file, with the reason
`bash script/preprocess.sh OUT/scans --output_dir ...` takes the scans from there. The columns that
the tables need are listed in data_preprocessing/public/releases.py and longitudinal.py.
"""

import argparse
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel

from data_preprocessing.public.bids import read_bids
from data_preprocessing.public.releases import RELEASES, Release, Scan, recognise
from data_preprocessing.public.tables import Listing, Subject
from utils.cli import new_parser, raise_all, run_entry
from utils.files import IMAGE_SUFFIXES, image_stem, replacing, require_empty, write_tsv, write_xls
from utils.people.codebook import FEMALE, MALE, OLDEST_AGE, parse_sex_codes
from utils.scans.split import describe_ages

VOLUME_SUFFIXES = (*IMAGE_SUFFIXES, ".img", ".npy")
# What Python makes of bytes in a file name that are not UTF-8.
UNDECODED = re.compile("[\ud800-\udfff]")
SEX_CODES = {"F": FEMALE, "M": MALE, "": ""}
COLUMNS = ("participant_id", "age", "sex", "person", "session", "group", "site", "source")


@dataclass(frozen=True)
class Entry:
    """A scan and its labels: age in years at the scan; sex F, M, or empty where unknown."""

    name: str
    age: float
    sex: str
    group: str
    site: str
    scan: Scan


@dataclass(frozen=True)
class LeftOut:
    """A scan, a row of a table, or a file that is not in the output, and why."""

    what: str
    where: str
    reason: str


def find_volumes(folder: Path) -> list[Path]:
    """All files under `folder` that may hold a volume, in the order of their paths.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of scans")
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(VOLUME_SUFFIXES) and not name.startswith(".")
    )


def pair(
    scans: Sequence[Scan], listing: Listing, release: Release
) -> tuple[list[Entry], list[LeftOut]]:
    """Gives each scan its row; of several scans of one session the first by path is kept.

    Returns:
        Scans with a usable age, by name; and every scan without and row without a scan.
    """
    entries: dict[tuple[str, str], Entry] = {}
    left_out, matched = [], set()
    for scan in scans:
        keys = (str(scan.path), scan.image, scan.key)
        key = next((key for key in keys if key in listing.subjects), scan.key)
        subject = listing.subjects.get(key)
        matched.add(key)
        kept = entries.get((scan.person, scan.session))
        name = release.name(scan)
        reason = _why_not(scan, subject, name=name)
        if not reason and kept:
            reason = "a further scan of the same person and session"
        if reason:
            left_out.append(LeftOut("scan", str(scan.path), reason))
            continue
        entries[scan.person, scan.session] = Entry(
            name,
            age=round(subject.age_at(scan.day), 3),
            sex=subject.sex,
            group=subject.group_at(scan.day),
            site=subject.site or scan.site,
            scan=scan,
        )
    left_out += [
        LeftOut("row", f"{subject.where}: {key}", "no scan")
        for key, subject in listing.subjects.items()
        if key not in matched
    ]
    return sorted(entries.values(), key=lambda entry: entry.name), left_out


def _why_not(scan: Scan, subject: Subject | None, *, name: str) -> str:
    """The reason to leave a scan out; empty where it can be used."""
    if subject is None:
        return "no row in the tables"
    if subject.doubt:
        return f"the tables cannot be trusted on it ({subject.doubt})"
    if subject.age is None:
        return "no age in the tables"
    if scan.day is None and (scan.image or subject.day is not None):
        return "no scan date, neither in its path nor in an IDA listing: its age is unknown"
    if not 0 < subject.age_at(scan.day) <= OLDEST_AGE:
        return f"age {subject.age_at(scan.day):g}, expected years up to {OLDEST_AGE}"
    if UNDECODED.search(name):
        return "its name is not UTF-8, so no label sheet can hold it: rename it"
    return ""


def place(
    entries: Sequence[Entry], release: Release, *, output_dir: Path
) -> tuple[list[Entry], list[LeftOut]]:
    """Links or converts every scan into its folder.

    Returns:
        The scans that are there now, and those that could not be read.
    """
    for folder in release.groups or ("scans",):
        (output_dir / folder).mkdir(parents=True)
    placed, left_out = [], []
    for entry in entries:
        folder = output_dir / (entry.group if release.groups else "scans")
        path = entry.scan.path
        read = next((read for suffix, read in release.by_suffix if path.suffix == suffix), None)
        try:
            if read is None:
                suffix = path.name[len(image_stem(path.name)) :].lower()
                # Absolute, not resolved: a scan that is a link itself (DataLad) keeps its name.
                (folder / f"{entry.name}{suffix}").symlink_to(path.absolute())
            else:
                image = read(path)
                with replacing(folder / f"{entry.name}.nii.gz") as temporary:
                    nibabel.save(image, temporary)
        except ValueError as error:
            left_out.append(LeftOut("scan", str(path), f"unreadable: {error}"))
        else:
            placed.append(entry)
    return placed, left_out


def write_labels(output_dir: Path, entries: Sequence[Entry]) -> None:
    """Writes Dataset.xls, then participants.tsv: a folder that has it is complete."""
    rows = [(f"{entry.name}.nii.gz", entry.age, SEX_CODES[entry.sex]) for entry in entries]
    write_xls(output_dir / "Dataset.xls", rows)
    rows = []
    for entry in entries:
        scan = entry.scan
        cells = (entry.name, entry.age, entry.sex, scan.person, scan.session, entry.group)
        cells += (entry.site, scan.path.absolute())
        rows.append(["n/a" if cell == "" else cell for cell in cells])
    write_tsv(output_dir / "participants.tsv", [COLUMNS, *rows])


def describe(entries: Sequence[Entry], left_out: Sequence[LeftOut]) -> str:
    """Scans, people and ages by group, and how many scans and rows were left out by reason."""
    lines = []
    for group in sorted({entry.group for entry in entries}):
        inside = [entry for entry in entries if entry.group == group]
        people = len({entry.scan.person for entry in inside})
        ages = describe_ages([entry.age for entry in inside], people=people)
        lines.append(f"{group or 'all'}: {ages}")
    # What stands in brackets or behind a colon differs between scans with the same reason.
    reasons = Counter((item.what, re.split(r"[:(,]", item.reason)[0].strip()) for item in left_out)
    lines += [f"left out: {count} x {what}: {why}" for (what, why), count in reasons.items()]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Make a label sheet and a folder of scans from a public cohort.")
    parser.add_argument("dataset", choices=RELEASES, help="bids: any dataset in BIDS form")
    known = "; ".join(f"{name}: {release.tables}" for name, release in RELEASES.items())
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help=known)
    parser.add_argument(
        "--scan_folder", type=Path, required=True, help="holds the scans as released, at any depth"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="an empty or new folder")
    parser.add_argument(
        "--sex_codes", nargs="+", metavar="CODE=SEX",
        help="for bids: what other codes mean, such as 1=male 2=female",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the tables, finds the scans, pairs them, and writes folders and sheets."""
    args = build_parser().parse_args(argv)
    release = RELEASES[args.dataset]
    require_empty(args.output_dir)
    volumes = find_volumes(args.scan_folder)
    if release.read:
        listing = release.read(args.tables)
    else:
        listing = read_bids(args.tables, volumes, parse_sex_codes(args.sex_codes))
    scans = recognise(volumes, release, days=listing.days)
    entries, left_out = pair(scans, listing, release)
    if not entries:
        raise ValueError(
            f"{args.scan_folder}: no scan with an age among {len(volumes)} volumes; expected files "
            f"such as {release.example}\n  {describe(entries, left_out)}"
        )
    entries, unreadable = place(entries, release, output_dir=args.output_dir)
    if not entries:
        raise_all([item.reason for item in unreadable])
    others = set(volumes) - {scan.path for scan in scans}
    further = [LeftOut("file", str(path), "not a T1 scan by its name") for path in sorted(others)]
    left_out += unreadable + further
    rows = [(item.what, item.where, item.reason) for item in left_out]
    write_tsv(args.output_dir / "left_out.tsv", [("what", "where", "reason"), *rows])
    write_labels(args.output_dir, entries)
    print("\n".join([describe(entries, left_out), *(f"note: {note}" for note in listing.notes)]))


if __name__ == "__main__":
    run_entry(main)
