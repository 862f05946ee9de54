r"""Makes a label sheet and a folder of scans from a public dataset as somebody downloaded it.

    python -m data_preprocessing.datasets oasis3 --scan_folder OASIS3 --output_dir oasis3 \
        --tables OASIS3_demographics.csv OASIS3_UDSb4_cdr.csv

Nothing is downloaded, moved or changed. The output holds
    scans/              a link to each scan, under a name that is its own (OASIS-1: healthy/,
                        retest/, dementia/); what has no orientation in its file is converted
    Dataset.xls         as published, no header: file name, age in years, sex (0 female, 1 male)
    participants.tsv    participant_id (the name), age at the scan, sex, person, session, group,
                        site, source
    left_out.tsv        every row without a scan, scan without a row or a usable age, and further
                        file, with the reason
`bash script/preprocess.sh OUT/scans --output_dir ...` takes the scans from there. Which columns are
needed stands in the readers of public_tables.py.
"""

import argparse
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import nibabel
import numpy as np

from data_preprocessing.public import tables
from data_preprocessing.public.unoriented import read_oasis2_raw, read_quasiraw, read_t88
from utils.cli import new_parser, raise_all, run_entry
from utils.files import replacing, require_empty, write_tsv
from utils.scans.labels import FEMALE, MALE, OLDEST_AGE
from utils.scans.volumes import IMAGE_SUFFIXES, image_stem

VOLUME_SUFFIXES = (*IMAGE_SUFFIXES, ".img", ".npy")
OASIS1_GROUPS = ("healthy", "retest", "dementia")
NIFTI = r"\.nii(?:\.gz)?$"
# What Python makes of bytes in a file name that are not UTF-8.
UNDECODED = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Scan:
    """A scan on the disk, and what its path says.

    Attributes:
        key: under which the tables know it.
        session: of the person; empty where the release has one session a person.
        day: of the scan, as in public_tables.Subject.
        image: its number in the archive (ADNI).
    """

    path: Path
    key: str
    person: str
    session: str = ""
    site: str = ""
    day: int | None = None
    image: str = ""


@dataclass(frozen=True)
class Release:
    """How a dataset is laid out.

    Attributes:
        tables: which to give, for people.
        read: the tables.
        pattern: where in the path of a T1 scan stand `key`, and where it has them `person`,
            `session`, `site`, `day`, `date` and `image`.
        example: a path that `pattern` matches.
        name: of a scan in the output; two scans have two names.
        by_suffix: what reads a volume that must be converted, by the suffix of its file.
        groups: that get a folder each; none: one folder `scans`.
    """

    tables: str
    read: Callable[[Sequence[Path]], tables.Listing]
    pattern: str
    example: str
    name: Callable[[Scan], str] = lambda scan: image_stem(scan.path.name)
    by_suffix: tuple[tuple[str, Callable[[Path], nibabel.Nifti1Image]], ...] = ()
    groups: tuple[str, ...] = ()


RELEASES = {
    "oasis1": Release(
        "oasis_cross-sectional.csv or .xlsx",
        tables.read_oasis1,
        # n3 to n6: how many raw scans it is the mean of.
        r"/(?P<key>(?P<person>OAS1_\d{4})_(?P<session>MR\d))_mpr_n\d_anon_111_t88_masked_gfc\.img$",
        "disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/"
        "OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img",
        lambda scan: scan.key,
        ((".img", read_t88),),
        OASIS1_GROUPS,
    ),
    "oasis2": Release(
        "oasis_longitudinal_demographics.xlsx",
        tables.read_oasis2,
        r"/(?P<key>(?P<person>OAS2_\d{4})_(?P<session>MR\d+))/RAW/mpr-\d\.(?:nifti\.)?img$",
        "OAS2_RAW_PART1/OAS2_0001_MR1/RAW/mpr-1.nifti.img",
        lambda scan: scan.key,
        ((".img", read_oasis2_raw),),
    ),
    "oasis3": Release(
        "OASIS3_demographics.csv, and OASIS3_UDSb4_cdr.csv for groups",
        tables.read_oasis3,
        rf"/sub-(?P<key>OAS3\d{{4}})_sess?-(?P<session>d(?P<day>\d+))(?:_[^/]*)?_T1w{NIFTI}",
        "OAS30001_MR_d0129/anat2/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz",
        lambda scan: f"{scan.key}_MR_{scan.session}",
    ),
    "adni": Release(
        "ADNIMERGE.csv and the .csv of the IDA download (either alone will do: see read_adni)",
        tables.read_adni,
        r"/(?:(?P<date>\d{4}-\d\d-\d\d)_[\d_.]+/[SI]\d+/)?ADNI_(?P<key>\d{3}_S_\d{4,5})_MR_(?!.*mask)"
        rf"[^/]*(?:MP-?RAGE|MPR|SPGR|MT1)[^/]*_(?P<image>I\d+){NIFTI}",
        "002_S_0295/MP-RAGE/2006-04-18_08_20_30.0/I13722/"
        "ADNI_002_S_0295_MR_MP-RAGE_br_raw_20060418193713091_1_S13408_I13722.nii",
        lambda scan: f"sub-ADNI{scan.key.replace('_', '')}_ses-{scan.session}_{scan.image}",
    ),
    "pac2019": Release(
        "PAC2019_BrainAge_Training.csv",
        tables.read_pac2019,
        rf"/(?P<key>sub\d+)(?:_raw|_t1w?)?{NIFTI}",
        "raw/sub0.nii.gz",
        lambda scan: scan.key,
    ),
    "ixi": Release(
        "IXI.xls",
        tables.read_ixi,
        rf"/IXI0*(?P<key>\d+)-(?P<site>Guys|HH|IOP)-\d+-T1(?:_\w+)?{NIFTI}",
        "IXI002-Guys-0828-T1.nii.gz",
    ),
    "camcan": Release(
        "participants.tsv, or standard_data.csv",
        tables.read_camcan,
        rf"/sub-(?P<key>CC\d+)(?:_[^/]*)?_T1w{NIFTI}",
        "sub-CC110033/anat/sub-CC110033_T1w.nii.gz",
    ),
    "openbhb": Release(
        "participants.tsv",
        tables.read_openbhb,
        r"/sub-(?P<key>\d+)(?:_ses-\w+?)?(?:_run-\d+)?"
        rf"(?:_preproc-quasiraw_T1w\.npy$|_T1w{NIFTI})",
        "sub-100053248969_preproc-quasiraw_T1w.npy",
        lambda scan: image_stem(scan.path.name).removesuffix(".npy"),
        by_suffix=((".npy", read_quasiraw),),
    ),
    "bids": Release(
        "participants.tsv",
        tables.read_bids,
        rf"/sub-(?P<key>[A-Za-z0-9]+)(?:_[^/]*)?_T1w{NIFTI}",
        "sub-01/anat/sub-01_T1w.nii.gz",
    ),
}


@dataclass(frozen=True)
class Entry:
    """A scan with what is known of it: age in years at the scan, sex F, M or nothing."""

    name: str
    age: float
    sex: str
    group: str
    site: str
    scan: Scan


@dataclass(frozen=True)
class LeftOut:
    """A row of a table or a file that is not in the output, and why."""

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


def recognise(paths: Iterable[Path], release: Release, *, days: dict[str, int]) -> list[Scan]:
    """The T1 scans of the release among `paths`; other files are no scans.

    Args:
        paths: of files of any kind.
        release: whose naming is looked for.
        days: of scans, by image, as tables know them; they go before the path.
    """
    scans = []
    for path in paths:
        match = re.search(release.pattern, path.absolute().as_posix(), re.IGNORECASE)
        if not match:
            continue
        said = match.groupdict(default="")
        day = int(said["day"]) if said.get("day") else None
        if said.get("date"):
            day = date.fromisoformat(said["date"]).toordinal()
        image = said.get("image", "").upper()
        day = days.get(image, day)
        session = said.get("session", "")
        if "date" in said and day is not None:
            session = f"{date.fromordinal(day):%Y%m%d}"
        person = said.get("person") or said["key"]
        scans.append(Scan(path, said["key"], person, session, said.get("site", ""), day, image))
    return scans


def pair(
    scans: Sequence[Scan], listing: tables.Listing, release: Release
) -> tuple[list[Entry], list[LeftOut]]:
    """Gives each scan its row; of several scans of one session the first in order of path is kept.

    Returns:
        Scans with a usable age, by name; and every scan without and row without a scan.
    """
    entries: dict[tuple[str, str], Entry] = {}
    left_out, matched = [], set()
    for scan in scans:
        key = scan.image if scan.image in listing.subjects else scan.key
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


def _why_not(scan: Scan, subject: tables.Subject | None, *, name: str) -> str:
    """The reason to leave a scan out; nothing where it is good."""
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
        What is there, and what could not be read.
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


def write_sheet(path: Path, entries: Sequence[Entry]) -> None:
    """Writes the label sheet in the published form: real .xls, no header row."""
    import xlwt

    book = xlwt.Workbook()
    sheet = book.add_sheet("labels")
    codes = {"F": FEMALE, "M": MALE, "": ""}
    for row, entry in enumerate(entries):
        for column, value in enumerate((f"{entry.name}.nii.gz", entry.age, codes[entry.sex])):
            sheet.write(row, column, value)
    with replacing(path) as temporary:
        book.save(str(temporary))


def write_labels(output_dir: Path, entries: Sequence[Entry]) -> None:
    """Writes Dataset.xls, then participants.tsv: a folder that has it is a finished one."""
    write_sheet(output_dir / "Dataset.xls", entries)
    columns = ("participant_id", "age", "sex", "person", "session", "group", "site", "source")
    rows = []
    for entry in entries:
        scan = entry.scan
        cells = (entry.name, entry.age, entry.sex, scan.person, scan.session, entry.group)
        cells += (entry.site, scan.path.absolute())
        rows.append(["n/a" if cell == "" else cell for cell in cells])
    write_tsv(output_dir / "participants.tsv", [columns, *rows])


def describe(entries: Sequence[Entry], left_out: Sequence[LeftOut]) -> str:
    """Scans, people and ages by group, and what was left out by reason."""
    lines = []
    for group in sorted({entry.group for entry in entries}):
        some = [entry for entry in entries if entry.group == group]
        years = np.array([entry.age for entry in some])
        people = len({entry.scan.person for entry in some})
        lines.append(
            f"{group or 'all'}: {len(some)} scans of {people} people, age {years.mean():.1f} "
            f"(SD {years.std():.1f}, {years.min():g} to {years.max():g}) years"
        )
    # The reason without its particulars.
    reasons = Counter((item.what, re.split(r"[:(,]", item.reason)[0].strip()) for item in left_out)
    lines += [f"left out: {count} x {what}: {why}" for (what, why), count in reasons.items()]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Label sheet and folder of scans from a public dataset on this disk.")
    parser.add_argument("dataset", choices=RELEASES, help="bids: any dataset in BIDS form")
    known = "; ".join(f"{name}: {release.tables}" for name, release in RELEASES.items())
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help=known)
    parser.add_argument(
        "--scan_folder", type=Path, required=True, help="holds the scans as released, at any depth"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="an empty or new folder")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the tables, finds the scans, pairs them, and writes folders and sheets."""
    args = build_parser().parse_args(argv)
    release = RELEASES[args.dataset]
    require_empty(args.output_dir)
    listing = release.read(args.tables)
    volumes = find_volumes(args.scan_folder)
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
