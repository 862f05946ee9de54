"""The report of predicted ages: one HTML file with figures, a table and every scan.

This module computes what `report.html.jinja` shows. The report is for research.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis.brain_pad.calibration import Calibration
from analysis.report.figures import draw_figures
from analysis.report.numbers import (
    MINIMUM,
    STATES,
    build_table,
    compare_stages,
    group_errors,
    measure_coverage,
    select_known,
    sort_worst_first,
    summarise,
)
from utils.results.pages import write_page
from utils.results.tables import format_figure

# Columns of the table: name of the value, heading, how years are written (empty: text), CSS class.
COLUMNS = (
    ("session_id", "Session", "", ""),
    ("state", "Quality", "", ""),
    ("sex", "Sex", "", ""),
    ("site", "Site", "", ""),
    ("age", "Age", "%.1f", "number"),
    ("stage_one_age", "Stage one", "%.1f", "number"),
    ("predicted_age", "Predicted age", "%.1f", "number"),
    ("predicted_age_low", "90 % from", "%.1f", "number"),
    ("predicted_age_high", "90 % to", "%.1f", "number"),
    ("brain_pad", "PAD", "%+.1f", "number"),
    ("predicted_age_cole", "Predicted, Cole", "%.1f", "number"),
    ("brain_pad_cole", "PAD, Cole", "%+.1f", "number"),
    ("brain_pad_beheshti", "PAD, Beheshti", "%+.1f", "number"),
    ("recalibrated_age", "Recalibrated", "%.1f", "number"),
    ("brain_pad_recalibrated", "PAD, recalibrated", "%+.1f", "number"),
    ("message", "Message", "", "long"),
    ("model", "Model", "", "long"),
    ("scan", "File", "", "path"),
)

FIRST_ROWS = 1000  # of the table when the page opens; a browser takes seconds for thousands


@dataclass(frozen=True)
class Origin:
    """How predicted ages were made; the page leaves out what is not given.

    Attributes:
        calibration: what intervals and corrections come from.
        card: of the networks; shown as it is.
        command: that made the predictions.
        versions: of programs, and whatever else identifies the run, by name.
    """

    calibration: Calibration | None = None
    card: str = ""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def write_report(
    rows: Sequence[Mapping],
    path: str | Path,
    *,
    title: str,
    pictures: Mapping[str, str | Path],
    overlays: Mapping[str, str | Path] | None = None,
    origin: Origin | None = None,
) -> None:
    """Writes the report, or replaces it, see `utils.results.pages`.

    Failed scans stand first, then flagged ones, then the others; within each of these the scan
    with the largest brain-PAD stands first. Later pictures are smaller.

    Args:
        rows: one per scan in the order of the table, see WORDS in `analysis.report.numbers`.
        path: of the page.
        title: its heading.
        pictures: scan -> PNG of its mosaic; scans may lack one.
        overlays: scan -> PNG of its saliency; scans may lack one.
        origin: how the ages were made.

    Raises:
        ValueError: the rows contradict themselves, see `build_table`.
    """
    table, origin = build_table(rows), origin or Origin()
    known = select_known(table)
    outside = origin.calibration and origin.calibration.bias.outside(known["age"].to_numpy()).sum()
    write_page(
        Path(__file__).with_name("report.html.jinja"),
        path,
        overwrite=True,
        title=title,
        pictures=pictures,
        overlays=overlays or {},
        origin=origin,
        outside=outside,
        **_list_scans(table),
        **_compute_errors(table, known),
    )


def _list_scans(table: pd.DataFrame) -> dict:
    """The scans in both orders, their counts, and the columns in which something is known.

    `number` is the place of a scan in the table. Unknown years become None.
    """
    numbered = table.astype(object).where(table.notna(), None).assign(number=table.index)
    scans = numbered.to_dict("records")
    found = {name: {scan[name] for scan in scans} - {"", None} for name in table}
    # The end of the page names the model where there is only one.
    shown = {name for name, values in found.items() if len(values) > (name == "model")}
    return {
        "states": STATES,
        "counts": Counter(table["state"]),
        "models": Counter(filter(None, table["model"])),
        "columns": [column for column in COLUMNS if column[0] in shown],
        "scans": scans,
        "first_rows": FIRST_ROWS,
        "worst_first": [scans[index] for index in sort_worst_first(table).index],
    }


def _compute_errors(table: pd.DataFrame, known: pd.DataFrame) -> dict:
    """The figures of merit and the drawings; `known` is from `select_known`."""
    groups = group_errors(known)
    return {
        "minimum": MINIMUM,
        "format_figure": format_figure,
        "has_intervals": table["predicted_age_low"].notna().any(),
        "has_beheshti": known["brain_pad_beheshti"].notna().any(),
        "predicted_ages": table["predicted_age"].dropna().tolist(),
        "with_age": len(known),
        "lines": summarise(known),
        "stages": compare_stages(known),
        "coverage": measure_coverage(known),
        "groups": groups,
        "figures": draw_figures(table, known, groups),
    }
