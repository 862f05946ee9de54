"""The one reader of tables: .xls, .xlsx, .csv and .tsv, every cell as text.

Label sheets, tables of folds and tables of predicted ages are all read here.
"""

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.cli import raise_all
from utils.files import from_spreadsheet_text, image_stem


def read_rows(path: Path) -> list[list[str]]:
    """All cells of a .xls, .xlsx, .csv or .tsv as stripped text, row 1 first.

    The apostrophe with which our own tables mark text, see `as_spreadsheet_text`, is removed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, not UTF-8 text, or not a readable workbook.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        rows = _read_text(path)
    elif suffix in (".xls", ".xlsx"):
        try:
            rows = _read_xls(path) if suffix == ".xls" else _read_xlsx(path)
        except Exception as error:  # the engines raise dozens of types where it is no workbook
            raise ValueError(
                f"{path}: not a readable {path.suffix} workbook ({type(error).__name__}: {error}); "
                "save it again from a spreadsheet, or as .csv"
            ) from error
    else:
        raise ValueError(f"{path}: .xls, .xlsx, .csv or .tsv expected")
    return [[from_spreadsheet_text(str(cell).strip()) for cell in row] for row in rows]


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
        ValueError: missing columns; or all problems of the rows, each with row, value and
            expectation.
    """
    rows = read_rows(Path(path))
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


def _read_text(path: Path) -> list[list[str]]:
    """The cells of a text file, separated by tab, semicolon or comma: what row 1 has most of."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path}: NUL bytes in it, no text or UTF-16; save it as UTF-8 text")
    lines = text.splitlines()
    separator = max(("\t", ";", ","), key=(lines or [""])[0].count)
    if path.suffix.lower() == ".tsv":
        separator = "\t"
    try:
        try:
            return list(csv.reader(lines, delimiter=separator, strict=True))
        except csv.Error as error:
            # A quote without an end would swallow rows; other quotes may stand anywhere.
            if "unexpected end of data" in str(error):
                raise
            return list(csv.reader(lines, delimiter=separator))
    except csv.Error as error:
        raise ValueError(
            f"{path}: not readable as a table ({error}); a quote without an end?"
        ) from error


def _read_xls(path: Path) -> list[list[str]]:
    """The cells of the first sheet; errors (#REF!) and truth values as their words."""
    import xlrd

    with Path(os.devnull).open("w") as silent:  # it prints warnings about damaged files
        book = xlrd.open_workbook(path, logfile=silent)
    # xlrd gives both as numbers: #REF! would be an age of 23.
    words = {
        xlrd.XL_CELL_ERROR: lambda code: xlrd.error_text_from_code.get(code, "#ERROR!"),
        xlrd.XL_CELL_BOOLEAN: lambda value: str(bool(value)),
    }
    return [
        [words.get(cell.ctype, _cell_text)(cell.value) for cell in row]
        for row in book.sheet_by_index(0).get_rows()
    ]


def _read_xlsx(path: Path) -> list[list[str]]:
    """The cells of the first sheet; ValueError for formulas that no program has calculated."""
    import openpyxl  # slow to load: only when a workbook is read

    def cells(*, data_only: bool) -> list[tuple]:
        book = openpyxl.load_workbook(path, read_only=True, data_only=data_only)
        try:
            page = book.worksheets[0]
            page.reset_dimensions()  # the size that the file states may be wrong
            return list(page.iter_rows(values_only=True))
        finally:
            book.close()

    values = cells(data_only=True)
    # A formula without a value looks like an empty cell there.
    if any(cell is None for row in values for cell in row):
        for number, (row, known) in enumerate(
            zip(cells(data_only=False), values, strict=False), start=1
        ):
            for cell, value in zip(row, known, strict=False):
                if value is None and isinstance(cell, str) and cell.startswith("="):
                    raise ValueError(
                        f"row {number}: {cell[:40]!r} is a formula that was never calculated"
                    )
    return [[_cell_text(cell) for cell in row] for row in values]


def _cell_text(cell: object) -> str:
    """Workbooks store whole numbers as floats: id 1001 must not become 1001.0."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)
