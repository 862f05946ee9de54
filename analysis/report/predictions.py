"""The table of predictions: one row a scan, whatever happened to it, and what its columns mean.

`predictions.tsv` has a `predictions.json` beside it, as BIDS describes tables; unknown values are
`n/a`.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.brain_pad.calibration import Calibration
from utils.files import as_spreadsheet_text, replacing, write_json, write_tsv

TABLE, DESCRIPTION = "predictions.tsv", "predictions.json"
YEARS = {"Units": "years"}
COLUMNS = {
    "participant_id": {"Description": "participant, or the scan's name where it is not of BIDS"},
    "session_id": {"Description": "session of BIDS"},
    "scan": {"Description": "file or folder as it was given"},
    "sex": {
        "Description": "from the label sheet; where n/a, ages are means of both predictions",
        "Levels": {"F": "female", "M": "male"},
    },
    "age": {"Description": "chronological age from the label sheet"} | YEARS,
    "site": {"Description": "site or scanner from the label sheet"},
    "stage_one_age": {"Description": "age by the first network"} | YEARS,
    "predicted_age": {"Description": "brain age: of both networks where there are two"} | YEARS,
    "predicted_age_low": {
        "Description": "lower end of the 90 % conformal interval: nine in ten people like those of "
        "the calibration have their chronological age in it"
    } | YEARS,
    "predicted_age_high": {"Description": "its upper end"} | YEARS,
    "brain_pad": {"Description": "predicted_age minus age"} | YEARS,
    "predicted_age_cole": {
        "Description": "predicted_age corrected for its age bias (Cole et al. 2018)"
    } | YEARS,
    "brain_pad_cole": {"Description": "predicted_age_cole minus age"} | YEARS,
    "brain_pad_beheshti": {
        "Description": "brain_pad corrected with the age (Beheshti et al. 2019): no measure of "
        "accuracy"
    } | YEARS,
    "qc_flag": {"Description": "ok, or codes of what is doubtful about the scan, see message"},
    "status": {
        "Description": "whether there is an age",
        "Levels": {"ok": "predicted", "failed": "not predicted, see message"},
    },
    "message": {"Description": "what people should know of this scan"},
    "model": {"Description": "checkpoints, and the first digits of the SHA-256 of their content"},
}  # fmt: skip


def complete_row(row: dict, calibration: Calibration | None) -> dict:
    """All columns of a scan, from what was measured of it.

    Args:
        row: some of COLUMNS; age and predicted_age in years.
        calibration: intervals and corrections; None: these columns stay unknown.
    """
    row = dict.fromkeys(COLUMNS) | row
    age, predicted = row["age"], row["predicted_age"]
    if predicted is None:
        return row
    if age is not None:
        row["brain_pad"] = predicted - age
    if calibration is None:
        return row
    width = float(calibration.limits.half_width(np.array([predicted]), 90)[0])
    row["predicted_age_low"], row["predicted_age_high"] = predicted - width, predicted + width
    row["predicted_age_cole"] = calibration.bias.cole(predicted)
    if age is not None:
        row["brain_pad_cole"] = row["predicted_age_cole"] - age
        row["brain_pad_beheshti"] = calibration.bias.beheshti(predicted, age) - age
    return row


def write_table(rows: Sequence[dict], folder: Path, *, as_csv: bool, overwrite: bool) -> Path:
    """Writes predictions.tsv (and .csv where asked for) and predictions.json; returns the first.

    Args:
        rows: from `complete_row`, in the order of the table.
        folder: for the files.
        as_csv: whether the table is written as CSV as well.
        overwrite: whether they may exist.
    """
    table = [list(COLUMNS), *([_cell(row[name]) for name in COLUMNS] for row in rows)]
    path = folder / TABLE
    write_json(folder / DESCRIPTION, COLUMNS, overwrite=overwrite)
    if as_csv:
        with (
            replacing(folder / "predictions.csv", overwrite=overwrite) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            csv.writer(file).writerows(table)
    write_tsv(path, table, overwrite=overwrite)
    return path


def _cell(value: object) -> str:
    if value is None or value == "":
        return "n/a"
    if isinstance(value, float):
        return f"{value:.2f}".removesuffix(".00")
    return as_spreadsheet_text(" ".join(str(value).split()))
