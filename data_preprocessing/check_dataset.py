r"""Checks folders of preprocessed scans and their label sheet before a training: all at once.

    python -m data_preprocessing.check_dataset --folders data/train data/val data/test \
        --labels data/Dataset.xls --output report.tsv

Every problem is one row of the report: an error (training would stop, or would learn something
wrong) or a note. With any error the exit code is 1. Nothing is changed.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from utils.cli import (
    Switch,
    add_label_flags,
    add_subject_pattern,
    new_parser,
    number,
    raise_all,
    run_entry,
)
from utils.files import hash_file, image_stem, require_absent, write_tsv
from utils.people.codebook import parse_sex_codes
from utils.people.labels import LabelSheet, examine_labels
from utils.scans.leakage import find_person
from utils.scans.provenance import Provenance, read_sidecar
from utils.scans.volumes import (
    LARGEST_BRAIN,
    SMALLEST_BRAIN,
    content_hash,
    decode,
    find_scans,
    open_scan,
    share_above_0,
)

# Share of the brain's voxels that have its highest value. 110 scans of OASIS-1, stored in 8 bits,
# have 0.0005 (median); 99 % of them have less than 0.01.
CLIPPED = 0.01
AGAIN = "preprocess it again"


@dataclass(frozen=True)
class Finding:
    """One row of the report; `severity` is error or note."""

    severity: str
    folder: str
    scan: str
    problem: str
    what_to_do: str


@dataclass
class Examined:
    """A scan and its sidecar, and what is wrong with them.

    Attributes:
        content: its `content_hash`; None where the scan cannot be used.
        made: how it was preprocessed; None where it has no sidecar.
        sidecar_damaged: whether its sidecar cannot be read.
    """

    path: Path
    findings: list[Finding] = field(default_factory=list)
    content: str | None = None
    made: Provenance | None = None
    sidecar_damaged: bool = False


def error(path: Path, problem: object, what_to_do: str, severity: str = "error") -> Finding:
    """A finding on a scan; its path, which has its own columns, is not repeated in the problem."""
    text = str(problem).removeprefix(f"{path}: ")
    return Finding(severity, str(path.parent), path.name, text, what_to_do)


note = partial(error, severity="note")


def examine_scan(path: Path) -> Examined:
    """Reads one scan and its sidecar, and finds what is wrong with these two files."""
    examined, sidecar = Examined(path), None
    try:
        sidecar = read_sidecar(path)
    except ValueError as problem:
        examined.sidecar_damaged = True
        examined.findings.append(error(path, problem, AGAIN))
    else:
        if sidecar:
            examined.made = Provenance.from_sidecar(sidecar)
            examined.findings += _find_flags(path, sidecar)
    try:
        header = open_scan(path)
        voxels = decode(path)
    except ValueError as problem:
        examined.findings.append(error(path, problem, "repair it, or leave it out"))
        return examined
    if header.orientation != "LAS":
        problem = f"stored {header.orientation}; read as LAS"
        examined.findings.append(note(path, problem, "nothing: every program here does so"))
    examined.findings += _find_implausible(path, voxels)
    if sidecar and sidecar.get("output_sha256") not in (None, "", hash_file(path)):
        problem = "changed since it was preprocessed: not the file that its sidecar describes"
        examined.findings.append(error(path, problem, AGAIN))
    examined.content = content_hash(voxels)
    return examined


def _find_flags(path: Path, sidecar: dict) -> Iterable[Finding]:
    quality = sidecar.get("qc")
    flags = quality.get("flags") if isinstance(quality, dict) else None
    if flags:
        yield error(
            path,
            f"flagged by preprocessing: {'; '.join(flags.values())}",
            f"look at its picture; leave it out or {AGAIN}, or, where it is good, empty qc.flags "
            "in its sidecar",
        )


def _find_implausible(path: Path, voxels: np.ndarray) -> Iterable[Finding]:
    """Skull left on, brain too small, intensities clipped; `voxels` are (91, 109, 91), LAS."""
    share, brain = share_above_0(voxels), voxels[voxels > 0]
    if share > LARGEST_BRAIN:
        problem = f"{share:.0%} of the grid is above 0, at most {LARGEST_BRAIN:.0%} expected: "
        problem += "skull or background left on"
        yield error(path, problem, f"look at it; {AGAIN}, with brain extraction")
    if share < SMALLEST_BRAIN:
        problem = f"{share:.0%} of the grid is above 0, at least {SMALLEST_BRAIN:.0%} expected: "
        problem += "brain implausibly small (registration failed, part cut off, or z-scored "
        problem += "already?)"
        yield error(path, problem, f"look at it; {AGAIN}")
    clipped = (brain == brain.max()).mean()
    if clipped > CLIPPED:
        problem = f"{clipped:.1%} of the brain has the highest value, {brain.max():g}: intensities "
        problem += "clipped"
        yield note(path, problem, "store it with a wider range of values")


def examine_all(paths: Sequence[Path], *, jobs: int) -> list[Examined]:
    """`examine_scan` of all, in the order of `paths`, in `jobs` processes; 0: one per core."""
    work = Parallel(n_jobs=jobs or -1, return_as="generator")(
        delayed(examine_scan)(path) for path in paths
    )
    return list(tqdm(work, "checking scans", len(paths), disable=None, leave=False))


def find_folders(folders: Sequence[Path]) -> tuple[list[Path], list[Finding]]:
    """All scans, folder by folder, and the folders that hold none."""
    paths, findings = [], []
    for folder in folders:
        try:
            paths += find_scans(folder, allow_twins=True)
        except OSError as problem:
            text = str(problem).removeprefix(f"{folder}: ")
            findings.append(Finding("error", str(folder), "", text, "give a folder of scans"))
    return paths, findings


def find_in_sheets(
    sheets: Sequence[str], paths: Sequence[Path], *, sex_codes: dict[str, int] | None
) -> tuple[LabelSheet | None, list[Finding]]:
    """The label sheets (None where one cannot be read at all), and what is wrong with the rows."""
    labels, problems = None, []
    try:
        labels, problems = examine_labels(sheets, paths, sex_codes=sex_codes)
    except (ValueError, OSError) as problem:
        problems = [str(problem)]
    return labels, [Finding("error", "", "", text, "correct the label sheet") for text in problems]


def find_labels(
    paths: Sequence[Path],
    labels: LabelSheet,
    *,
    trained_on: Sequence[Path],
    use_sex: bool,
) -> Iterable[Finding]:
    """Scans without a row, age or sex, and rows without a scan.

    Args:
        paths: all scans.
        labels: the label sheet.
        trained_on: folders whose ages training needs. In other folders a missing age is a note, as
            test.py predicts such scans too.
        use_sex: whether training needs the sexes as well.
    """
    found = set()
    times = Counter(image_stem(path.name) for path in paths)
    for path in paths:
        if times[image_stem(path.name)] > 1:  # `find_repeated_names` reports them
            found.add(image_stem(path.name))
            continue
        label = labels.find(path)
        if label is None:
            stem = image_stem(path.name)
            yield error(path, f"no row named {stem} in the label sheet", "add one")
            continue
        found |= {label.subject_id, image_stem(path.name)}
        for name, value, needed in (("age", label.age, True), ("sex", label.sex, use_sex)):
            if value is None:
                say = error if needed and path.parent in trained_on else note
                why = f" ({label.doubt})" if label.doubt and name == "age" else ""
                what_to_do = "fill it in, or leave it out"
                yield say(path, f"row {label.row} gives no {name}{why}", what_to_do)
    for label in labels.rows.values():
        if label.subject_id and label.subject_id not in found:
            problem = f"row {label.row}: no scan named {label.subject_id} in the folders"
            yield Finding("note", "", label.subject_id, problem, "nothing, if it is elsewhere")


def find_ages_outside(
    paths: Sequence[Path], labels: LabelSheet, *, training: Path
) -> Iterable[Finding]:
    """Scans of the other folders whose ages lie outside those of the training folder."""
    labelled = [(path, label) for path in paths if (label := labels.find(path))]
    known = [(path, label.age) for path, label in labelled if label.age is not None]
    trained = [age for path, age in known if path.parent == training]
    for path, age in known:
        if trained and not min(trained) <= age <= max(trained):
            yield note(
                path,
                f"age {age:g}, training ages {min(trained):g} to {max(trained):g} years",
                "expect larger errors, or train on such ages",
            )


def find_repeated_names(paths: Sequence[Path]) -> Iterable[Finding]:
    """Scans with the same name, in one folder or several."""
    for first, *others in _groups(paths, lambda path: image_stem(path.name)):
        for path in others:
            yield error(path, f"the same name as {first}", "keep one, or rename it and its row")


def find_split_people(paths: Sequence[Path], *, pattern) -> Iterable[Finding]:
    """People with scans in several folders; `pattern` as in `find_person`."""
    people: dict[Path, str] = {}
    for path in paths:
        try:
            people[path] = find_person(image_stem(path.name), pattern=pattern)
        except ValueError as problem:
            yield error(path, problem, "give a --subject_pattern that fits, or rename it")
    for first, *others in _groups(people, people.get):
        for path in others:
            # `find_repeated_names` reports scans of one name.
            if path.parent != first.parent and image_stem(path.name) != image_stem(first.name):
                yield error(
                    path,
                    f"{people[path]} is in {first.parent} too ({first.name})",
                    "put all scans of a person into one folder, as split_dataset.py does",
                )


def find_repeated_content(scans: Sequence[Examined]) -> Iterable[Finding]:
    """Scans with the same voxels, whatever their names and file formats."""
    readable = [scan for scan in scans if scan.content]
    for first, *others in _groups(readable, lambda scan: scan.content):
        for scan in others:
            yield error(scan.path, f"the same voxels as {first.path}", "keep the right one")


def find_mixture(scans: Sequence[Examined]) -> Iterable[Finding]:
    """Scans that were made in another way than most, or have no sidecar while others do."""
    sound = [scan for scan in scans if not scan.sidecar_damaged]
    counts = Counter(scan.made for scan in sound if scan.made)
    if not counts:
        return
    usual, count = counts.most_common(1)[0]
    for scan in sound:
        if scan.made == usual:
            continue
        found = scan.made or "no sidecar that says how it was made"
        yield error(
            scan.path,
            f"{found}; {count} of {len(scans)} scans: {usual}",
            "never mix them in one training: preprocess all scans alike, sidecars beside them",
        )


def _groups(items: Iterable, key: Callable[..., Hashable]) -> list[list]:
    """The items that share a key, for every key of several items; in their order."""
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return [group for group in groups.values() if len(group) > 1]


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Check folders of scans and their label sheet before training.")
    of_folders = "training, then validation, then any others (test); the first two need ages"
    parser.add_argument(
        "--folders", type=Path, nargs="+", required=True, metavar="DIR", help=of_folders
    )
    add_label_flags(parser, required=True)
    parser.add_argument(
        "--use_sex", action=Switch, default=True, help="whether training needs the sex"
    )
    add_subject_pattern(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the report, a .tsv file"
    )
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace that file")
    parser.add_argument(
        "--jobs", type=number(int, low=0), default=0, help="processes; 0: as many as cores"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Checks everything, writes the report, and raises ValueError if there are errors."""
    args = build_parser().parse_args(argv)
    if not args.overwrite:
        require_absent(args.output)
    if len({folder.resolve() for folder in args.folders}) < len(args.folders):
        raise ValueError(f"--folders {' '.join(map(str, args.folders))}: each folder once expected")
    paths, findings = find_folders(args.folders)
    codes = parse_sex_codes(args.sex_codes)
    labels, found = find_in_sheets(args.labels, paths, sex_codes=codes)
    findings += found
    if labels is not None:
        trained_on = args.folders[:2]
        findings += find_labels(paths, labels, trained_on=trained_on, use_sex=args.use_sex)
        findings += find_ages_outside(paths, labels, training=args.folders[0])
    findings += find_repeated_names(paths)
    findings += find_split_people(paths, pattern=args.subject_pattern)
    scans = examine_all(paths, jobs=args.jobs)
    findings += [finding for scan in scans for finding in scan.findings]
    findings += find_repeated_content(scans)
    findings += find_mixture(scans)

    order = {(str(path.parent), path.name): place for place, path in enumerate(paths)}
    findings.sort(key=lambda row: (row.severity, order.get((row.folder, row.scan), -1)))
    header = [column.name for column in fields(Finding)]
    write_tsv(args.output, [header, *map(astuple, findings)], overwrite=args.overwrite)
    errors = [row for row in findings if row.severity == "error"]
    print(
        f"{len(paths)} scans in {len(args.folders)} folders: {len(errors)} errors, "
        f"{len(findings) - len(errors)} notes; all of them: {args.output}"
    )
    raise_all([as_text(row) for row in errors])


def as_text(row: Finding) -> str:
    """The finding as a line of the error message."""
    where = str(Path(row.folder) / row.scan) if row.folder else row.scan
    return f"{f'{where}: ' if where else ''}{row.problem}; {row.what_to_do}"


if __name__ == "__main__":
    run_entry(main)
