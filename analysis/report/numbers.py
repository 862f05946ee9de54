"""The numbers of the report: rows checked, and the errors of all scans and of groups.

The figures and their 95 % intervals come from utils.results.metrics; this module chooses the scans
of each line, and leaves out what too few scans cannot show.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from utils.results.metrics import mae_difference, score_with_intervals

# The keys of a row: words, of which `scan` (a path) is unique, sex is `F`, `M` or `n/a`, status is
# `ok` or `failed`, qc_flag is `ok` or codes joined by commas ...
WORDS = (
    "participant_id", "session_id", "scan", "sex", "site", "qc_flag", "status", "message", "model",
)  # fmt: skip
# ... and years, None where unknown; low and high are the ends of the 90 % interval.
YEARS = (
    "age", "stage_one_age", "predicted_age", "predicted_age_low", "predicted_age_high", "brain_pad",
    "predicted_age_cole", "brain_pad_cole", "brain_pad_beheshti", "recalibrated_age",
    "brain_pad_recalibrated",
)  # fmt: skip
MAY_LACK = {"site", "recalibrated_age", "brain_pad_recalibrated"}
STATES = ("failed", "flagged", "ok")  # in the order of the page
MINIMUM = 5  # scans; fewer get neither intervals nor correlations
CORRELATIONS = ("pearson", "spearman", "r2", "brain_pad_age_correlation")


@dataclass(frozen=True)
class Line:
    """One line of a table of errors.

    Attributes:
        title: the group, or which predicted age.
        kind: of the group: `age`, `sex` or `site`; empty for all scans.
        scans: how many.
        figures: {"value", "low", "high"} by name, see `score_with_intervals`; None where undefined
            or where there are fewer than `MINIMUM` scans.
    """

    title: str
    kind: str
    scans: int
    figures: Mapping[str, dict]


def build_table(rows: Sequence[Mapping]) -> pd.DataFrame:
    """The rows as a table with the columns WORDS, YEARS and `state`, one of STATES.

    Unknown words become empty, unknown years NaN; the index counts the rows from 0.

    Args:
        rows: one mapping per scan with the keys WORDS and YEARS, of which some MAY_LACK.

    Raises:
        ValueError: there are no rows, a key is missing, two rows have the same scan, a status is
            unknown, a year is not a number, or a scan that did not fail has no qc_flag.
    """
    if not rows:
        raise ValueError("no scans: at least one row expected")
    needed = {*WORDS, *YEARS} - MAY_LACK
    for number, row in enumerate(rows):
        if missing := sorted(needed - row.keys()):
            raise ValueError(f"row {number}: without {', '.join(missing)}")
        if row["status"] not in ("ok", "failed"):
            raise ValueError(f"{row['scan']}: status {row['status']!r}, ok or failed expected")
        if row["status"] == "ok" and not row["qc_flag"]:
            raise ValueError(f"{row['scan']}: qc_flag {row['qc_flag']!r}, ok or codes expected")
    words = {name: ["" if row.get(name) is None else str(row[name]) for row in rows]
             for name in WORDS}  # fmt: skip
    table = pd.DataFrame(words | {name: [_years(row, name) for row in rows] for name in YEARS})
    if twice := sorted(table["scan"][table["scan"].duplicated()]):
        raise ValueError(f"{', '.join(twice[:5])}: in several rows, one row per scan expected")
    flagged = np.where(table["qc_flag"] == "ok", "ok", "flagged")
    return table.assign(state=np.where(table["status"] == "failed", "failed", flagged))


def _years(row: Mapping, name: str) -> float:
    try:
        value = math.nan if row.get(name) is None else float(row[name])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{row['scan']}: {name} {row[name]!r}, years or None expected") from error
    return value if math.isfinite(value) else math.nan


def sort_worst_first(table: pd.DataFrame) -> pd.DataFrame:
    """Failed, flagged, ok; within each the largest brain-PAD first, unknown ones at the end."""
    keys = table.assign(_state=table["state"].map(STATES.index), _size=-table["brain_pad"].abs())
    return table.loc[keys.sort_values(["_state", "_size"], kind="stable").index]


def select_known(table: pd.DataFrame) -> pd.DataFrame:
    """The scans of `build_table` whose predicted and chronological ages are both known."""
    known = table[["age", "predicted_age"]].notna().all(axis=1)
    return table[known & (table["status"] == "ok")]


def summarise(known: pd.DataFrame) -> list[Line]:
    """Stage one, stage two, stage two of unflagged scans, corrected (Cole), and recalibrated.

    A line without scans is left out. Where stage one is unknown, `Predicted` stands for stage two.

    Args:
        known: from `select_known`.
    """
    two = "Stage two" if known["stage_one_age"].notna().any() else "Predicted"
    unflagged = known[known["state"] == "ok"]
    lines = [_line("Stage one", known, "stage_one_age"), _line(two, known)]
    if 0 < len(unflagged) < len(known):
        lines.append(_line(f"{two}, unflagged scans", unflagged))
    lines.append(_line(f"{two}, corrected (Cole)", known, "predicted_age_cole"))
    lines.append(_line(f"{two}, recalibrated to the scanner", known, "recalibrated_age"))
    return [line for line in lines if line.scans]


def compare_stages(known: pd.DataFrame) -> dict[str, float] | None:
    """MAE of stage two minus that of stage one on the same scans, paired; None if too few."""
    both = known.dropna(subset="stage_one_age")
    if len(both) < MINIMUM:
        return None
    ages = (both[name].to_numpy() for name in ("age", "predicted_age", "stage_one_age"))
    return mae_difference(*ages)


def group_errors(known: pd.DataFrame) -> list[Line]:
    """Errors by decade of age, by sex and, where there are several sites, by site, largest first.

    Args:
        known: from `select_known`.
    """
    decades = known.groupby((known["age"] // 10 * 10).astype(int))
    lines = [_line(f"{low}–{low + 9}", scans, kind="age") for low, scans in decades]
    sexes = known.groupby(known["sex"].replace("", "n/a"))
    lines += [_line(sex, scans, kind="sex") for sex, scans in sexes]
    sites = sorted(known.groupby(known["site"].replace("", "n/a")), key=lambda site: -len(site[1]))
    if len(sites) > 1:
        lines += [_line(site, scans, kind="site") for site, scans in sites]
    return lines


def _line(
    title: str, scans: pd.DataFrame, predicted: str = "predicted_age", *, kind: str = ""
) -> Line:
    scans = scans.dropna(subset=predicted)
    if scans.empty:
        return Line(title, kind, 0, {})
    figures = score_with_intervals(scans["age"].to_numpy(), scans[predicted].to_numpy())
    if len(scans) < MINIMUM:
        figures = {
            name: {"value": None if name in CORRELATIONS else figure["value"]}
            | {"low": None, "high": None}
            for name, figure in figures.items()
        }
    return Line(title, kind, len(scans), figures)


def measure_coverage(known: pd.DataFrame) -> dict[str, float] | None:
    """How many chronological ages lie in their 90 % interval; None where no scan has one.

    Returns:
        `inside` and `scans` (counts), `value` (the share), and `low` and `high`, the exact 95 %
        interval of the share (Clopper and Pearson 1934).
    """
    scans = known.dropna(subset=["predicted_age_low", "predicted_age_high"])
    if scans.empty:
        return None
    found = scans["age"].between(scans["predicted_age_low"], scans["predicted_age_high"])
    inside = int(found.sum())
    exact = binomtest(inside, len(scans)).proportion_ci(0.95, method="exact")
    share = {"value": inside / len(scans), "low": float(exact.low), "high": float(exact.high)}
    return {"inside": inside, "scans": len(scans)} | share
