"""The cells of .xls and .xlsx workbooks as text: of the first visible sheet, as a user sees it."""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

OLE = bytes.fromhex("d0cf11e0a1b11ae1")  # the first bytes of .xls, and of what has a password
ZIP = b"PK\x03\x04"  # of .xlsx
LOCKED = "EncryptedPackage".encode("utf-16-le")


def is_workbook(content: bytes) -> bool:
    """Whether these bytes begin as a workbook does, whatever the name of their file."""
    return content.startswith((OLE, ZIP))


def read_workbook(path: Path, content: bytes) -> list[list[str]]:
    """The cells of the first visible sheet, row 1 first; a note says if others were passed over.

    Whole numbers have no decimals, dates are ISO, errors (#REF!) and truth values are words.

    Args:
        path: of the file, for messages.
        content: of the file; it decides between .xls and .xlsx, not the name.

    Raises:
        ValueError: not a readable workbook, or formulas that no program has calculated.
    """
    if LOCKED in content:
        raise ValueError(f"{path}: protected by a password; save it again without one")
    if b"opendocument" in content[:100]:
        raise ValueError(f"{path}: an OpenDocument table; save it again as .xlsx or .csv")
    try:
        return _read_xlsx(path, content) if content.startswith(ZIP) else _read_xls(path, content)
    except ModuleNotFoundError:  # xlrd or openpyxl is not installed, which `run_entry` explains
        raise
    except Exception as error:  # the engines raise dozens of types where it is no workbook
        raise ValueError(
            f"{path}: not a readable {path.suffix} workbook ({type(error).__name__}: {error}); "
            "save it again from a spreadsheet, or as .csv"
        ) from error


def _choose_sheet(path: Path, sheets: Sequence[tuple[str, bool, bool]]) -> int:
    """The place of the first visible sheet; of each sheet: name, whether visible, whether empty."""
    chosen = next((at for at, (_, visible, _) in enumerate(sheets) if visible), None)
    if chosen is None:
        raise ValueError("no visible sheet with cells; of the kind Strict Open XML?")
    others = [name for name, visible, empty in sheets if not empty or not visible]
    if set(others) - {sheets[chosen][0]}:
        print(
            f"note: {path}: the first visible sheet is read, {sheets[chosen][0]!r}, of "
            f"{', '.join(repr(name) for name, _, _ in sheets)}"
        )
    return chosen


def _read_xls(path: Path, content: bytes) -> list[list[str]]:
    import xlrd  # slow to load: only when a workbook is read

    with Path(os.devnull).open("w") as silent:  # it prints warnings about damaged files
        book = xlrd.open_workbook(file_contents=content, logfile=silent)

    def text(cell: xlrd.sheet.Cell) -> str:
        # xlrd gives all three as numbers: #REF! would be an age of 23.
        if cell.ctype == xlrd.XL_CELL_ERROR:
            return xlrd.error_text_from_code.get(cell.value, "#ERROR!")
        if cell.ctype == xlrd.XL_CELL_BOOLEAN:
            return str(bool(cell.value))
        if cell.ctype == xlrd.XL_CELL_DATE:
            try:
                return str(xlrd.xldate_as_datetime(cell.value, book.datemode))
            except (ValueError, OverflowError):
                return f"#DATE {cell.value}"
        return _value_text(cell.value)

    sheets = book.sheets()
    chosen = _choose_sheet(
        path, [(page.name, not page.visibility, not page.nrows) for page in sheets]
    )
    return [[text(cell) for cell in row] for row in sheets[chosen].get_rows()]


def _read_xlsx(path: Path, content: bytes) -> list[list[str]]:
    import openpyxl  # slow to load: only when a workbook is read

    def read_cells(chosen: int | None = None, *, data_only: bool) -> tuple[int, list[tuple]]:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=data_only)
        try:
            if chosen is None:
                sheets = [
                    (page.title, page.sheet_state == "visible", (page.max_row or 2) < 2)
                    for page in book.worksheets
                ]
                chosen = _choose_sheet(path, sheets)
            page = book.worksheets[chosen]
            page.reset_dimensions()  # the size that the file states may be wrong
            return chosen, list(page.iter_rows())
        finally:
            book.close()

    chosen, values = read_cells(data_only=True)
    # A formula without a value looks like an empty cell there; one that gives "" is a "str".
    if any(cell.value is None for row in values for cell in row):
        formulas = read_cells(chosen, data_only=False)[1]
        for number, (row, known) in enumerate(zip(formulas, values, strict=False), start=1):
            for cell, found in zip(row, known, strict=False):
                if cell.data_type == "f" and found.value is None and found.data_type != "str":
                    formula = str(getattr(cell.value, "text", cell.value))[:40]
                    raise ValueError(f"row {number}: {formula!r} is a formula never calculated")
    return [[_value_text(cell.value) for cell in row] for row in values]


def _value_text(value: object) -> str:
    """Workbooks store whole numbers as floats: id 1001 must not become 1001.0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
