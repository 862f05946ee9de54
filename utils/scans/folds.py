"""Folds of a cohort, and the ages that networks gave to scans they were not trained on.

Both are small tables beside a label sheet: which fold a scan belongs to, and its out-of-fold age.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.cli import raise_all
from utils.files import from_spreadsheet_text
from utils.scans.cohort import Scan
from utils.scans.volumes import image_stem


def read_folds(path: str | Path) -> dict[str, int]:
    """The fold of each scan, by its name without image suffix.

    Args:
        path: a .csv with the columns `scan` and `fold`, whole numbers from 0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: all bad rows at once.
    """
    table = _read_table(path, ("scan", "fold"))
    folds, problems = {}, []
    for row, scan, fold in zip(table.index + 2, table["scan"], table["fold"], strict=True):
        stem = image_stem(scan.strip())
        if not fold.strip().isdigit():
            problems.append(f"{path}, row {row}: fold {fold!r}, a whole number from 0 expected")
        elif stem in folds:
            problems.append(f"{path}, row {row}: {stem} has a fold already")
        else:
            folds[stem] = int(fold)
    raise_all(problems)
    return folds


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


def read_out_of_fold_ages(path: str | Path) -> dict[str, float]:
    """The out-of-fold age, in years, of each scan, by its name without image suffix.

    Args:
        path: a .csv with the columns `participant_id` and `predicted_age`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: all bad rows at once.
    """
    table = _read_table(path, ("participant_id", "predicted_age"))
    ages, problems = {}, []
    for row, scan, text in zip(
        table.index + 2, table["participant_id"], table["predicted_age"], strict=True
    ):
        age = pd.to_numeric(text, errors="coerce")
        if not abs(age) < 1000:
            problems.append(f"{path}, row {row}: predicted_age {text!r}, years expected")
        elif image_stem(scan) in ages:
            problems.append(f"{path}, row {row}: {scan} stands twice")
        else:
            ages[image_stem(scan)] = float(age)
    raise_all(problems)
    return ages


def out_of_fold_ages(path: str | Path, scans: list[Scan], what: str) -> np.ndarray:
    """The out-of-fold ages of `scans`, (scans,) years.

    Raises:
        FileNotFoundError, ValueError: as `read_out_of_fold_ages`; or scans without a row, of which
            the message says `what` they are.
    """
    known = read_out_of_fold_ages(path)
    missing = [scan.subject_id for scan in scans if scan.subject_id not in known]
    if missing:
        raise ValueError(f"{path}: no row for {len(missing)} {what}: {', '.join(missing[:5])}")
    return np.array([known[scan.subject_id] for scan in scans])


def _read_table(path: str | Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A .csv, all cells as text; ValueError where a column is missing."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    table = pd.read_csv(path, dtype=str, keep_default_na=False).map(from_spreadsheet_text)
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(map(str, table.columns))}"
        )
    return table
