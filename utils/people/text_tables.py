"""Tables of separated text, whoever wrote them: each row as its writer meant it, or an error.

Spreadsheets and R put cells in quotes, BIDS does not, and notes have quotes and separators of their
own. So a row with quotes is read both ways, and must fit the header in exactly one of them. A row
with more cells than the header is never read: its cells would stand in the wrong columns.
"""

import codecs
import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from utils.cli import raise_all

LINE_ENDS = re.compile(r"\r\n|\n|\r")  # str.splitlines has seven more, which notes may contain
SEPARATORS = {"\t": "tab", ";": "semicolon", ",": "comma"}
STATED_SEPARATOR = re.compile(r'"?sep=(\\t|[^\w"])"?[\t;,]*', re.IGNORECASE)  # Excel's first line
R_QUOTE = '\\"'  # R's write.table puts a quote into quotes so, all others double it
QUOTED_PART = re.compile(r'"[^"]*"')
UNDECODED = re.compile(r"\\x[89a-f][0-9a-f]")  # a byte that is not UTF-8, see read_text_table
DECIMAL_COMMA = re.compile(r"(?<![^,])\d+,\d+(?![^,])")  # or two cells with whole numbers
MARKED_ENCODINGS = {  # UTF-32 first: its mark begins as that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How many cells the rows of a table have.

    Attributes:
        width: of the row where the table begins.
        named: the same without the empty cells at its end.
        row_names: whether R wrote the names of rows in front, below no header of their own.
    """

    width: int
    named: int
    row_names: bool = False

    def fits(self, cells: list[str]) -> bool:
        """Whether this is a whole row; separators at its end do no harm."""
        return len(cells) >= self.named and self.allows(cells)

    def allows(self, cells: list[str]) -> bool:
        """Whether no cell stands in a wrong column; the last ones may be missing."""
        if self.row_names:
            return len(cells) == self.width
        return len(cells) <= self.width or not any(map(str.strip, cells[self.named :]))


def read_text_table(path: Path, content: bytes) -> list[list[str]]:
    r"""The cells of a text file, row 1 first; its separator is found, or stated by `sep=;`.

    Bytes that are not UTF-8 become escapes such as `\xfc`, so that a note in another encoding
    loses no row.

    Args:
        path: of the file, for messages; a .tsv is separated by tabs.
        content: of the file.

    Raises:
        ValueError: no text; or all rows that could be read in no way or in several.
    """
    lines = LINE_ENDS.split(_decode(path, content))
    while lines and not lines[-1].strip():
        del lines[-1]
    stated = STATED_SEPARATOR.fullmatch("".join(lines[:1]))
    if stated:
        lines[0] = ""
        separator = "\t" if stated[1] == "\\t" else stated[1]
    else:
        separator = "\t" if path.suffix.lower() == ".tsv" else _find_separator(lines)
    rows, problems = _read_lines(lines, separator)
    raise_all([f"{path}, {problem}" for problem in problems])
    return rows


def _read_lines(lines: list[str], separator: str) -> tuple[list[list[str]], list[str]]:
    """The rows, and the problems of those that are unclear."""
    rows, problems, at, shape, header = [], [], 0, None, 0
    while at < len(lines):
        cells, taken = _read_row(lines, at, separator, shape)
        at, where = at + taken, f"row {len(rows) + 1}"
        if shape is None and sum(map(bool, map(str.strip, cells))) > 1:
            shape, header = _find_shape(lines, at, separator, cells), len(rows) + 1
            cells = [""] * shape.row_names + cells
        elif not taken:
            at += 1
            problems.append(
                f"{where}: a quote without an end, or a note with quotes and separators, that "
                f"can be read in no way or in several; take out its quotes: {lines[at - 1][:80]!r}"
            )
        elif shape is not None and any(cells) and not shape.allows(cells):
            mark = SEPARATORS.get(separator, separator)
            problems.append(
                f"{where}: {len(cells)} cells, but row {header} has {shape.width}; a {mark} in a "
                "note or a number (put this cell in quotes), or row names of R "
                f"(row.names=FALSE)? found {cells[:8]}"
            )
        rows.append(cells)
    return rows, problems


def _decode(path: Path, content: bytes) -> str:
    found = (name for mark, name in MARKED_ENCODINGS.items() if content.startswith(mark))
    encoding = next(found, "utf-8-sig")
    try:
        text = content.decode(encoding, "backslashreplace" if encoding == "utf-8-sig" else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged {encoding} text ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path}: NUL bytes in it, no text or UTF-16; save it as UTF-8 text")
    return text


def _find_separator(lines: list[str]) -> str:
    """What cuts most lines into equally many cells; of several, what cuts them into most."""
    bare = QUOTED_PART.sub("", "\n".join(lines)).split("\n")

    def agreement(separator: str) -> tuple[int, int]:
        counts = Counter(line.count(separator) for line in bare if separator in line)
        return max(((lines, count) for count, lines in counts.items()), default=(0, 0))

    return max(SEPARATORS, key=agreement)


def _find_shape(lines: list[str], at: int, separator: str, header: list[str]) -> Shape:
    """The shape of a table by its header and the lines from `at`, those below it.

    R's write.table has one cell fewer in the header than below it, where it writes the names of
    rows. These are certain by their quotes, unless decimal commas may have made the cells more.
    """
    named = max(place for place, cell in enumerate(header, start=1) if cell.strip())
    below = [line for line in lines[at:] if line.strip()]
    by_r = bool(below) and below[0].startswith('"') and R_QUOTE not in below[0]
    first = _read_quoted(below, 0, separator)[0] if by_r else []
    one_more = len(first) == len(header) + 1 and bool(first[-1].strip())
    if not one_more or (
        separator == "," and all(DECIMAL_COMMA.search(QUOTED_PART.sub("", line)) for line in below)
    ):
        return Shape(len(header), named)
    return Shape(len(header) + 1, len(header) + 1, row_names=True)


def _read_row(
    lines: list[str], at: int, separator: str, shape: Shape | None
) -> tuple[list[str], int]:
    """The cells of the row that begins with this line, and how many lines it has: 0 if unclear."""
    line = lines[at]
    plain = line.split(separator)
    if '"' not in line:
        return (plain, 1) if line.strip() else ([], 1)
    plain = [_unquote(cell) for cell in plain]
    if not line.startswith('"') and f'{separator}"' not in line:
        return plain, 1
    quoted, taken = _read_quoted(lines, at, separator)
    # Nobody types a tab into a cell of several lines: there a quote swallowed a row.
    doubtful = any(R_QUOTE in line for line in lines[at : at + max(taken, 1)]) or (
        taken > 1 and separator == "\t" and any("\t" in cell for cell in quoted)
    )
    if taken == 1 and len(quoted) == len(plain) and not doubtful:
        return quoted, 1
    if shape is None:  # a title, or the header
        return (quoted, taken) if len(quoted) > 1 else (plain, 1)
    if separator != "\t" and not doubtful and taken == 1 and len(quoted) == shape.width:
        return quoted, 1  # plain cells may seem to fit where the last ones are empty
    as_quoted = not doubtful and (shape.fits(quoted) or (taken == 1 and shape.allows(quoted)))
    # A quote that was never closed ends at the next one, and swallows a row: then the last line is
    # whole as well. A cell that goes on in the next line leaves a part of a row there.
    last = lines[at + max(taken, 1) - 1].split(separator)
    below = next(filter(str.strip, lines[at + 1 : at + 9]), None)
    goes_on = below is not None and below.count(separator) + 1 < shape.named
    as_plain = shape.fits(plain) and (shape.fits(last) if as_quoted else not goes_on)
    if len(plain) > shape.width and (separator != "\t" or doubtful):
        as_plain = False  # a separator stands in quotes, and the last cell is empty
    if as_quoted == as_plain or (as_plain and plain[0].startswith('"')):
        return plain, 0
    return (quoted, taken) if as_quoted else (plain, 1)


def _read_quoted(lines: list[str], at: int, separator: str) -> tuple[list[str], int]:
    """The cells of a row and how many lines it has, quotes read as spreadsheets do.

    ([], 0) where a quote is not closed right before a separator or the end of a line.
    """
    ends = (f"{lines[number]}\n" for number in range(at, len(lines)))
    table = csv.reader(ends, delimiter=separator, strict=True)
    try:
        return next(table), table.line_num
    except csv.Error:
        return [], 0


def _unquote(cell: str) -> str:
    bare = cell.strip()
    if len(bare) > 1 and bare[0] == bare[-1] == '"':
        return bare[1:-1].replace('""', '"')
    return cell
