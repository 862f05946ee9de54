"""Which columns of a table hold names, sessions, ages, sexes and sites, by its header.

Headers are compared without case and punctuation: `AgeAtScan` and `Age at scan` are `age_at_scan`.
Which of several columns with names is meant, the scans decide: see table.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.people.codebook import YEARS_PER_UNIT, parse_age

# Best first.
FILES = ("file_name", "filename", "file", "scan_file", "image_file", "image", "scan", "t1", "t1w",
         "nifti", "path", "file_path", "filepath", "scan_path")  # fmt: skip
IDS = ("participant_id", "subject_id", "scan_id", "image_id", "mri_id", "id", "subject",
       "participant", "patient_id", "patient", "name", "ixi_id", "oasisid", "record_id", "eid",
       "session_id")  # fmt: skip
SESSIONS = ("session_id", "session", "ses", "visit_id", "visit", "timepoint", "time_point", "wave",
            "redcap_event_name", "event_name")  # fmt: skip
GROUPS = ("group", "diagnosis")
SITES = ("site", "scanner", "center", "centre", "site_id", "study")
SEX = re.compile(
    r"((subject|participant|patient|biological)_)?(sexe?|sexo|gender|geschlecht)"
    r"(_(id|code|at_birth|text|label|name))?(_(\d+|\d*(m|f|w|male|female|man|woman)\d*))*"
    r"|m_f|f_m|(is_)?(fe)?male"
)
LONGEST_HEADER = 40
# The words that the header of an age may have; with any other (age_at_onset) it is another age.
AGE = {"age", "ages"}
FILLERS = {"chronological", "subject", "participant", "patient", "in", "at", "on", "of", "the",
           "time", "date", "study"}  # fmt: skip
SCANNED = {"scan", "scanning", "mri", "mr", "imaging", "acquisition"}
VISITED = {"session", "visit"}
TESTED = {"test", "testing", "assessment", "exam", "examination"}
FIRST = {"first", "initial", "baseline", "entry", "enrolment", "enrollment", "inclusion", "bl"}


@dataclass(frozen=True)
class Columns:
    """Where the columns of a table stand; None where it has none.

    Attributes:
        header: as it stands; empty where the table has none.
        first: index of the first row of people.
        names: the columns whose headers say that they name scans or people, the likeliest first.
        others: further columns, which may name the scans all the same.
        baseline: whether the age is that at the first session, whatever the row is about.
        unclear: headers that speak of an age, where none is understood.
    """

    header: Sequence[str]
    first: int
    names: Sequence[int]
    others: Sequence[int] = ()
    baseline: bool = False
    age: int | None = None
    sex: int | None = None
    session: int | None = None
    site: int | None = None
    group: int | None = None
    unclear: Sequence[str] = ()


def find_columns(
    path: Path, rows: Sequence[Sequence[str]], start: int, *, need_ages: bool
) -> Columns:
    """Finds the columns of a table whose header, or first person, is row `start`.

    Args:
        path: of the table, for messages.
        rows: its cells.
        start: index of the header.
        need_ages: whether a column of ages is needed; without, one of names is enough.

    Raises:
        ValueError: columns that are missing, or twice there.
    """
    header, where = rows[start], f"{path}, row {start + 1}"
    words = [normalise(cell) for cell in header]
    ages, unclear = _find_ages(words)
    sexes = [at for at, word in enumerate(words) if SEX.fullmatch(word)]
    below = [row for row in rows[start + 1 :] if len(row) >= len(words)]
    coded = {at for at in sexes if any(row[at][:1].isdigit() for row in below)}
    sex = min(
        sexes, key=lambda at: (at in coded, not words[at].startswith("sex"), at), default=None
    )
    session, site, group = (_first_of(known, words) for known in (SESSIONS, SITES, GROUPS))
    names = [at for at in _all_of((*FILES, *IDS), words) if at != session]
    taken = {*names, *sexes, session, site, group, *(at for at, _ in ages), *unclear}
    others = [at for at in range(len(words)) if at not in taken]
    if not names and session is not None and (words[session] == "session_id" or not others):
        names = [session]
    if not (ages or sex is not None or (names and (unclear or not need_ages))):
        return _without_header(path, rows, start)
    for at in (*(at for at, _ in ages[:1]), sex, *names):
        if at is not None and words.count(words[at]) > 1:
            raise ValueError(f"{where}: two columns named {header[at]}, one expected")
    _require_one_table(path, rows, start)
    if not ages and need_ages:
        raise ValueError(
            f"{where}: no column of ages such as age, age_at_scan, age_months or Age (y); found "
            f"{list(header)}: rename the column"
        )
    if not names and not others:
        raise ValueError(f"{where}: no column with names of scans; found {list(header)}")
    age, baseline = ages[0] if ages else (None, False)
    places = {"age": age, "sex": sex, "session": session, "site": site, "group": group}
    if not ages:
        places["unclear"] = [header[at] for at in unclear]
    return Columns(header, start + 1, names, others, baseline, **places)


def normalise(header: str) -> str:
    """`AgeAtScan (years)` as `age_at_scan_years`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", header.strip())
    name = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    return re.sub(r"^ageat_?", "age_at_", name)


def _find_ages(headers: Sequence[str]) -> tuple[list[tuple[int, bool]], list[int]]:
    """The columns of ages, that at the scan first, and whether each is the age at the first one.

    And the columns of other ages, such as age_at_onset.
    """
    found, others = [], []
    for at, header in enumerate(headers):
        words = header.split("_")
        if not AGE & set(words):
            continue
        rest = words[:-1] if words[-1] in YEARS_PER_UNIT else words
        if set(rest) - AGE - FILLERS - SCANNED - VISITED - TESTED - FIRST:
            others.append(at)
            continue
        baseline = bool(FIRST & set(rest))
        kinds = (SCANNED & set(rest), VISITED & set(rest), not TESTED & set(rest))
        rank = 4 if baseline else next((at for at, kind in enumerate(kinds) if kind), 3)
        found.append((rank, len(words), at, baseline))
    return [(at, baseline) for *_, at, baseline in sorted(found)], others


def _require_one_table(path: Path, rows: Sequence[Sequence[str]], start: int) -> None:
    """Raises ValueError for a further header with other columns: a table below the table."""
    header = [cell.strip().lower() for cell in rows[start]]
    for number, row in enumerate(rows[start + 1 :], start + 2):
        cells = [cell.strip().lower() for cell in row]
        if not any("age" in cell for cell in cells) or cells == header:
            continue
        words = [normalise(cell) for cell in row if len(cell) < LONGEST_HEADER]
        known = [word for word in words if word in (*FILES, *IDS) or SEX.fullmatch(word)]
        if _find_ages(words)[0] and known:
            raise ValueError(
                f"{path}, row {number}: a further header, other than that in row {start + 1}; one "
                f"table expected, with one row above the people: found {list(row[:6])}"
            )


def _without_header(path: Path, rows: Sequence[Sequence[str]], start: int) -> Columns:
    """A table without a header, as published: file name, age, sex; row `start` is a person's."""
    second, third = [*rows[start][1:3], "", ""][:2]
    try:
        if len(rows[start]) < 2 or (third.replace(".", "").isdigit() and float(third) > 9):
            raise ValueError  # the third is an age, so the second is none
        parse_age(second)
    except ValueError:
        raise ValueError(
            f"{path}, row {start + 1}: neither a header with subject_id, age, sex, nor a row of "
            f"file name, age, sex: found {list(rows[start][:6])}, whose "
            "second cell is no age, or whose third is one (another separator?)"
        ) from None
    first = next((at for at, row in enumerate(rows) if any(row)), start)  # loses nobody
    return Columns((), first, [0], age=1, sex=2)


def _all_of(known: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the known names stand, in their own order."""
    found = [at for at, name in enumerate(names) if name in known]
    return sorted(found, key=lambda at: known.index(names[at]))


def _first_of(known: Sequence[str], names: Sequence[str]) -> int | None:
    return next(iter(_all_of(known, names)), None)
