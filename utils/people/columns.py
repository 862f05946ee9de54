"""Which columns of a table hold names, sessions, ages, sexes and sites, by its header.

Headers are compared without case and punctuation: `AgeAtScan` and `Age at scan` are `age_at_scan`.
Which of several columns with names is meant, the scans decide: see labels.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.files import SCAN_SUFFIXES
from utils.people.codebook import YEARS_PER_UNIT, parse_age

# Best first.
FILES = ("file_name", "filename", "file", "scan_file", "image_file", "image", "scan", "t1", "t1w",
         "nifti", "path", "file_path", "filepath", "scan_path")  # fmt: skip
IDS = ("participant_id", "subject_id", "scan_id", "image_id", "mri_id", "id", "subject",
       "participant", "patient_id", "patient", "name", "ixi_id", "session_id")  # fmt: skip
SESSIONS = ("session_id", "session", "ses", "visit_id", "visit", "timepoint", "time_point", "wave")
SITES = ("site", "scanner", "center", "centre", "site_id", "study")
SEX = re.compile(
    r"((subject|participant|patient|biological)_)?(sex|gender)(_(id|code|at_birth|m_f|f_m))?"
    r"|sex_id_[\dmf_]+|m_f|f_m|(is_)?(fe)?male"
)
# The words that the header of an age may have; with any other (age_at_onset) it is another age.
AGE = {"age", "ages"}
FILLERS = {"chronological", "subject", "participant", "patient", "in", "at", "on", "of", "the",
           "time", "date", "study"}  # fmt: skip
SCANNED = {"scan", "scanning", "mri", "mr", "t1", "imaging", "session", "visit", "acquisition",
           "test", "testing", "assessment", "exam", "examination"}  # fmt: skip
FIRST = {"first", "initial", "baseline", "entry", "enrolment", "enrollment", "inclusion", "bl"}


@dataclass(frozen=True)
class Age:
    """A column of ages: where it stands, and whether all of a person's rows repeat the first."""

    at: int
    baseline: bool = False


@dataclass(frozen=True)
class Columns:
    """Where the columns of a table stand; None where it has none.

    Attributes:
        header: as it stands; empty where the table has none.
        first: index of the first row of people.
        names: the columns that may name the scans, the likeliest first.
    """

    header: Sequence[str]
    first: int
    names: Sequence[int]
    age: Age | None = None
    sex: int | None = None
    session: int | None = None
    site: int | None = None


def find_columns(
    path: Path, rows: Sequence[Sequence[str]], start: int, *, need_ages: bool
) -> Columns:
    """Finds the columns of a table whose header, or first person, is row `start`.

    Args:
        path: of the table, for messages.
        rows: its cells.
        start: index of the header.
        need_ages: whether a column of ages is needed; without, one of names is enough, unless a
            header speaks of an age that is not understood.

    Raises:
        ValueError: columns that are missing, not understood, or twice there.
    """
    header = rows[start]
    names = [normalise(cell) for cell in header]
    ages, others = _find_ages(names)
    sex = next((at for at, name in enumerate(names) if SEX.fullmatch(name)), None)
    session = _first_of(SESSIONS, names)
    named = [at for known in (FILES, IDS) for at in _all_of(known, names)]
    if set(named) - {session}:
        named = [at for at in named if at != session]
    if not (ages or sex is not None or (named and (others or not need_ages))):
        return _without_header(path, rows, start)
    where = f"{path}, row {start + 1}"
    for at in (*(age.at for age in ages[:1]), sex, *named):
        if at is not None and names.count(names[at]) > 1:
            raise ValueError(f"{where}: two columns named {header[at]}, one expected")
    if not ages and (need_ages or others):
        seen = f", not understood: {', '.join(header[at] for at in others)}" if others else ""
        raise ValueError(
            f"{where}: no column of ages such as age, age_at_scan, age_months or Age (y){seen}; "
            f"found {list(header)}: rename the column"
        )
    site = _first_of(SITES, names)
    taken = {sex, session, site, *(age.at for age in ages)}
    if not named:
        raise ValueError(
            f"{where}: no column named subject_id: {', '.join((*IDS, *FILES))}; found {list(header)}"
        )
    named += [at for at in range(len(names)) if at not in (*named, *taken)]
    return Columns(header, start + 1, named, ages[0] if ages else None, sex, session, site)


def normalise(header: str) -> str:
    """`AgeAtScan (years)` as `age_at_scan_years`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", header.strip())
    name = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    return re.sub(r"^ageat_?", "age_at_", name)


def is_of_files(rows: Sequence[Sequence[str]], columns: Columns, at: int) -> bool:
    """Whether a column holds the names of files, by its header or by the suffix of a cell."""
    if columns.header and normalise(columns.header[at]) in FILES:
        return True
    cells = (row[at] for row in rows[columns.first :] if at < len(row))
    return any(cell.lower().endswith(SCAN_SUFFIXES) for cell in cells)


def _find_ages(names: Sequence[str]) -> tuple[list[Age], list[int]]:
    """The columns of ages, that at the scan first; and those of other ages, such as age_group."""
    found, others = [], []
    for at, name in enumerate(names):
        words = name.split("_")
        if not AGE & set(words):
            continue
        rest = words[:-1] if words[-1] in YEARS_PER_UNIT else words
        if set(rest) - AGE - FILLERS - SCANNED - FIRST:
            others.append(at)
            continue
        baseline = bool(FIRST & set(rest))
        rank = 2 if baseline else not SCANNED & set(rest)
        found.append((rank, len(words), at, baseline))
    return [Age(at, baseline) for *_, at, baseline in sorted(found)], others


def _without_header(path: Path, rows: Sequence[Sequence[str]], start: int) -> Columns:
    """A table without a header, as published: file name, age, sex; row `start` is a person's."""
    second = rows[start][1] if len(rows[start]) > 1 else ""
    try:
        if len(rows[start]) < 2:
            raise ValueError
        parse_age(second)
    except ValueError:
        raise ValueError(
            f"{path}, row {start + 1}: neither a header with subject_id, age, sex, nor a row of "
            f"file name, age, sex: its second cell is {second!r}; found {list(rows[start][:6])} "
            "(another separator?)"
        ) from None
    return Columns((), start, [0], Age(1), 2)


def _all_of(known: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the known names stand, in their own order."""
    found = [at for at, name in enumerate(names) if name in known]
    return sorted(found, key=lambda at: known.index(names[at]))


def _first_of(known: Sequence[str], names: Sequence[str]) -> int | None:
    return next(iter(_all_of(known, names)), None)
