"""Label sheets of public cohorts: who was scanned, how old, which sex, which group and site.

Column names are compared without case and punctuation (`M/F` is `m_f`), in the spellings of the
releases. All problems of all tables are reported at once. A person whom two rows describe
differently is kept with the reason to doubt it, and the scan is left out later.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

from utils.cli import raise_all
from utils.people.codebook import DAYS_PER_YEAR, UNKNOWN_WORDS
from utils.people.sheets import first_row, read_rows

NEAREST_VISIT = 365  # days; a diagnosis further from the scan than this says little about it
SAME_AGE = 0.05  # years; tables repeat an age rounded differently
NO_ANSWER = (*UNKNOWN_WORDS, ".", "#n/a")
SEX_WORDS = {**dict.fromkeys(("f", "female"), "F"), **dict.fromkeys(("m", "male"), "M")}
MALE_1_FEMALE_2 = {**SEX_WORDS, "1": "M", "2": "F"}
DATE_FORMATS = ("%Y-%m-%d", "%m/%d/%Y", "%m/%d/%y")


@dataclass(frozen=True)
class Kind:
    """One kind of table.

    Attributes:
        title: its usual file name.
        needed: columns without which it is of no use: their spellings by our name for them,
            separated by blanks, the best one first.
        optional: columns that are used where the table has them, likewise.
    """

    title: str
    needed: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)

    def missing(self, header: Sequence[str]) -> list[str]:
        """The needed columns that `header` lacks."""
        return [name for name, known in self.needed.items() if not set(known.split()) & set(header)]


@dataclass(frozen=True)
class Row:
    """One row of a table. What cannot be read is added to `problems`, a list of all rows.

    Attributes:
        where: file and row.
        cells: text by our name of the column; empty where the table has no such column.
    """

    where: str
    cells: dict[str, str]
    problems: list[str]

    def number(self, column: str) -> float | None:
        """A number; None where unknown or masked (89+)."""
        text = self.cells[column].strip().lower()
        if text in NO_ANSWER or re.fullmatch(r"\d+\s*\+", text):
            return None
        try:
            return float(text.replace(",", "."))  # some sheets have decimal commas
        except ValueError:
            self._add_problem(column, "a number")
            return None

    def sex(self, codes: Mapping[str, str] = SEX_WORDS) -> str:
        """F or M by the words of `codes`; empty where unknown."""
        text = self.cells["sex"].strip().lower().removesuffix(".0")
        if text in NO_ANSWER:
            return ""
        if text not in codes:
            self._add_problem("sex", f"one of {', '.join(codes)}")
        return codes.get(text, "")

    def day(self, column: str) -> int | None:
        """The ordinal of a date, 2006-04-18 or 4/18/2006 (month first); None where unknown."""
        text = self.cells[column].strip()
        if text.lower() in NO_ANSWER:
            return None
        for form in DATE_FORMATS:
            try:
                return datetime.strptime(text.split()[0], form).date().toordinal()
            except ValueError:
                continue
        self._add_problem(column, f"a date such as {date(2006, 4, 18)} or 4/18/2006")
        return None

    def _add_problem(self, column: str, expected: str) -> None:
        found = self.cells[column]
        self.problems.append(f"{self.where}: {column} {found!r}, expected {expected}")


@dataclass
class Subject:
    """What the tables say about one scan, or about one person who was scanned.

    Attributes:
        where: file and row that say it.
        age: years, on `day` where that is known; None where unknown.
        sex: F, M, or empty where unknown.
        day: of `age`: a date as its ordinal (ADNI), or days since entry (OASIS-3).
        visits: what was found on which day, such as (180, "CDR 0.5").
        doubt: why none of this can be used, such as two rows that disagree; mostly empty.
    """

    where: str
    age: float | None = None
    sex: str = ""
    group: str = ""
    site: str = ""
    day: int | None = None
    visits: list[tuple[int, str]] = field(default_factory=list)
    doubt: str = ""

    def age_at(self, day: int | None) -> float | None:
        """Years at a scan of `day`; `age` itself where either day is unknown."""
        if self.age is None or day is None or self.day is None:
            return self.age
        return self.age + (day - self.day) / DAYS_PER_YEAR

    def group_at(self, day: int | None) -> str:
        """What the visit nearest to a scan of `day` found, within a year; else `group`."""
        away = [(abs(visited - day), found) for visited, found in self.visits if day is not None]
        days, found = min(away, default=(NEAREST_VISIT + 1, ""))
        return found if days <= NEAREST_VISIT else self.group


@dataclass(frozen=True)
class Listing:
    """All that the tables of a cohort say.

    Attributes:
        subjects: by the key under which the scan is found: a session, a person or an image.
        days: of scans, by image, where a table knows them.
        notes: sentences to print for the user.
    """

    subjects: dict[str, Subject]
    days: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_tables(
    paths: Sequence[Path], kinds: Mapping[str, Kind]
) -> tuple[dict[str, list[Row]], list[str]]:
    """Reads tables, each as the kind whose columns it has.

    Returns:
        The rows by kind, and the list to which they add their problems.

    Raises:
        FileNotFoundError: no such file.
        ValueError: for every table that is of no kind: the missing columns and those found.
    """
    tables: dict[str, list[Row]] = {name: [] for name in kinds}
    problems, problems_of_rows = [], []
    for path in paths:
        rows = read_rows(path) or [[]]
        start = first_row(rows)
        names = rows[start]
        header = [re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name in names]
        # The kind of which the table lacks least; of several, the one with most columns.
        title, kind = min(
            kinds.items(), key=lambda item: (len(item[1].missing(header)), -len(item[1].needed))
        )
        if missing := kind.missing(header):
            lacks = [f"{name} ({kind.needed[name].replace(' ', ' or ')})" for name in missing]
            found = ", ".join(names) or "nothing"
            problems.append(
                f"{path}: as {kind.title} it lacks {', '.join(lacks)}; columns found: {found}"
            )
            continue
        places = {}
        for column, known in {**kind.needed, **kind.optional}.items():
            name = next((name for name in known.split() if name in header), None)
            places[column] = None if name is None else header.index(name)
            if header.count(name) > 1:
                problems.append(f"{path}, row {start + 1}: two columns named {name}, one expected")
        for number, row in enumerate(rows[start + 1 :], start=start + 2):
            cells = {
                column: row[at] if at is not None and at < len(row) else ""
                for column, at in places.items()
            }
            if any(row):
                tables[title].append(Row(f"{path}, row {number}", cells, problems_of_rows))
    raise_all(problems)
    return tables, problems_of_rows


def merge(subjects: dict[str, Subject], key: str, found: Subject) -> None:
    """Adds what a row says to what is known under `key`; a contradiction becomes a doubt."""
    known = subjects.setdefault(key, found)
    if known is found:
        return
    for name in ("age", "sex", "day"):
        old, new = getattr(known, name), getattr(found, name)
        if old in (None, ""):
            setattr(known, name, new)
        elif new not in (None, "") and (abs(new - old) > SAME_AGE if name == "age" else new != old):
            known.doubt = f"{name} {old} in {known.where}, {new} in {found.where}"
    known.group, known.site = known.group or found.group, known.site or found.site
    known.visits += found.visits


@dataclass(frozen=True)
class People:
    """How to read tables with one row per person or session.

    Attributes:
        kind: of the tables, with the columns id, age and sex, and perhaps group and site.
        key: regular expression for the part of the id under which the scan is found (first group).
        codes: F or M by the words in the column of the sex.
        group: the group of a row.
    """

    kind: Kind
    key: str = "(.+)"
    codes: Mapping[str, str] = field(default_factory=lambda: SEX_WORDS)
    group: Callable[[Row], str] = lambda row: row.cells.get("group", "")

    def read(self, paths: Sequence[Path]) -> Listing:
        """Reads the tables; ValueError with all problems of all rows."""
        subjects: dict[str, Subject] = {}
        tables, problems = read_tables(paths, {"people": self.kind})
        for row in tables["people"]:
            subject_id, site = row.cells["id"], row.cells.get("site", "")
            found = re.search(self.key, subject_id)
            if not found:
                problems.append(f"{row.where}: id {subject_id!r}, expected as in {self.kind.title}")
                continue
            age, sex, group = row.number("age"), row.sex(self.codes), self.group(row)
            merge(subjects, found[1], Subject(row.where, age, sex, group, site))
        raise_all(problems)
        return Listing(subjects)
