"""The label sheets: which scan has which age and sex, and of which site it is.

The published sheet is an .xls without a header row; .xls, .xlsx, .csv and .tsv with and without
one, and participants.tsv of BIDS with its sessions.tsv and scans.tsv, are read too. Every row is
checked, and all problems are reported at once, each with sheet, row and expectation, before any
work.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.cli import raise_all
from utils.files import SCAN_SUFFIXES
from utils.people.codebook import (
    SEX_WORDS,
    UNKNOWN_WORDS,
    WORDS_OF_SEX,
    DataDictionary,
    codes_in_header,
    parse_age,
    parse_sex,
    unit_in_header,
)
from utils.people.columns import FILES, IDS, find_columns, normalise
from utils.people.matching import Label, Matcher, first_of_each, is_person, scan_name
from utils.people.sheets import first_row, read_rows
from utils.people.text_tables import UNDECODED

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
            try:
                table = Table(further, sex_codes, need_ages=False)
                names = table.columns.names[0]
                if person and table.columns.session is not None:
                    names = table.columns.session
                labels += table.read(names, person=person)
                problems += table.problems
            except ValueError as error:
                problems.append(str(error))
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


def _tables_beside(participants: Path) -> list[tuple[Path, str]]:
    """The sessions.tsv of a dataset, each with its person, and the scans.tsv."""
    root = participants.parent
    sessions = [path for pattern in TABLES_OF_SESSIONS for path in sorted(root.glob(pattern))]
    scans = [path for pattern in TABLES_OF_SCANS for path in sorted(root.glob(pattern))]
    return [(path, path.name.removesuffix("_sessions.tsv")) for path in sessions] + [
        (path, "") for path in scans
    ]


class Table:
    """A table of people; what is wrong with its cells is in `problems`."""

    def __init__(self, path: Path, sex_codes: dict[str, int] | None, *, need_ages: bool):
        """Reads the table and finds its columns; `sex_codes` are the user's.

        Raises:
            FileNotFoundError, ValueError: as `examine_labels`.
        """
        self.path, self.problems = path, []
        rows = read_rows(path)
        if not rows:
            raise ValueError(f"{path}: empty")
        self.columns = find_columns(path, rows, first_row(rows), need_ages=need_ages)
        if self.columns.unclear:
            self.problems.append(
                f"{path}: no column of ages such as age, age_at_scan, age_months or Age (y); not "
                f"understood: {', '.join(self.columns.unclear)}; found {list(self.columns.header)}"
            )
        try:
            dictionary = DataDictionary(path)
        except ValueError as error:
            self.problems.append(str(error))
            dictionary = None
        below = enumerate(rows[self.columns.first :], self.columns.first + 1)
        self._rows = {number: row for number, row in below if any(row)}
        self._years_per_unit = self._find_unit(dictionary)
        self._sex_codes = self._find_sex_codes(sex_codes, dictionary)
        self._values = {number: self._read_values(row) for number, row in self._rows.items()}

    def choose_names(self, scans: Sequence[Path]) -> int:
        """The column that names the scans: one of file names before one of ids.

        Raises:
            ValueError: no column names scans; or two name as many, but contradict each other.
        """
        known, others = self.columns.names, self.columns.others
        if known and not scans:
            return known[0]
        files = [at for at in known if self._holds_files(at)]
        for group in (files, [at for at in known if at not in files], others):
            found = {at: self._find_all(at, scans) for at in group}
            best = max(map(len, found.values()), default=0)
            if best:
                chosen, *rivals = [at for at in group if len(found[at]) == best]
                for rival in rivals:
                    self._require_agreement(chosen, rival, found)
                return chosen
        if not known:
            raise ValueError(
                f"{self.path}: no column named {', '.join((*IDS, *FILES))}, and none names the "
                f"scans; found {list(self.columns.header)}"
            )
        return known[0]

    def read(self, names: int, *, person: str = "") -> list[Label]:
        """The labels of all rows by the names in a column; what is wrong goes to `problems`.

        Args:
            names: index of the column.
            person: whose sessions the column has; empty where it has names of people or scans.
        """
        labels, first_of = self._labels(names, person=person), {}
        for label in labels:
            where = f"{self.path}, row {label.row}"
            if not label.subject_id:
                self.problems.append(f"{where}: the file name or id is empty")
            if len(self._rows[label.row]) <= (self.columns.age or 0):
                text = f"{label.subject_id}: ends before the column of ages"
                self.problems.append(f"{where}: {text}; a line end or a missing cell in it?")
            if UNDECODED.search(name := _cell(self._rows[label.row], names)):
                text = f"{name}: this name is not UTF-8; save the table as UTF-8"
                self.problems.append(f"{where}: {text}")
            wrong = self._values[label.row][2]
            self.problems += [f"{where}: {label.subject_id}: {problem}" for problem in wrong]
            key = (label.subject_id, label.session, label.folders)
            first = first_of.setdefault(key, label)
            if (first.age, first.sex) != (label.age, label.sex):
                self.problems.append(
                    f"{where}: {label.subject_id} stands in row {first.row} already, with another "
                    "age or sex"
                )
        if self.columns.baseline and self.columns.session is not None:
            # The age at baseline, repeated in the rows of all sessions, is the person's.
            people = [replace(label, session=None) for label in labels]
            labels = people + [replace(label, age=None) for label in labels]
        return labels

    def _labels(self, names: int, *, person: str = "") -> list[Label]:
        labels = []
        for number, row in self._rows.items():
            age, sex, _ = self._values[number]
            *folders, name = re.split(r"[\\/]+", _cell(row, names).rstrip("\\/"))
            labels.append(
                Label(
                    person or scan_name(name),
                    age,
                    sex,
                    row=number,
                    source=self.path.name,
                    site=_known(_cell(row, self.columns.site)),
                    group=_known(_cell(row, self.columns.group)),
                    session=_cell(row, names if person else self.columns.session) or None,
                    folders=tuple(part for part in folders if part.strip(".") and ":" not in part),
                )
            )
        return labels

    def _find_all(self, names: int, scans: Sequence[Path]) -> dict[Path, Label]:
        """The scans that a column names, with their rows."""
        matcher = Matcher(self._labels(names), scans)
        return {scan: label for scan in scans if (label := matcher.find(scan))}

    def _require_agreement(
        self, chosen: int, rival: int, found: Mapping[int, Mapping[Path, Label]]
    ) -> None:
        """Raises ValueError where two columns give a scan another age or sex."""
        for scan, label in found[chosen].items():
            twin = found[rival].get(scan, label)
            if (label.age, label.sex) != (twin.age, twin.sex):
                header = self.columns.header
                raise ValueError(
                    f"{self.path}: {scan.name} is named by the column {header[chosen]} (row "
                    f"{label.row}) and by {header[rival]} (row {twin.row}), with another age or "
                    "sex; one of them expected: rename or remove the other"
                )

    def _holds_files(self, at: int) -> bool:
        """Whether a column holds the names of files, by its header or by the suffix of a cell."""
        if self.columns.header and normalise(self.columns.header[at]) in FILES:
            return True
        return any(_cell(row, at).lower().endswith(SCAN_SUFFIXES) for row in self._rows.values())

    def _read_values(self, row: Sequence[str]) -> tuple[float | None, int | None, list[str]]:
        """Age and sex of a row, and what is wrong with them."""
        age = sex = None
        problems = []
        text = _cell(row, self.columns.age)
        try:
            age = parse_age(text, self._years_per_unit) if self._years_per_unit else None
        except ValueError as error:
            problems.append(f"age {text!r}, {error}")
        text = _cell(row, self.columns.sex)
        try:
            sex = parse_sex(text, self._sex_codes)
        except ValueError as error:
            problems.append(f"sex {text!r}, {error}")
        return age, sex, problems

    def _find_unit(self, dictionary: DataDictionary | None) -> float | None:
        """Years per unit of the ages; None where that is not known."""
        if self.columns.age is None or not self.columns.header:
            return 1.0
        if dictionary is None:
            return None
        header = self.columns.header[self.columns.age]
        named = unit_in_header(header)
        try:
            stated = dictionary.years_per_unit(header)
        except ValueError as error:
            self.problems.append(str(error))
            return None
        if named and stated and named != stated:
            self.problems.append(
                f"{dictionary.path}: gives {header!r} another unit than its name has, so its ages "
                "are unknown; make them alike"
            )
            return None
        return named or stated or 1.0

    def _find_sex_codes(
        self, stated: dict[str, int] | None, dictionary: DataDictionary | None
    ) -> dict[str, int | None]:
        """What codes of the sexes mean: the user's, the dictionary's, the header's, or 0 and 1."""
        header = self.columns.header
        name = header[self.columns.sex] if header and self.columns.sex is not None else ""
        levels = dictionary.codes_of_sex(name) if dictionary else {}
        if codes := stated or levels or codes_in_header(name):
            return WORDS_OF_SEX | codes
        cells = {
            number: _cell(row, self.columns.sex).removesuffix(".0")
            for number, row in self._rows.items()
        }
        twos = [number for number, cell in cells.items() if cell == "2"]
        if twos:
            self.problems.append(
                f"{self.path}, row {twos[0]}: sex 2, expected 0 female or 1 male; beside a 2 a 1 "
                "may be either: give --sex_codes 1=male 2=female, or --sex_codes 1=female 2=male"
            )
        if twos or dictionary is None:
            return WORDS_OF_SEX | dict.fromkeys(filter(str.isdigit, cells.values()), None)
        return SEX_WORDS


def _known(cell: str) -> str | None:
    return None if cell.lower() in UNKNOWN_WORDS else cell


def _cell(row: Sequence[str], at: int | None) -> str:
    """A cell; empty where the table has no such column, or the row ends before it."""
    return row[at] if at is not None and at < len(row) else ""
