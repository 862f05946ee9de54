"""Names and contents of files: written so that nothing is half-written or overwritten unasked."""

import csv
import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

IMAGE_SUFFIXES = (".nii.gz", ".nii")
SCAN_SUFFIXES = (*IMAGE_SUFFIXES, ".mgz", ".mgh")  # that preprocessing reads
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # a full disk, or a quota
LARGEST_POINTER = 32_768  # bytes; git-annex's own limit
# How the files begin that stand for a content which has not been fetched, and how to fetch it.
POINTERS = {
    b"/annex/objects/": ("a pointer of git-annex", "datalad get, or git annex get"),
    b"version https://git-lfs.github.com/spec/": ("a pointer of Git LFS", "git lfs pull"),
}
FORMULA_SIGNS = "=+-@"  # what a formula starts with in a spreadsheet


@contextmanager
def naming_what_is_full(path: str | Path) -> Iterator[None]:
    """Adds `path`, which is being written, to an error of a full disk, which names no place."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(
            f"{path}: no room left on its disk ({error.strerror}): make room, and run again"
        ) from error


@contextmanager
def replacing(
    path: str | Path, *, overwrite: bool = False, keep_as: Path | None = None
) -> Iterator[Path]:
    """Hands out a temporary path beside `path` and renames it to `path` when the block succeeds.

    A reader sees the old file or the whole new one, never a part, after a power cut too. If the
    block raises, the temporary file is removed and `path` is left as it was.

    Args:
        path: the file to make; its folder is made when missing.
        overwrite: whether `path` may exist already.
        keep_as: a new name, in the same folder, for the file that is replaced. A program that is
            killed between the two renames leaves a file of this name and none at `path`.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        OSError: the disk is full, or the file cannot be written for another reason.
    """
    path = Path(path)
    if not overwrite:
        require_absent(path)
    with naming_what_is_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # The suffixes stay at the end: nibabel and pandas choose the format from them. A process number
    # would not do as a name: containers and machines that share a folder have the same numbers.
    temporary = path.with_name(f".part-{secrets.token_hex(8)}-{path.name}")
    try:
        with naming_what_is_full(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if keep_as is not None and path.exists():
                path.replace(keep_as)
            temporary.replace(path)
            # The folder's names are to reach the disk too. Windows cannot open folders, and some
            # network shares cannot sync them.
            with suppress(OSError):
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def image_stem(name: str) -> str:
    """The file name without .nii.gz or .nii; other names are returned as they are."""
    return _without_suffix(name, IMAGE_SUFFIXES)


def scan_stem(name: str) -> str:
    """The file name without the suffix of a scan; other names are returned as they are."""
    return _without_suffix(name, SCAN_SUFFIXES)


def _without_suffix(name: str, suffixes: Iterable[str]) -> str:
    end = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(end)]


def describe_pointer(path: str | Path) -> str:
    """Why the content of a file is not here, and how to fetch it; "" if it is here, or nowhere.

    That is a pointer of git-annex (as in DataLad) or Git LFS, or a file that is in iCloud alone.
    """
    path, kind = Path(path), None
    if path.is_file():
        if path.stat().st_size <= LARGEST_POINTER:
            start = path.read_bytes()[:512].replace(b"\\", b"/")
            # On file systems without links git writes the target of a link as a content.
            is_link = b".git/annex/objects/" in start and b"\n" not in start.strip()
            start = b"/annex/objects/" if is_link else start
            kind = next(
                (words for begin, words in POINTERS.items() if start.startswith(begin)), None
            )
    elif path.is_symlink() and "annex/objects" in path.readlink().as_posix():
        kind = POINTERS[b"/annex/objects/"]
    elif (path.parent / f".{path.name}.icloud").is_file():  # the name of "." is empty
        kind = "in iCloud alone", "in Finder, or brctl download"
    if kind is None:
        return ""
    return f"{kind[0]}, its content is not on this machine: fetch the file ({kind[1]})"


def require_fetched(path: str | Path) -> None:
    """Raises ValueError for a file whose content is not here, and says how to fetch it."""
    if text := describe_pointer(path):
        raise ValueError(f"{path}: {text}")


def list_visible(folder: Path) -> list[Path]:
    """What is in a folder, in the order of names, links to nothing included.

    Hidden files are left out, but a file that is in iCloud alone is there by its own name.
    """
    found = []
    for path in folder.iterdir():
        if path.name[0] == "." and path.suffix == ".icloud":
            found.append(folder / path.stem[1:])
        elif path.name[0] != ".":
            found.append(path)
    return sorted(found)


def hash_file(path: str | Path) -> str:
    """The hexadecimal SHA-256 of a file, which may be larger than memory."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def as_spreadsheet_text(cell: str) -> str:
    """The cell, with an apostrophe in front where a spreadsheet would calculate it.

    So a participant called `=HYPERLINK(...)` stays a name when the table is opened.
    """
    return f"'{cell}" if len(cell) > 1 and cell[0] in FORMULA_SIGNS else cell


def from_spreadsheet_text(cell: str) -> str:
    """A cell as it was before `as_spreadsheet_text`."""
    return cell[1:] if len(cell) > 2 and cell[0] == "'" and cell[1] in FORMULA_SIGNS else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def write_tsv(
    path: str | Path,
    rows: Iterable[Iterable[object]],
    *,
    delimiter: str = "\t",
    overwrite: bool = False,
) -> None:
    """Writes rows, the header first, as separated text; each row stays one line.

    Tabs and line ends within a cell become blanks, file names that are not valid UTF-8 are escaped,
    and text that a spreadsheet would calculate is marked as text; numbers stay as they are.
    """
    with (
        replacing(path, overwrite=overwrite) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        lines = ([" ".join(str(cell).split()) for cell in row] for row in rows)
        table.writerows(
            [cell if _is_number(cell) else as_spreadsheet_text(cell) for cell in row]
            for row in lines
        )


def write_xls(path: Path, rows: Iterable[Iterable[object]], *, title: str = "labels") -> Path:
    """Writes rows as an .xls workbook, the published form of a label sheet; returns its path."""
    import xlwt  # slow to load: only when a workbook is written

    book = xlwt.Workbook()
    sheet = book.add_sheet(title)
    for at, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.write(at, column, cell)
    with replacing(path) as temporary:
        book.save(str(temporary))
    return path


def write_json(path: str | Path, content: dict, *, overwrite: bool = False) -> None:
    """Writes plain values as JSON to be read by people too; ValueError for NaN and infinity."""
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def require_absent(*paths: Path) -> None:
    """Raises FileExistsError naming every one of `paths` that exists already."""
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        raise FileExistsError(
            f"{', '.join(existing)} would be overwritten: choose another output, "
            "or --overwrite to replace"
        )


def require_empty(folder: Path, *, instead: str = "") -> None:
    """Raises FileExistsError if `folder` is a file, or a folder with anything in it.

    Args:
        folder: may be missing.
        instead: another remedy, for the end of the message.
    """
    advice = ", ".join(filter(None, ("give a new or empty --output_dir", instead)))
    if folder.is_dir():
        if any(folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty: {advice}")
    elif folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} is not a folder: {advice}")


def require_writable(folder: Path) -> None:
    """Makes `folder`; raises OSError with advice if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be written to ({error}); give another --output_dir"
        ) from None
