"""The figures of the report: errors of all scans and of groups, with 95 % intervals.

All come from utils.results.metrics; here is decided of which scans, and when there are too few.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from utils.results.metrics import mae_difference, score_with_intervals

WORDS = (
    "participant_id", "session_id", "scan", "sex", "site", "qc_flag", "status", "message", "model",
)  # fmt: skip
YEARS = (
    "age", "stage_one_age", "predicted_age", "predicted_age_low", "predicted_age_high", "brain_pad",
    "predicted_age_cole", "brain_pad_cole", "brain_pad_beheshti",
)  # fmt: skip
OPTIONAL = ("site",)
STATES = ("failed", "flagged", "ok")  # in the order of the page
MINIMUM = 5  # scans; of fewer neither an interval nor a correlation is worth printing
OF_ONE_AGE = ("pearson", "spearman", "r2", "brain_pad_age_correlation")


@dataclass(frozen=True)
class Line:
    """One line of a table of figures.

    Attributes:
        title: of whom, or of which predicted age.
        kind: of group: `age`, `sex` or `site`; empty for all scans.
        scans: how many.
        figures: by name {"value", "low", "high"}, see `score_with_intervals`; None
            where undefined or of too few scans.
    """

    title: str
    kind: str
    scans: int
    figures: Mapping[str, dict]


def table_of(rows: Sequence[Mapping]) -> pd.DataFrame:
    """The rows as a table with the columns WORDS, YEARS and `state`, one of STATES.

    Unknown words become empty, unknown years NaN; the index counts the rows from 0.

    Args:
        rows: see `analysis.report.page.write_report`.

    Raises:
        ValueError: no rows, a missing key, two rows of one scan, an unknown status, a year that is
            no number, or a scan that did not fail and has no qc_flag.
    """
    if not rows:
        raise ValueError("no scans: at least one row expected")
    needed = {*WORDS, *YEARS} - {*OPTIONAL}
    for number, row in enumerate(rows):
        if missing := sorted(needed - row.keys()):
            raise ValueError(f"row {number}: without {', '.join(missing)}")
        if row["status"] not in ("ok", "failed"):
            raise ValueError(f"{row['scan']}: status {row['status']!r}, ok or failed expected")
        if row["status"] == "ok" and not row["qc_flag"]:
            raise ValueError(f"{row['scan']}: qc_flag {row['qc_flag']!r}, ok or codes expected")
    words = {name: [_word(row.get(name)) for row in rows] for name in WORDS}
    years = {name: [_years(row, name) for row in rows] for name in YEARS}
    table = pd.DataFrame(words | years)
    if twice := sorted(table["scan"][table["scan"].duplicated()]):
        raise ValueError(f"{', '.join(twice[:5])}: in several rows, one a scan expected")
    flagged = np.where(table["qc_flag"] == "ok", "ok", "flagged")
    return table.assign(state=np.where(table["status"] == "failed", "failed", flagged))


def _word(value: object) -> str:
    return "" if value is None else str(value)


def _years(row: Mapping, name: str) -> float:
    try:
        value = math.nan if row[name] is None else float(row[name])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{row['scan']}: {name} {row[name]!r}, years or None expected") from error
    return value if math.isfinite(value) else math.nan


def with_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The scans of `table_of` whose predicted and chronological ages are both known."""
    known = table[["age", "predicted_age"]].notna().all(axis=1)
    return table[known & (table["status"] == "ok")]


def summarise(known: pd.DataFrame) -> list[Line]:
    """Stage one, stage two, stage two of unflagged scans, and corrected (Cole).

    A line stands where there is something to say: without stage one, `Predicted` takes the place
    of stage two.

    Args:
        known: from `with_errors`.
    """
    staged = known["stage_one_age"].notna().any()
    two = "Stage two" if staged else "Predicted"
    unflagged = known[known["state"] == "ok"]
    lines = [_line("Stage one", known, "stage_one_age"), _line(two, known, "predicted_age")]
    if 0 < len(unflagged) < len(known):
        lines.append(_line(f"{two}, unflagged scans", unflagged, "predicted_age"))
    lines.append(_line(f"{two}, corrected (Cole)", known, "predicted_age_cole"))
    return [line for line in lines if line.scans]


def stage_difference(known: pd.DataFrame) -> dict[str, float] | None:
    """MAE of stage two minus that of stage one on the same scans, paired; None if too few."""
    both = known.dropna(subset="stage_one_age")
    if len(both) < MINIMUM:
        return None
    ages = (both[name].to_numpy() for name in ("age", "predicted_age", "stage_one_age"))
    return mae_difference(*ages)


def group_errors(known: pd.DataFrame) -> list[Line]:
    """Errors by decade of age, sex and site, where there are two sites; the largest site first.

    Args:
        known: from `with_errors`.
    """
    decades = (known["age"] // 10 * 10).astype(int)
    kinds = {
        "age": decades.map(lambda decade: f"{decade}–{decade + 9}"),
        "sex": known["sex"].replace("", "n/a"),
        "site": known["site"].replace("", "n/a"),
    }
    orders = {"age": list(dict.fromkeys(kinds["age"][known["age"].sort_values().index]))}
    orders["sex"] = sorted(set(kinds["sex"]))
    orders["site"] = list(kinds["site"].value_counts(sort=True).index)
    if len(orders["site"]) < 2:
        orders["site"] = []
    return [
        _line(str(name), known[kinds[kind] == name], "predicted_age", kind=kind)
        for kind, names in orders.items()
        for name in names
    ]


def _line(title: str, scans: pd.DataFrame, predicted: str, *, kind: str = "") -> Line:
    scans = scans.dropna(subset=predicted)
    if scans.empty:
        return Line(title, kind, 0, {})
    age, ages = scans["age"].to_numpy(), scans[predicted].to_numpy()
    figures = score_with_intervals(age, ages)
    if len(scans) < MINIMUM:
        figures = {
            name: {"value": None if name in OF_ONE_AGE else figure["value"]}
            | {"low": None, "high": None}
            for name, figure in figures.items()
        }
    return Line(title, kind, len(scans), figures)


def covered(known: pd.DataFrame) -> dict[str, float] | None:
    """How many chronological ages lie in their interval; None where no scan has one.

    Returns:
        `inside` and `scans`, the share as `value`, and its exact 95 % interval `low`, `high`
        (Clopper and Pearson 1934).
    """
    scans = known.dropna(subset=["predicted_age_low", "predicted_age_high"])
    if scans.empty:
        return None
    inside = int(
        scans["age"].between(scans["predicted_age_low"], scans["predicted_age_high"]).sum()
    )
    exact = binomtest(inside, len(scans)).proportion_ci(0.95, method="exact")
    share = {"value": inside / len(scans), "low": float(exact.low), "high": float(exact.high)}
    return {"inside": inside, "scans": len(scans)} | share
