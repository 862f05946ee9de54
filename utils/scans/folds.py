"""The folds of a cross-validation: which fold each scan of a cohort belongs to."""

from pathlib import Path

from utils.people.sheets import read_columns
from utils.scans.cohort import Scan


def read_folds(path: str | Path) -> dict[str, int]:
    """The fold of each scan, by its name without image suffix.

    Args:
        path: a .csv with the columns `scan` and `fold`, whole numbers from 0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: all bad rows at once.
    """
    rows = read_columns(path, ("scan",), {"fold": _whole_number})
    return {scan: row["fold"] for scan, row in rows.items()}


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number from 0")
    return int(text)


def hold_out(scans: list[Scan], folds: dict[str, int], fold: int) -> tuple[list[Scan], list[Scan]]:
    """Training scans, of all other folds, and validation scans, of this one; in their order.

    Raises:
        ValueError: scans without a fold, or nothing on either side.
    """
    missing = [scan.subject_id for scan in scans if scan.subject_id not in folds]
    if missing:
        raise ValueError(f"{len(missing)} scans have no row in --folds: {', '.join(missing[:5])}")
    held = [scan for scan in scans if folds[scan.subject_id] == fold]
    rest = [scan for scan in scans if folds[scan.subject_id] != fold]
    if not held or not rest:
        known = sorted({folds[scan.subject_id] for scan in scans})
        raise ValueError(f"--fold {fold}: one of the folds {known} expected, of at least two")
    return rest, held
