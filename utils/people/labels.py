"""The label sheet: which scan has which age and sex.

The published sheet is an .xls without a header row; .xls, .xlsx, .csv and .tsv with and without
one, and participants.tsv of BIDS, are read too. Every row is checked, and all problems are reported
at once, each with sheet, row and expectation, before any work.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from utils.cli import raise_all
from utils.files import image_stem
from utils.people.bids_names import BIDS_LABEL
from utils.people.sheets import first_row, read_rows
from utils.people.text_tables import UNDECODED

FEMALE, MALE = 0, 1
SEX_NAMES = {FEMALE: "F", MALE: "M", None: "n/a"}
SEX_WORDS = {
    **dict.fromkeys(("0", "0.0", "f", "female", "woman", "girl"), FEMALE),
    **dict.fromkeys(("1", "1.0", "m", "male", "man", "boy"), MALE),
}
UNKNOWN_WORDS = ("", "n/a", "na", "nan", "none", "null", "unknown", "?", "-")
COLUMN_NAMES = {
    "subject_id": (
        "participant_id", "subject_id", "scan_id", "image_id", "id", "subject", "participant",
        "scan", "image", "file", "filename", "file_name", "name", "ixi_id", "session_id",
    ),
    "age": ("age", "age_years", "age_at_scan", "age_in_years", "chronological_age"),
    "site": ("site", "scanner", "center", "centre", "site_id"),
    # OASIS has M/F, IXI has SEX_ID (1=m, 2=f).
    "sex": ("sex", "gender", "sex_id", "m_f", "f_m", "sex_m_f", "sex_f_m", "sex_id_1_m_2_f"),
}  # fmt: skip
OLDEST_AGE = 120


@dataclass(frozen=True)
class Label:
    """One row of a sheet: age in years, sex (0 female, 1 male) and site, None where unknown."""

    subject_id: str
    age: float | None
    sex: int | None
    row: int
    site: str | None = None


def read_labels(
    path: str | Path, *, sex_codes: dict[str, int] | None = None, need_ages: bool = True
) -> dict[str, Label]:
    """Reads a label sheet.

    Args:
        path: .xls, .xlsx, .csv or .tsv; the first sheet of a workbook. Without a header row the
            columns are file name or id, age, sex.
        sex_codes: what the sheet's own codes mean, such as {"1": 1, "2": 0}; instead of 0 and 1.
        need_ages: whether a column of ages is needed; without, a column of names is enough.

    Returns:
        Labels by id: the file name without its image suffix, in the sheet's order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: all problems of the sheet, each with its row.
    """
    labels, problems = examine_labels(path, sex_codes=sex_codes, need_ages=need_ages)
    raise_all(problems)
    return labels


def examine_labels(
    path: str | Path, *, sex_codes: dict[str, int] | None = None, need_ages: bool = True
) -> tuple[dict[str, Label], list[str]]:
    """As `read_labels`, with all problems of the rows returned beside what could be read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no sheet, or one without the columns.
    """
    path = Path(path)
    rows = read_rows(path)
    columns, first = _find_columns(path, rows, need_ages=need_ages)
    labels: dict[str, Label] = {}
    problems: list[str] = []
    for number, row in enumerate(rows[first:], start=first + 1):
        if not any(row):
            continue
        cells = {name: row[at] if at < len(row) else "" for name, at in columns.items()}
        subject_id = image_stem(cells["subject_id"])
        age, age_problem = _parse_age(cells.get("age", ""))
        sex, sex_problem = _parse_sex(cells.get("sex", ""), sex_codes)
        found = [f"{subject_id}: {problem}" for problem in (age_problem, sex_problem) if problem]
        if not subject_id:
            found.append("the file name or id is empty")
        if UNDECODED.search(subject_id):
            found.append(f"{subject_id}: this name is not UTF-8; save the table as UTF-8")
        label = Label(subject_id, age, sex, number, cells.get("site") or None)
        known = labels.setdefault(subject_id, label)
        if (known.age, known.sex) != (age, sex):
            found.append(f"{subject_id} stands in row {known.row} already, with another age or sex")
        problems += [f"{path}, row {number}: {problem}" for problem in found]
    if not labels:
        problems.append(f"{path}: no subject in it")
    return labels, problems


def match_label(scan: Path, labels: dict[str, Label]) -> Label | None:
    """The row of a scan: its exact name, or for BIDS names its session or its participant.

    `sub-1` is not `sub-10`: nothing is matched by a part of a name, except that BIDS sets the
    participant off with an underscore.
    """
    stem = image_stem(scan.name)
    if stem in labels:
        return labels[stem]
    session = re.match(rf"sub-{BIDS_LABEL}_ses-{BIDS_LABEL}(?=_)", stem)
    participant = re.match(rf"sub-{BIDS_LABEL}(?=_)", stem)
    names = (found[0] for found in (session, participant) if found)
    return next((labels[name] for name in names if name in labels), None)


def _find_columns(
    path: Path, rows: list[list[str]], *, need_ages: bool
) -> tuple[dict[str, int], int]:
    """Where id, age and sex stand, and the index of the first row of data."""
    if not rows:
        raise ValueError(f"{path}: empty")
    start = first_row(rows)
    where = f"{path}, row {start + 1}"
    header = [re.sub(r"[^a-z0-9]+", "_", cell.lower()).strip("_") for cell in rows[start]]
    columns = {}
    for name, known in COLUMN_NAMES.items():
        found = [at for at, cell in enumerate(header) if cell in known]
        if found:
            at = columns[name] = min(found, key=lambda at: known.index(header[at]))
            if header.count(header[at]) > 1:
                raise ValueError(f"{where}: two columns named {rows[start][at]}, one expected")
    named = "age" in columns or "sex" in columns or (not need_ages and "subject_id" in columns)
    if not named:
        # No header row, as published; the first row is the first subject.
        second = rows[start][1] if len(rows[start]) > 1 else ""
        if len(rows[start]) < 2 or _parse_age(second)[1] is not None:
            raise ValueError(
                f"{where}: neither a header with {', '.join(COLUMN_NAMES)} nor a row of "
                f"file name, age, sex: its second cell is {second!r}; found {rows[start][:6]} "
                "(another separator?)"
            )
        # A single name above it may be a person of unknown age.
        return {"subject_id": 0, "age": 1, "sex": 2}, 0
    needed = ("subject_id", "age") if need_ages else ("subject_id",)
    missing = [name for name in needed if name not in columns]
    if missing:
        expected = "; ".join(f"{name}: {', '.join(COLUMN_NAMES[name])}" for name in missing)
        raise ValueError(f"{where}: no column named {expected}; found {rows[start]}")
    return columns, start + 1


def _parse_age(text: str) -> tuple[float | None, str | None]:
    """(years, None); (None, None) where unknown, 89+ included; (None, problem) otherwise."""
    word = text.lower()
    if word in UNKNOWN_WORDS or re.fullmatch(r"\d+\s*\+", word):
        return None, None
    if "_" in word:  # float() would take it
        return None, f"age {text!r}, expected years as a number"
    number = word.replace(",", ".") if re.fullmatch(r"\d+,\d+", word) else word
    try:
        age = float(number)
    except ValueError:
        return None, f"age {text!r}, expected years as a number"
    if math.isnan(age):
        return None, None
    if not 0 <= age <= OLDEST_AGE:
        return None, f"age {text}, expected years from 0 to {OLDEST_AGE} (months? days?)"
    return age, None


def _parse_sex(text: str, sex_codes: dict[str, int] | None) -> tuple[int | None, str | None]:
    word = text.lower()
    if word in (*UNKNOWN_WORDS, "o", "other"):  # BIDS has the last two
        return None, None
    codes = SEX_WORDS if sex_codes is None else sex_codes
    if word in codes:
        return codes[word], None
    if sex_codes is None and word in ("2", "2.0"):
        return None, (
            "sex 2, expected 0 female or 1 male; if the sheet codes 1 male and 2 female, "
            "give --sex_codes 1=male 2=female"
        )
    return None, f"sex {text!r}, expected one of {', '.join(codes)}"


def parse_sex_codes(pairs: list[str] | None) -> dict[str, int] | None:
    """{"1": 1, "2": 0} from ["1=male", "2=female"], the form of `--sex_codes`; None from None."""
    if not pairs:
        return None
    codes = {}
    for pair in pairs:
        code, _, word = pair.partition("=")
        if not code or word.lower() not in SEX_WORDS:
            raise ValueError(f"--sex_codes {pair!r}: CODE=male or CODE=female expected")
        codes[code.strip().lower()] = SEX_WORDS[word.lower()]
    return codes
