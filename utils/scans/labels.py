"""The label sheet: which scan has which age and sex.

Read: .xls without a header row (as published), .xls, .xlsx, .csv, .tsv with one or without, and
BIDS participants.tsv. Everything is read as text and checked row by row; all problems are reported
at once, each with sheet, row and expectation, before any work.
"""

import csv
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cli import raise_all
from utils.files import (
    from_spreadsheet_text,
)
from utils.scans.volumes import image_stem

SEX_NAMES = {0: "F", 1: "M", None: "n/a"}


FEMALE, MALE = 0, 1
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
    # M/F is OASIS's, SEX_ID (1=m, 2=f) IXI's.
    "site": ("site", "scanner", "center", "centre", "site_id"),
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
        label, found = _read_row(cells, number, sex_codes)
        problems += [f"{path}, row {number}: {problem}" for problem in found]
        known = labels.setdefault(label.subject_id, label)
        if known is not label and (known.age, known.sex) != (label.age, label.sex):
            problems.append(
                f"{path}, row {number}: {label.subject_id} stands in row {known.row} already, "
                "with another age or sex"
            )
    if not labels:
        problems.append(f"{path}: no subject in it")
    return labels, problems


def label_of(scan: Path, labels: dict[str, Label]) -> Label | None:
    """The row of a scan: its exact name, or for BIDS names its session or its participant.

    `sub-1` is not `sub-10`: nothing is matched by a part of a name, except that BIDS sets the
    participant off with an underscore.
    """
    stem = image_stem(scan.name)
    if stem in labels:
        return labels[stem]
    session = re.match(r"sub-[A-Za-z0-9]+_ses-[A-Za-z0-9]+(?=_)", stem)
    participant = re.match(r"sub-[A-Za-z0-9]+(?=_)", stem)
    names = (found[0] for found in (session, participant) if found)
    return next((labels[name] for name in names if name in labels), None)


def read_rows(path: Path) -> list[list[str]]:
    """All cells of a .xls, .xlsx, .csv or .tsv as stripped text, row 1 first.

    The apostrophe that marks text in our own tables, see `as_spreadsheet_text`, is taken off.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, not UTF-8 text, or not a readable workbook.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such label sheet")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
        rows = _read_text(path, text)
    elif suffix in (".xls", ".xlsx"):
        rows = _read_workbook(path)
    else:
        raise ValueError(f"{path}: .xls, .xlsx, .csv or .tsv expected")
    return [[from_spreadsheet_text(str(cell).strip()) for cell in row] for row in rows]


def read_columns(
    path: str | Path, key: Sequence[str], parsers: Mapping[str, Callable[[str], object]]
) -> dict[str, dict]:
    """Some columns of a table with a header row, by the scan that each row is about.

    Args:
        path: as in `read_rows`.
        key: the column with the names of scans, or several of which the first found is read.
            Image suffixes are taken off the names.
        parsers: by column, a function of the cell's text; its ValueError says what it expects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: missing columns; or all problems of the rows, each with row, value and
            expectation.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    header, *rows = read_rows(path) or [[]]
    named = next((name for name in key if name in header), None)
    missing = [" or ".join(key)] if named is None else []
    missing += [name for name in parsers if name not in header]
    if missing:
        raise ValueError(f"{path}, row 1: no column {', '.join(missing)}; found {header}")
    places = {name: header.index(name) for name in (named, *parsers)}
    found, row_of, problems = {}, {}, []
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        cells = {name: row[at] if at < len(row) else "" for name, at in places.items()}
        name, where = image_stem(cells[named]), f"{path}, row {number}"
        if not name:
            problems.append(f"{where}: {named} is empty, the name of a scan expected")
        elif name in row_of:
            problems.append(f"{where}: {name} stands in row {row_of[name]} already, one expected")
        row_of.setdefault(name, number)
        found[name] = {}
        for column, parse in parsers.items():
            try:
                found[name][column] = parse(cells[column])
            except ValueError as error:
                problems.append(f"{where}: {name}: {column} {cells[column]!r}, {error} expected")
    raise_all(problems)
    return found


def parse_number(low: float, high: float, expected: str) -> Callable[[str], float]:
    """A parser for `read_columns`: a number from `low` to `high`, or ValueError(expected)."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= value <= high:
            raise ValueError(expected)
        return value

    return parse


def _read_text(path: Path, text: str) -> list[list[str]]:
    if "\0" in text:
        raise ValueError(f"{path}: NUL bytes in it, no text or UTF-16; save it as UTF-8 text")
    lines = text.splitlines()
    separator = "\t" if path.suffix.lower() == ".tsv" else _separator(lines)
    try:
        try:
            return list(csv.reader(lines, delimiter=separator, strict=True))
        except csv.Error as error:
            # Rows would vanish in a quote without an end; other quotes may stand anywhere.
            if "unexpected end of data" in str(error):
                raise
            return list(csv.reader(lines, delimiter=separator))
    except csv.Error as error:
        raise ValueError(
            f"{path}: not readable as a table ({error}); a quote without an end?"
        ) from error


def _separator(lines: list[str]) -> str:
    """The one of tab, semicolon and comma that the first line holds most of."""
    first = lines[0] if lines else ""
    return max(("\t", ";", ","), key=first.count)


def _read_workbook(path: Path) -> list[list[str]]:
    try:
        if path.suffix.lower() == ".xls":
            return _read_xls(path)
        return _read_xlsx(path)
    except Exception as error:  # the engines raise dozens of types for one cause: not a workbook
        raise ValueError(
            f"{path}: not a readable {path.suffix} workbook ({type(error).__name__}: {error}); "
            "save it again from a spreadsheet, or as .csv"
        ) from error


def _read_xls(path: Path) -> list[list[str]]:
    import xlrd

    def text(cell: xlrd.sheet.Cell) -> str:
        # xlrd gives the codes of errors and truth values as numbers: #REF! would be an age of 23.
        if cell.ctype == xlrd.XL_CELL_ERROR:
            return xlrd.error_text_from_code.get(cell.value, "#ERROR!")
        return (
            str(bool(cell.value)) if cell.ctype == xlrd.XL_CELL_BOOLEAN else _cell_text(cell.value)
        )

    with Path(os.devnull).open("w") as silent:  # it prints what it thinks of damaged files
        book = xlrd.open_workbook(path, logfile=silent)
    return [[text(cell) for cell in row] for row in book.sheet_by_index(0).get_rows()]


def _read_xlsx(path: Path) -> list[list[str]]:
    """Also tells formulas that no program has calculated, which hold no value, from empty cells."""
    values = _xlsx_cells(path, data_only=True)
    if any(cell is None for row in values for cell in row):
        for number, row in enumerate(_xlsx_cells(path, data_only=False)):
            for column, cell in enumerate(row):
                if (
                    isinstance(cell, str)
                    and cell.startswith("=")
                    and values[number][column] is None
                ):
                    raise ValueError(
                        f"row {number + 1}: {cell[:40]!r} is a formula that was never calculated"
                    )
    return [[_cell_text(cell) for cell in row] for row in values]


def _xlsx_cells(path: Path, *, data_only: bool) -> list[tuple]:
    import openpyxl  # slow to load: only when a workbook is read

    book = openpyxl.load_workbook(path, read_only=True, data_only=data_only)
    try:
        page = book.worksheets[0]
        page.reset_dimensions()  # what a file says of its size may be wrong
        return list(page.iter_rows(values_only=True))
    finally:
        book.close()


def _cell_text(cell: object) -> str:
    """Workbooks store whole numbers as floats: id 1001 must not become 1001.0."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def _find_columns(
    path: Path, rows: list[list[str]], *, need_ages: bool
) -> tuple[dict[str, int], int]:
    """Where id, age and sex stand, and the index of the first row of data."""
    if not rows:
        raise ValueError(f"{path}: empty")
    header = [re.sub(r"[^a-z0-9]+", "_", cell.lower()).strip("_") for cell in rows[0]]
    columns = {}
    for name, known in COLUMN_NAMES.items():
        found = [at for at, cell in enumerate(header) if cell in known]
        if found:
            at = columns[name] = min(found, key=lambda at: known.index(header[at]))
            if header.count(header[at]) > 1:
                raise ValueError(f"{path}, row 1: two columns named {rows[0][at]}, one expected")
    named = "age" in columns or "sex" in columns or (not need_ages and "subject_id" in columns)
    if not named:
        # No header row, as published; the first row is the first subject.
        second = rows[0][1] if len(rows[0]) > 1 else ""
        if len(rows[0]) < 2 or _parse_age(second)[1] is not None:
            raise ValueError(
                f"{path}, row 1: neither a header with {', '.join(COLUMN_NAMES)} nor a row of "
                f"file name, age, sex: its second cell is {second!r}; found {rows[0][:6]} "
                "(another separator?)"
            )
        return {"subject_id": 0, "age": 1, "sex": 2}, 0
    needed = ("subject_id", "age") if need_ages else ("subject_id",)
    missing = [name for name in needed if name not in columns]
    if missing:
        expected = "; ".join(f"{name}: {', '.join(COLUMN_NAMES[name])}" for name in missing)
        raise ValueError(f"{path}, row 1: no column named {expected}; found {rows[0]}")
    return columns, 1


def _read_row(
    cells: dict[str, str], number: int, sex_codes: dict[str, int] | None
) -> tuple[Label, list[str]]:
    """One row's label, and what is wrong with it."""
    subject_id = image_stem(cells["subject_id"])
    age, age_problem = _parse_age(cells.get("age", ""))
    sex, sex_problem = _parse_sex(cells.get("sex", ""), sex_codes)
    problems = [f"{subject_id}: {text}" for text in (age_problem, sex_problem) if text]
    if not subject_id:
        problems.append("the file name or id is empty")
    return Label(subject_id, age, sex, number, cells.get("site") or None), problems


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
