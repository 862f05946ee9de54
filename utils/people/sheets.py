"""The one reader of tables: .xls, .xlsx, .csv and .tsv, every cell as text.

Label sheets, tables of folds and tables of predicted ages are all read here; text_tables.py and
workbooks.py hold what is particular to either kind.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.cli import raise_all
from utils.files import from_spreadsheet_text, image_stem, require_fetched
from utils.people.text_tables import MARKED_ENCODINGS, read_text_table
from utils.people.workbooks import is_workbook, read_workbook

TEXTS, WORKBOOKS = (".csv", ".tsv", ".txt"), (".xls", ".xlsx")
# Blanks of any width; and what DOS, web pages and Windows leave: an end of file, zero-width blanks
# and marks of direction.
INVISIBLE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + (
    "\x1a\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)


def read_rows(path: Path) -> list[list[str]]:
    """All cells of a .xls, .xlsx, .csv, .tsv or .txt as stripped text, row 1 first.

    The content decides which kind it is: programs write text, and each kind of workbook, under the
    name of another. The apostrophe with which our own tables mark text, see
    `as_spreadsheet_text`, is removed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not fetched yet, another format, not a readable workbook, or rows of text that
            are unclear.
    """
    require_fetched(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    suffix = path.suffix.lower()
    if suffix not in (*TEXTS, *WORKBOOKS):
        raise ValueError(
            f"{path}: .xls, .xlsx, .csv or .tsv expected; save it as one of these in the program "
            "that wrote it"
        )
    if path.name.startswith("._"):
        raise ValueError(f"{path}: what macOS keeps beside a file; give the file without '._'")
    content = path.read_bytes()
    if suffix in WORKBOOKS and content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ValueError(
            f"{path}: HTML or XML, not a readable {path.suffix} workbook; open it in a spreadsheet "
            "and save it again as .xlsx"
        )
    no_text = suffix in WORKBOOKS and (not content.strip() or b"\0" in content)
    if is_workbook(content) or (no_text and not content.startswith(tuple(MARKED_ENCODINGS))):
        rows = read_workbook(path, content)
    else:
        rows = read_text_table(path, content)
    return [[_clean(cell) for cell in row] for row in rows]


def _clean(cell: str) -> str:
    """The cell without blanks and invisible characters around it, and without our apostrophe."""
    return from_spreadsheet_text(cell.strip(INVISIBLE))


def first_row(rows: Sequence[Sequence[str]]) -> int:
    """The index of the row where the table begins, its header where it has one.

    Blank rows are skipped, and rows with a single filled cell above a row with several: titles.
    """
    filled = [sum(map(bool, row)) for row in rows]
    begins = (at for least in (2, 1) for at, cells in enumerate(filled) if cells >= least)
    return next(begins, 0)


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
        ValueError: as `parse_columns`.
    """
    return parse_columns(path, read_rows(Path(path)), key, parsers)


def parse_columns(
    path: str | Path,
    rows: list[list[str]],
    key: Sequence[str],
    parsers: Mapping[str, Callable[[str], object]],
) -> dict[str, dict]:
    """As `read_columns`, of `rows` that `read_rows` has read of `path` already.

    Raises:
        ValueError: missing columns; or all problems of the rows, each with row, value and
            expectation.
    """
    start = first_row(rows)
    named, places = _choose_columns(path, rows, key, list(parsers))
    found, row_of, problems = {}, {}, []
    for number, row in enumerate(rows, start=1):
        if number <= start + 1 or not any(row):
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


def _choose_columns(
    path: str | Path, rows: list[list[str]], key: Sequence[str], columns: list[str]
) -> tuple[str, dict[str, int]]:
    """Which column of `key` there is, and where it and `columns` stand."""
    start = first_row(rows)
    header, where = (rows or [[]])[start], f"{path}, row {start + 1}"
    named = next((name for name in key if name in header), " or ".join(key))
    missing = [name for name in (named, *columns) if name not in header]
    if missing:
        raise ValueError(f"{where}: no column {', '.join(missing)}; found {header}")
    if double := [name for name in (named, *columns) if header.count(name) > 1]:
        raise ValueError(f"{where}: two columns named {', '.join(double)}, one expected")
    return named, {name: header.index(name) for name in (named, *columns)}


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
