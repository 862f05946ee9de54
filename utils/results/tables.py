"""The table of predicted ages: its columns, its one writer and its one reader; figures as text.

A table has one row per scan and the columns that its program knows: predict.py writes COLUMNS;
test.py and analysis.brain_pad.out_of_fold leave out file names, intervals, corrections, flags and,
where none is known, sites; the latter adds `fold`. The description beside the table is a JSON
file, as BIDS has it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.files import as_spreadsheet_text, hash_file, write_json, write_tsv
from utils.people.codebook import OLDEST_AGE, SEX_NAMES, SEX_WORDS, UNKNOWN_WORDS
from utils.people.labels import read_labels
from utils.people.sheets import (
    first_row,
    parse_columns,
    parse_number,
    read_columns,
    read_rows,
)
from utils.scans.cohort import Scan

TABLE = "predictions.tsv"
UNLIKE = "unlike_training"  # flag of a scan, or of all scans of a scanner
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
    "label_source": {"Description": "the table, or DICOM header, that gave age or sex"},
    "site": {"Description": "site or scanner from the label sheet"},
    "stage_one_age": {"Description": "age by the first network"} | YEARS,
    "predicted_age": {"Description": "brain age: of both networks where there are two"} | YEARS,
    "predicted_age_low": {
        "Description": "lower end of the 90 % conformal interval: nine in ten people like those of "
        "the calibration have their chronological age in it"
    } | YEARS,
    "predicted_age_high": {"Description": "upper end of the 90 % conformal interval"} | YEARS,
    "brain_pad": {"Description": "predicted_age minus age"} | YEARS,
    "predicted_age_cole": {
        "Description": "predicted_age corrected for its age bias (Cole et al. 2018)"
    } | YEARS,
    "brain_pad_cole": {"Description": "predicted_age_cole minus age"} | YEARS,
    "brain_pad_beheshti": {
        "Description": "brain_pad corrected with the age (Beheshti et al. 2019): no measure of "
        "accuracy"
    } | YEARS,
    "recalibrated_age": {
        "Description": "predicted_age corrected for this scanner by script/recalibrate.sh; the "
        "interval is that of this age, where it is known"
    } | YEARS,
    "brain_pad_recalibrated": {"Description": "recalibrated_age minus age"} | YEARS,
    "unlikeness": {
        "Description": "how far the scan's features lie from those of the networks' training "
        "scans, of which the middlemost has 1"
    },
    "qc_flag": {"Description": "ok, or codes of what is doubtful about the scan, see message"},
    "status": {
        "Description": "whether there is an age",
        "Levels": {"ok": "predicted", "failed": "not predicted, see message"},
    },
    "message": {"Description": "what people should know of this scan"},
    "model": {"Description": "checkpoints, and the first digits of the SHA-256 of their content"},
}  # fmt: skip
FOLD = {"fold": {"Description": "fold whose networks gave the age; n/a: the mean of all networks"}}
PRINTED = ("mae", "rmse", "pearson", "r2", "mean_brain_pad")


def table_files(path: Path) -> tuple[Path, Path]:
    """A table and its description; ValueError unless the table's name ends with .tsv or .csv."""
    if path.suffix.lower() not in (".tsv", ".csv"):
        raise ValueError(f"{path}: a table of ages, .tsv or .csv expected")
    return path, path.with_suffix(".json")


def write_table(path: Path, rows: Sequence[dict], *, overwrite: bool = False) -> Path:
    """Writes the rows and the description of their columns; returns the table's path.

    Args:
        path: .tsv or .csv; the description goes beside it, named .json.
        rows: at least one, all with the same of COLUMNS and FOLD. Numbers get at most two decimals;
            None is written as n/a.
        overwrite: whether the files may exist.
    """
    table, description = table_files(path)
    columns = {name: text for name, text in (COLUMNS | FOLD).items() if name in rows[0]}
    cells = [list(columns), *([format_cell(row[name]) for name in columns] for row in rows)]
    write_json(description, columns, overwrite=overwrite)
    write_tsv(
        table, cells, delimiter="," if table.suffix.lower() == ".csv" else "\t", overwrite=overwrite
    )
    return table


def format_cell(value: object) -> str:
    """A cell as text: n/a for what is unknown, at most two decimals, no formulas, one line."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    if isinstance(value, float):
        return f"{value:.2f}".removesuffix(".00")
    return as_spreadsheet_text(" ".join(str(value).split()))


def describe_model(files: Sequence[Path]) -> str:
    """What the column `model` says of networks: their names and parts of their SHA-256."""
    return ", ".join(f"{file.name.partition('.')[0]} {hash_file(file)[:8]}" for file in files)


def model_hashes(model: str) -> tuple[str, ...]:
    """The parts of the hashes in what `describe_model` returned, which say if networks are same."""
    return tuple(sorted(network.rpartition(" ")[2] for network in model.split(", ")))


def scan_rows(scans: Sequence[Scan], ages: dict[str, np.ndarray]) -> list[dict]:
    """Rows for `write_table`, in the order of the scans.

    Args:
        scans: who was scanned; their sites are a column where any is known.
        ages: (scans,) years by name, `stage_one_age` and `predicted_age` among them; where it is
            known `unlikeness` too.
    """
    has_sites = any(scan.site for scan in scans)
    unlikeness = ages.get("unlikeness")
    rows = []
    for place, scan in enumerate(scans):
        predicted = float(ages["predicted_age"][place])
        row = {
            "participant_id": scan.subject_id,
            "sex": SEX_NAMES[scan.sex],
            "age": scan.age,
            "stage_one_age": float(ages["stage_one_age"][place]),
            "predicted_age": predicted,
            "brain_pad": None if scan.age is None else predicted - scan.age,
        }
        row |= {"site": scan.site} if has_sites else {}
        rows.append(row | ({} if unlikeness is None else {"unlikeness": float(unlikeness[place])}))
    return rows


@dataclass(frozen=True)
class Predictions:
    """The scans of one table whose age is known.

    Attributes:
        path: the table.
        scans: one row per scan in the table's order, indexed by participant_id: sex (F, M or n/a),
            site ("" where unknown), age, predicted_age and brain_pad, all three in years, and
            unlikeness, NaN where unknown.
        without_age: how many scans were left out.
    """

    path: Path
    scans: pd.DataFrame
    without_age: int

    def describe(self) -> dict:
        """Which file the table was, and how much of it could be used."""
        counts = {"scans": len(self.scans), "without_age": self.without_age}
        return {"file": str(self.path), "sha256": hash_file(self.path)} | counts


def read_predictions(path: str | Path, sheets: Sequence[str | Path] = ()) -> Predictions:
    """Reads a table of ages; columns beyond those that are needed are ignored.

    Args:
        path: .tsv, .csv or .xlsx with the columns participant_id, age, sex and predicted_age;
            site and unlikeness where they are known.
        sheets: label sheets, in place of the columns age and sex: ages that a network gave may be
            passed on where those of the people may not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no scan of known age, or all problems of the rows, each with the expectation.
    """
    parsers = {} if sheets else {"age": _age, "sex": _sex}
    parsers |= {"predicted_age": _PREDICTED_AGE}
    rows = read_rows(Path(path))
    optional = {"site": _text, "unlikeness": _unlikeness}
    parsers |= {name: parse for name, parse in optional.items() if name in _header(rows)}
    read = parse_columns(path, rows, ("participant_id",), parsers)
    if sheets:
        labels = read_labels(sheets, [Path(name) for name in read])
        found = {name: labels.find(Path(name)) for name in read}
        if missing := [name for name, label in found.items() if label is None]:
            raise ValueError(f"{path}: {', '.join(missing[:5])} have no row in the label sheet")
        for name, row in read.items():
            row |= {"age": found[name].age, "sex": SEX_NAMES[found[name].sex]}
    columns = ["age", "sex", "site", "predicted_age", "unlikeness"]
    scans = pd.DataFrame.from_dict(read, orient="index", columns=columns).fillna({"site": ""})
    scans.index.name = "participant_id"
    numbers = dict.fromkeys(("age", "predicted_age", "unlikeness"), float)
    known = scans[scans["age"].notna()].astype(numbers)
    if known.empty:
        raise ValueError(f"{path}: no scan of known age; brain-PAD needs chronological ages")
    known["brain_pad"] = known["predicted_age"] - known["age"]
    return Predictions(Path(path), known, len(scans) - len(known))


def read_scans(path: str | Path) -> pd.DataFrame:
    """All scans of a table that predict.py or test.py wrote, in its order.

    Returns:
        Columns participant_id, model, site, qc_flag and message, "" where unknown; age,
        predicted_age, predicted_age_low and predicted_age_high in years, NaN where unknown.

    Raises:
        FileNotFoundError: no such file.
        ValueError: missing columns, or all problems of the rows.
    """
    texts = dict.fromkeys(("participant_id", "model", "site", "qc_flag", "message"), _text)
    years = dict.fromkeys(("predicted_age", "predicted_age_low", "predicted_age_high"), _years)
    parsers = texts | {"age": _age} | years
    rows = read_rows(Path(path))
    header = _header(rows)
    if "model" not in header:
        raise ValueError(
            f"{path}: no column model, which names the networks that predicted: predict the scans "
            "again with predict.py or test.py"
        )
    # test.py knows neither flags nor intervals, and sites only where a sheet names them.
    needed = {"participant_id", "age", "predicted_age"}
    read = {name: parse for name, parse in parsers.items() if name in needed | set(header)}
    # A person may have several scans, which the paths in the table of predict.py tell apart.
    found = parse_columns(path, rows, ("scan", "participant_id"), read)
    unknown = dict.fromkeys(texts, "") | dict.fromkeys(years, math.nan)
    scans = pd.DataFrame([unknown | row for row in found.values()], columns=list(parsers))
    return scans.astype(dict.fromkeys(("age", *years), float))


def read_predicted_ages(path: str | Path, scans: Sequence[Scan]) -> np.ndarray:
    """The predicted ages of `scans` in a table of ages, (scans,) years.

    Raises:
        FileNotFoundError, ValueError: as `read_columns`; or scans without a row.
    """
    rows = read_columns(path, ("participant_id",), {"predicted_age": _PREDICTED_AGE})
    missing = [scan.subject_id for scan in scans if scan.subject_id not in rows]
    if missing:
        raise ValueError(f"{path}: no row for {len(missing)} scans: {', '.join(missing[:5])}")
    return np.array([rows[scan.subject_id]["predicted_age"] for scan in scans])


def _header(rows: list[list[str]]) -> list[str]:
    """The first row that is not empty; [] where there is none."""
    return rows[first_row(rows)] if rows else []


_PREDICTED_AGE = parse_number(-1000, 1000, "years as a number")


def _text(text: str) -> str:
    return "" if text.lower() in UNKNOWN_WORDS else text


def _years(text: str) -> float:
    return math.nan if text.lower() in UNKNOWN_WORDS else _PREDICTED_AGE(text)


def _unlikeness(text: str) -> float:
    if text.lower() in UNKNOWN_WORDS:
        return math.nan
    return parse_number(0, math.inf, "a number of at least 0")(text)


def _age(text: str) -> float:
    """Years, NaN where unknown."""
    if text.lower() in UNKNOWN_WORDS:
        return math.nan
    return parse_number(0, OLDEST_AGE, f"years from 0 to {OLDEST_AGE} or n/a")(text)


def _sex(text: str) -> str:
    if text.lower() in UNKNOWN_WORDS:
        return SEX_NAMES[None]
    if text.lower() not in SEX_WORDS:
        raise ValueError("F, M or n/a")
    return SEX_NAMES[SEX_WORDS[text.lower()]]


def format_difference(title: str, difference: dict[str, float]) -> str:
    """What `mae_difference` returns, as a line."""
    return f"{title}, paired: {format_figure(difference)} years"


def format_figures(rows: dict[str, dict]) -> str:
    """A table of PRINTED figures, from what `score_with_intervals` returns by row title."""
    width = max(12, *map(len, rows))
    lines = [" " * width + "".join(f"{figure:>23s}" for figure in PRINTED)]
    for title, figures in rows.items():
        lines.append(
            f"{title:{width}s}"
            + "".join(f" {format_figure(figures[name]):>22s}" for name in PRINTED)
        )
    return "\n".join(lines)


def format_figure(figure: dict) -> str:
    """A value with its interval in brackets, where there is one; - where it is undefined."""
    text = "-" if figure["value"] is None else f"{figure['value']:.2f}"
    if figure["low"] is not None:
        text += f" [{figure['low']:.2f}, {figure['high']:.2f}]"
    return text
