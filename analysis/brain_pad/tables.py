"""Tables of predicted ages, as test.py writes them, and clinical ratings of the same scans."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.cli import raise_all
from utils.scans.labels import OLDEST_AGE, SEX_NAMES, SEX_WORDS, UNKNOWN_WORDS, Label, read_rows
from utils.scans.leakage import people_of


@dataclass(frozen=True)
class Predictions:
    """The scans of one table whose age is known.

    `scans` has a row for each in the table's order, indexed by participant_id: sex (F, M or n/a),
    age, predicted_age and brain_pad, all three in years. `without_age` counts those left out.
    """

    path: Path
    scans: pd.DataFrame
    without_age: int


def read_predictions(path: str | Path, labels: dict[str, Label] | None = None) -> Predictions:
    """Reads a table of predictions; columns beyond the four that are needed are ignored.

    Args:
        path: a .csv (.tsv, .xlsx ...) with the columns participant_id, age, sex and predicted_age.
        labels: of `read_labels`, in place of the columns age and sex: a table of
            ages that a network gave may be passed on where those of the people may not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no scan of known age, or all problems of the rows, each with what was expected.
    """
    read = {"age": _age, "sex": _sex, "predicted_age": _predicted_age}
    identity = {"participant_id": ("participant_id",)}
    if labels is None:
        rows = _read_columns(path, identity, read)
    else:
        rows = _read_columns(path, identity, {"predicted_age": _predicted_age})
        missing = [name for name in rows if name not in labels]
        if missing:
            raise ValueError(f"{path}: {', '.join(missing[:5])} have no row in the label sheet")
        for name, row in rows.items():
            age, sex = labels[name].age, labels[name].sex
            row |= {"age": math.nan if age is None else age, "sex": SEX_NAMES[sex]}
    scans = pd.DataFrame.from_dict(rows, orient="index", columns=list(read))
    scans.index.name = "participant_id"
    known = scans[scans["age"].notna()].astype({"age": float, "predicted_age": float})
    if known.empty:
        raise ValueError(f"{path}: no scan of known age; brain-PAD needs chronological ages")
    known["brain_pad"] = known["predicted_age"] - known["age"]
    return Predictions(Path(path), known, len(scans) - len(known))


def read_ratings(path: str | Path) -> dict[str, float | None]:
    """The Clinical Dementia Rating of each scan, None where it was not assessed.

    Args:
        path: a participants table with the columns scan_id (or participant_id) and CDR.

    Raises:
        FileNotFoundError: no such file.
        ValueError: all problems of the rows, each with what was expected.
    """
    rows = _read_columns(path, {"scan_id": ("scan_id", "participant_id")}, {"CDR": _rating})
    return {scan: cells["CDR"] for scan, cells in rows.items()}


def _read_columns(
    path: str | Path, identity: dict[str, tuple[str, ...]], read: dict[str, Callable]
) -> dict[str, dict]:
    """What each function of `read` makes of its column, by the identity column of the rows."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    header, *rows = read_rows(path) or [[]]
    wanted = identity | {name: (name,) for name in read}
    columns = {
        name: next((header.index(other) for other in others if other in header), None)
        for name, others in wanted.items()
    }
    missing = [" or ".join(wanted[name]) for name, at in columns.items() if at is None]
    if missing:
        raise ValueError(f"{path}, row 1: no column {', '.join(missing)}; found {header}")
    (key,) = identity
    table, row_of, problems = {}, {}, []
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        cells = {name: row[at] if at < len(row) else "" for name, at in columns.items()}
        scan, values = cells.pop(key), {}
        where = f"{path}, row {number}"
        if not scan:
            problems.append(f"{where}: {key} is empty, the name of a scan expected")
        elif scan in row_of:
            problems.append(f"{where}: {scan} stands in row {row_of[scan]} already, one expected")
        for name, text in cells.items():
            try:
                values[name] = read[name](text)
            except ValueError as error:
                problems.append(f"{where}: {scan}: {name} {text!r}, {error} expected")
        row_of.setdefault(scan, number)
        table[scan] = values
    raise_all(problems)
    return table


def _number(text: str, low: float, high: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(expected) from None
    if not low <= value <= high:
        raise ValueError(expected)
    return value


def _age(text: str) -> float:
    """Years, NaN where unknown."""
    if text.lower() in UNKNOWN_WORDS:
        return math.nan
    return _number(text, 0, OLDEST_AGE, f"years from 0 to {OLDEST_AGE} or n/a")


def _predicted_age(text: str) -> float:
    return _number(text, -1000, 1000, "years as a number")


def _sex(text: str) -> str:
    if text.lower() in UNKNOWN_WORDS:
        return SEX_NAMES[None]
    if text.lower() not in SEX_WORDS:
        raise ValueError("F, M or n/a")
    return SEX_NAMES[SEX_WORDS[text.lower()]]


def _rating(text: str) -> float | None:
    if text.lower() in UNKNOWN_WORDS:
        return None
    return _number(text, 0, 3, "a rating from 0 to 3 or n/a")


def require_unseen(
    known: Predictions, other: Predictions, pattern: re.Pattern | None = None
) -> None:
    """Raises ValueError where `other` holds scans of persons who are in `known` already."""
    persons = set(people_of(known.scans.index, pattern=pattern).values())
    others = people_of(other.scans.index, pattern=pattern)
    seen = [scan for scan, person in others.items() if person in persons]
    if seen:
        raise ValueError(
            f"{other.path}: {len(seen)} scans are of persons in {known.path} too, such as "
            f"{', '.join(seen[:5])}; a table of other persons expected"
        )


def as_arrays(scans: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Chronological and predicted ages, (n,) years each."""
    return scans["age"].to_numpy(), scans["predicted_age"].to_numpy()
