"""The label sheets: which scan has which age and sex, and of which site it is.

The published sheet is an .xls without a header row; .xls, .xlsx, .csv and .tsv with and without
one, and participants.tsv of BIDS with its sessions.tsv and scans.tsv, are read too. Every row is
checked, and all problems are reported at once, each with sheet, row and expectation, before any
work.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.cli import raise_all
from utils.people.matching import Label, Matcher, first_of_each, is_person
from utils.people.table import Table

PARTICIPANTS = "participants.tsv"
TABLES_OF_SESSIONS = ("sub-*/sub-*_sessions.tsv",)
TABLES_OF_SCANS = ("sub-*/sub-*_scans.tsv", "sub-*/ses-*/sub-*_scans.tsv")
SHOWN = 3  # scans that a note names


@dataclass(frozen=True)
class LabelSheet:
    """The rows of one label sheet or several, and of the tables that BIDS keeps beside them.

    Attributes:
        matchers: one for each sheet, by its path: finds the row of a scan.
        rows: by id, in the sheets' order; a row of a session is called `sub-01_ses-2`.
        site: of the scans of which no sheet gives one; None where it is unknown.
    """

    matchers: dict[Path, Matcher] = field(repr=False)
    rows: dict[str, Label]
    site: str | None = None

    @property
    def names(self) -> str:
        """The paths of the sheets."""
        return " and ".join(map(str, self.matchers))

    def find(self, scan: Path) -> Label | None:
        """What the sheets say of a scan; None where they have no row of it."""
        found = self._find_all(scan).values()
        if not found:
            return None
        # A sheet that knows the age goes before one that has a doubt about it.
        label = first_of_each(sorted(found, key=lambda label: label.age is None))
        return label if label.site else replace(label, site=self.site)

    def _find_all(self, scan: Path) -> dict[Path, Label]:
        """What each sheet says of a scan, by path; an exact name goes before 1 for 001."""
        found = {
            path: label for path, matcher in self.matchers.items() if (label := matcher.find(scan))
        }
        exact = {path: label for path, label in found.items() if is_person(scan, label)}
        return exact or found

    def contradictions(self, scans: Sequence[Path]) -> list[str]:
        """Where two sheets say something else of one scan, each with both rows."""
        problems = []
        for scan in scans if len(self.matchers) > 1 else ():
            found = self._find_all(scan)
            for name in ("age", "sex", "site"):
                known = [pair for pair in found.items() if getattr(pair[1], name) is not None]
                for path, label in known[1:]:
                    (first, twin), value = known[0], getattr(label, name)
                    if value != getattr(twin, name):
                        problems.append(
                            f"{path}, row {label.row}: {scan.name}: {name} {value}, but "
                            f"{getattr(twin, name)} in {first}, row {twin.row}: expected once, or "
                            "alike in both; correct or remove one of them"
                        )
        return problems

    def notes(self, found: Sequence[tuple[Path, Label | None]]) -> list[str]:
        """What users must know of the labels that were found for their scans."""
        if found and not any(label for _, label in found):
            row, scan = next(iter(self.rows), "nothing"), found[0][0].name
            return [
                f"WARNING: {self.names} has no row of any of the {len(found)} scans, so nothing is "
                f"known of their ages: a row is named {row!r}, a scan {scan!r}; make them alike"
            ]
        doubts: dict[str, list[str]] = {}
        for scan, label in found:
            if label and label.doubt:
                doubts.setdefault(label.doubt, []).append(scan.name)
        return [
            f"note: no age for {', '.join(scans[:SHOWN])}"
            f"{f' and {len(scans) - SHOWN} more' * (len(scans) > SHOWN)}: {doubt}"
            for doubt, scans in doubts.items()
        ]


def read_labels(
    paths: str | Path | Sequence[str | Path],
    scans: Sequence[Path] = (),
    *,
    sex_codes: dict[str, int] | None = None,
    need_ages: bool = True,
    site: str | None = None,
) -> LabelSheet:
    """Reads label sheets, and prints what users must know of the labels of their scans.

    Args:
        paths: of one sheet or several: .xls, .xlsx, .csv or .tsv; the first visible sheet of a
            workbook. Without a header row the columns are file name or id, age, sex.
        scans: all scans at hand: they decide which column names them, and which names are unique.
        sex_codes: what the sheet's own codes mean, such as {"1": 1, "2": 0}; instead of 0 and 1.
        need_ages: whether a column of ages is needed; without, a column of names is enough.
        site: of the scans of which no sheet gives one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: all problems of the sheets, each with its row; two sheets that contradict each
            other about a scan.
    """
    sheet, problems = examine_labels(paths, scans, sex_codes=sex_codes, need_ages=need_ages)
    raise_all(problems)
    sheet = replace(sheet, site=site)
    for note in sheet.notes([(scan, sheet.find(scan)) for scan in scans]):
        print(note)
    return sheet


def examine_labels(
    paths: str | Path | Sequence[str | Path],
    scans: Sequence[Path] = (),
    *,
    sex_codes: dict[str, int] | None = None,
    need_ages: bool = True,
) -> tuple[LabelSheet, list[str]]:
    """As `read_labels`, with all problems of the rows returned beside what could be read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no sheet, or one without the columns; two columns that contradict each other.
    """
    sheet, problems = LabelSheet({}, {}), []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        labels, found = _read_sheet(Path(path), scans, sex_codes, need_ages=need_ages)
        sheet.matchers[Path(path)] = Matcher(labels, scans)
        sheet.rows.update(_name_rows(labels) | sheet.rows)
        problems += found
    return sheet, problems + sheet.contradictions(scans)


def _read_sheet(
    path: Path, scans: Sequence[Path], sex_codes: dict[str, int] | None, *, need_ages: bool
) -> tuple[list[Label], list[str]]:
    """The rows of a sheet and of the tables beside it, and what is wrong with them."""
    table = Table(path, sex_codes, need_ages=need_ages)
    labels = table.read(table.choose_names(scans))
    problems = table.problems
    if not labels:
        problems.append(f"{path}: no subject in it")
    if path.name == PARTICIPANTS:
        for further, person in _tables_beside(path):
            found, wrong = _read_further(further, person, sex_codes)
            labels += found
            problems += wrong
    return labels, problems


def _name_rows(labels: Sequence[Label]) -> dict[str, Label]:
    """The rows by id; of several sessions with the session."""
    rows: dict[str, Label] = {}
    times = Counter(label.subject_id for label in labels)
    for label in labels:
        name = "/".join((*label.folders, label.subject_id))
        if label.session and times[label.subject_id] > 1:
            name += f"_ses-{label.session.removeprefix('ses-')}"
        rows.setdefault(name, label)
    return rows


def _read_further(
    path: Path, person: str, sex_codes: dict[str, int] | None
) -> tuple[list[Label], list[str]]:
    """The labels of a sessions.tsv of a person, or of a scans.tsv, and what is wrong with it."""
    try:
        table = Table(path, sex_codes, need_ages=False)
        columns = table.columns
        sessions = [columns.session] if person and columns.session is not None else []
        if not (names := [*sessions, *columns.names]):
            expected = "session_id" if person else "filename"
            raise ValueError(f"{path}: no column {expected}; found {list(columns.header)}")
        return table.read(names[0], person=person), table.problems
    except ValueError as error:
        return [], [str(error)]


def _tables_beside(participants: Path) -> list[tuple[Path, str]]:
    """The sessions.tsv of a dataset, each with its person, and the scans.tsv."""
    root = participants.parent
    sessions = [path for pattern in TABLES_OF_SESSIONS for path in sorted(root.glob(pattern))]
    scans = [path for pattern in TABLES_OF_SCANS for path in sorted(root.glob(pattern))]
    return [(path, path.name.removesuffix("_sessions.tsv")) for path in sessions] + [
        (path, "") for path in scans
    ]
