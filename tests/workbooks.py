"""Sheets of old workbooks, as the published cohort has one."""

from collections.abc import Sequence
from pathlib import Path

import xlwt


def write_xls(path: Path, rows: Sequence[Sequence]) -> Path:
    """Writes cells as an .xls and returns its path."""
    book = xlwt.Workbook()
    sheet = book.add_sheet("any name")
    for at, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.write(at, column, cell)
    book.save(str(path))
    return path
