"""The calibration: bias correction and limits, fitted on out-of-fold ages, applied to all others.

It is kept in a small JSON file, which names the table that it was fitted on. Fitted to a
scanner, it holds the line of recalibration.py as well, and its limits are those of the ages that
this line corrects.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.brain_pad.bias_correction import BiasCorrection, fit_bias_correction
from analysis.brain_pad.conformal import (
    MINIMUM_GROUP,
    Limits,
    conformal_limit,
    coverage,
    fit_limits,
    fit_limits_over_sites,
)
from analysis.brain_pad.recalibration import (
    Recalibration,
    fit_local_bias,
    fit_local_limits,
    fit_recalibration,
    leave_one_out,
)
from utils.files import write_json
from utils.results.tables import COLUMNS, UNLIKE, Predictions

FORMAT = "TSAN brain-PAD calibration 1"
SCANNER_FORMAT = "TSAN brain-PAD calibration 2"  # with `scanner`
TERCILES = 3
KNOWN_PERCENT = 95  # of new scans of known scanners are within the limit of unlikeness
# Raw and corrected, always side by side.
PADS = ("brain_pad", "brain_pad_cole", "brain_pad_beheshti")


@dataclass(frozen=True)
class Calibration:
    """Bias correction and limits of intervals.

    Attributes:
        source: the table that they were fitted on, its sha256 and how many scans were used; of the
            limits, where they are of another table, as `limits_from`.
        bias: the correction.
        limits: one limit for all predicted ages.
        limits_by_predicted_age: in terciles; None where there are too few scans for three groups.
        scanner: the correction for one scanner, whose corrected ages the limits are for; None
            where limits are for predicted ages.
        unlike_limit: the unlikeness that KNOWN_PERCENT of new scans of known scanners keep to; None
            where it was not measured.
    """

    source: dict[str, str | int | dict]
    bias: BiasCorrection
    limits: Limits
    limits_by_predicted_age: Limits | None
    scanner: Recalibration | None = None
    unlike_limit: float | None = None


def fit_calibration(
    out_of_fold: Predictions, held_out_sites: Predictions | None = None
) -> Calibration:
    """Fits correction and limits on healthy scans, each predicted by networks not trained on it.

    Args:
        out_of_fold: scans of sites that the networks have learnt from; with their unlikeness, the
            limit is fitted beyond which a scan is called unlike them.
        held_out_sites: scans of several sites, each predicted by networks not trained on its site.
            Their errors are those of a stranger's scans, and the limits are theirs.

    Raises:
        ValueError: too few scans or sites, or ages that the predictions do not follow; with the
            table.
    """
    source = out_of_fold.describe() | {"file": out_of_fold.path.name}
    with _named(out_of_fold):
        columns = ("age", "predicted_age", "unlikeness")
        age, predicted_age, unlikeness = _columns(out_of_fold, *columns)
        bias = fit_bias_correction(age, predicted_age)
        known = not np.isnan(unlikeness).any()
        unlike_limit = conformal_limit(unlikeness, KNOWN_PERCENT) if known else None
        if held_out_sites is None:
            limits, grouped = fit_limits(age, predicted_age), None
            if len(age) >= TERCILES * MINIMUM_GROUP:
                grouped = fit_limits(age, predicted_age, groups=TERCILES)
            return Calibration(source, bias, limits, grouped, unlike_limit=unlike_limit)
    with _named(held_out_sites):
        limits = fit_limits_over_sites(*_columns(held_out_sites, "age", "predicted_age", "site"))
    limits_from = held_out_sites.describe() | {"file": held_out_sites.path.name}
    source |= {"limits_from": limits_from}
    return Calibration(source, bias, limits, None, unlike_limit=unlike_limit)


def _columns(table: Predictions, *names: str) -> list[np.ndarray]:
    return [table.scans[name].to_numpy() for name in names]


@contextmanager
def _named(table: Predictions) -> Iterator[None]:
    """Puts the table's path in front of what is wrong with its ages."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{table.path}: {error}") from error


def fit_to_scanner(
    age: np.ndarray, predicted_age: np.ndarray, *, source: dict[str, str | int], model: str
) -> Calibration:
    """Fits correction and limits for one scanner, see recalibration.py.

    Args:
        age: (n,) years of local healthy people, one scan each.
        predicted_age: (n,) years.
        source: the tables, their sha256 and the number of scans.
        model: of the networks that predicted.

    Raises:
        ValueError: too few people.
    """
    scanner = fit_recalibration(age, predicted_age, model=model)
    error = leave_one_out(age, predicted_age) - age
    bias = fit_local_bias(age, predicted_age)
    return Calibration(source, bias, fit_local_limits(error), None, scanner)


def apply_calibration(calibration: Calibration, scans: pd.DataFrame) -> pd.DataFrame:
    """`scans` with corrected ages and brain-PADs, 90 % intervals and a flag of extrapolation.

    Args:
        calibration: from `fit_calibration` or `read_calibration`.
        scans: columns age and predicted_age, in years.
    """
    return scans.assign(**_corrected(calibration, scans["age"], scans["predicted_age"]))


def report_coverage(calibration: Calibration, scans: pd.DataFrame) -> dict:
    """Coverage of the calibration's limits on scans that they were not made from."""
    age, predicted_age = scans["age"].to_numpy(), scans["predicted_age"].to_numpy()
    kinds = ("limits", "limits_by_predicted_age")
    limits = {name: getattr(calibration, name) for name in kinds}
    return {name: coverage(each, age, predicted_age) for name, each in limits.items() if each}


def complete_row(row: dict, calibration: Calibration | None) -> dict:
    """All COLUMNS of a scan in the table of ages, from what was measured.

    Args:
        row: some of COLUMNS; age and predicted_age in years.
        calibration: gives intervals and corrections; without it these columns stay unknown (None).
    """
    row = dict.fromkeys(COLUMNS) | row
    age, predicted_age = row["age"], row["predicted_age"]
    if predicted_age is None:
        return row
    if age is not None:
        row["brain_pad"] = predicted_age - age
    if calibration is not None:
        found = _corrected(calibration, math.nan if age is None else age, predicted_age)
        known = {name: float(years) for name, years in found.items() if name in COLUMNS}
        row |= {name: years for name, years in known.items() if not math.isnan(years)}
        add_message(row, _extrapolation(row, calibration))
        if is_unlike(row, calibration):
            add_flag(row, UNLIKE, "unlike the training scans, as scans of other scanners are")
    return row


def is_unlike(row: Mapping, calibration: Calibration | None) -> bool:
    """Whether a scan is less like the training scans than the calibration's limit."""
    limit, unlikeness = calibration and calibration.unlike_limit, row.get("unlikeness")
    return limit is not None and unlikeness is not None and unlikeness > limit


def add_flag(row: dict, code: str, text: str) -> None:
    """Puts a code behind the flags of a row of COLUMNS, once, and its text behind the message."""
    flags = [flag for flag in (row["qc_flag"] or "ok").split(",") if flag != "ok"]
    if code not in flags:
        row["qc_flag"] = ",".join([*flags, code])
    add_message(row, text)


def add_message(row: dict, text: str) -> None:
    """Puts a text, if there is one, behind the message of a row of COLUMNS."""
    if text:
        row["message"] = "; ".join(filter(None, (row["message"], text)))


def _corrected(
    calibration: Calibration, age: float | pd.Series, predicted_age: float | pd.Series
) -> dict:
    """Columns of one scan or of several, in years; NaN where they need an unknown age."""
    width = calibration.limits.half_width(predicted_age, 90)
    local = calibration.scanner and calibration.scanner.correct(predicted_age)
    centre = predicted_age if local is None else local
    cole = calibration.bias.cole(predicted_age)
    beheshti = calibration.bias.beheshti(predicted_age, age)
    return {
        "predicted_age_low": centre - width,
        "predicted_age_high": centre + width,
        "predicted_age_cole": cole,
        "predicted_age_beheshti": beheshti,
        "brain_pad_cole": cole - age,
        "brain_pad_beheshti": beheshti - age,
        "outside_fitted_ages": calibration.bias.outside(age),
    } | (
        {} if local is None else {"recalibrated_age": local, "brain_pad_recalibrated": local - age}
    )


def _extrapolation(row: dict, calibration: Calibration) -> str:
    """A word on an age that is far from those of a scanner's people; "" for all others."""
    if calibration.scanner is None:
        return ""
    (low, high), years = calibration.scanner.predicted_range, row["predicted_age"]
    width = float(calibration.limits.half_width(years, 90))
    if low - width <= years <= high + width:
        return ""
    return (
        f"predicted age far from the {low:.0f} to {high:.0f} years of the calibration's people: "
        "recalibrated_age and interval are a guess"
    )


def write_calibration(path: Path, calibration: Calibration, *, overwrite: bool = False) -> None:
    """Writes the JSON file that `read_calibration` reads."""
    content = asdict(calibration)
    for optional in ("scanner", "unlike_limit"):
        if content[optional] is None:
            del content[optional]
    name = SCANNER_FORMAT if calibration.scanner else FORMAT
    write_json(path, {"format": name} | content, overwrite=overwrite)


def read_calibration(path: str | Path) -> Calibration:
    """Reads and checks what `write_calibration` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a calibration, or one with impossible numbers.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] not in (FORMAT, SCANNER_FORMAT):
            raise ValueError(f"format {content['format']!r}, {FORMAT!r} or 2 expected")
        bias, grouped = content["bias"], content["limits_by_predicted_age"]
        source = {name: content["source"][name] for name in ("file", "sha256", "scans")}
        return Calibration(
            source | content["source"],
            BiasCorrection(bias["slope"], bias["intercept"], tuple(bias["age_range"])),
            _limits(content["limits"]),
            None if grouped is None else _limits(grouped),
            _scanner(content["scanner"]) if content["format"] == SCANNER_FORMAT else None,
            None if (limit := content.get("unlike_limit")) is None else float(limit),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a calibration of script/brain_pad.sh or script/recalibrate.sh "
            f"({type(error).__name__}: {error})"
        ) from error


def _scanner(content: dict) -> Recalibration:
    return Recalibration(**content | {"predicted_range": tuple(content["predicted_range"])})


def _limits(content: dict) -> Limits:
    years = {int(percent): tuple(limits) for percent, limits in content["years"].items()}
    if 90 not in years:
        raise ValueError(f"limits for {sorted(years)} %, 90 % among them expected")
    return Limits(tuple(content["edges"]), years)
