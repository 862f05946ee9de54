r"""Fits the correction of ages for one scanner, for `predict.py --calibration`.

    python -m analysis.brain_pad.recalibrate ages/predictions.tsv --output calibration.json

The tables, which predict.py or test.py wrote, hold five or more local healthy people of known age.
A person counts once, with the first of their scans that has no flag. What is fitted, and from what:
analysis/brain_pad/recalibration.py.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.brain_pad.calibration import Calibration, fit_to_scanner, write_calibration
from analysis.brain_pad.recalibration import (
    MINIMUM_PEOPLE,
    MINIMUM_SPREAD,
    is_conformal,
    leave_one_out,
)
from utils.cli import Switch, add_subject_pattern, new_parser, run_entry
from utils.files import hash_file, require_absent
from utils.results.tables import UNLIKE, model_hashes, read_scans
from utils.scans.leakage import SEEN_IN_TRAINING, find_people


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Correct ages for a scanner, from local healthy people of known age.")
    parser.add_argument(
        "tables", nargs="+", type=Path, metavar="PREDICTIONS",
        help="tables of predict.py or test.py with the ages of healthy people",
    )  # fmt: skip
    add_subject_pattern(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="JSON", help="for predict.py --calibration"
    )
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace the output")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Writes the calibration; prints and returns the errors before and after."""
    args = build_parser().parse_args(argv)
    if not args.overwrite:
        require_absent(args.output)
    local = read_local_people(args.tables, pattern=args.subject_pattern)
    if len(local.people) < MINIMUM_PEOPLE:
        raise ValueError(
            f"{local.describe()}: at least {MINIMUM_PEOPLE} healthy people of known age expected"
        )
    age, predicted_age = local.people[["age", "predicted_age"]].to_numpy().T
    calibration = fit_to_scanner(age, predicted_age, source=local.source, model=local.model)
    write_calibration(args.output, calibration, overwrite=args.overwrite)
    corrected = leave_one_out(age, predicted_age)
    means = np.array([np.delete(age, person).mean() for person in range(len(age))])
    errors = {"before": predicted_age - age, "after": corrected - age, "mean age": means - age}
    report = {
        title: {"mae": float(abs(error).mean()), "mean_brain_pad": float(error.mean())}
        for title, error in errors.items()
    }
    print(local.describe())
    if len(sites := sorted(set(local.people["site"]) - {""})) > 1:
        print(f"note: people of {len(sites)} sites ({', '.join(sites[:5])}), one scanner expected")
    print(describe_fit(calibration, age))
    print("errors, each person left out of the fit in turn:   MAE   mean PAD")
    for title, figures in report.items():
        print(f"  {title:46s} {figures['mae']:6.2f} {figures['mean_brain_pad']:+9.2f}")
    if report["after"]["mae"] >= min(report["before"]["mae"], report["mean age"]["mae"]):
        print("note: corrected ages are no better here than raw ones, or than the mean age")
    print(f"{args.output}: for predict.py --calibration")
    return report


@dataclass(frozen=True)
class LocalPeople:
    """Who is in the tables.

    Attributes:
        people: one row per person: age and predicted_age in years, and the interval's ends where
            the tables have one.
        model: of the networks.
        source: the tables, their sha256 and the number of people.
        left_out: how many scans, by reason.
    """

    people: pd.DataFrame
    model: str
    source: dict[str, str | int]
    left_out: Counter

    def describe(self) -> str:
        """Tables, people, and what was left out."""
        out = "; ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        text = f"{self.source['file']}: {len(self.people)} people"
        return f"{text} (scans left out: {out})" if out else text


def read_local_people(tables: Sequence[Path], *, pattern: re.Pattern | None = None) -> LocalPeople:
    """The people of the tables, each with one scan; `pattern` finds them in names.

    Raises:
        FileNotFoundError, ValueError: as `read_scans` and `find_people`; or tables of several
            networks, or of unknown ones.
    """
    scans = pd.concat([read_scans(table).assign(table=str(table)) for table in tables])
    require_one_model(scans)
    reason = np.select(
        [
            scans["predicted_age"].isna(),
            scans["age"].isna(),
            ~scans["qc_flag"].isin(["ok", "", UNLIKE]),  # which is what recalibration is for
            scans["message"].str.contains(SEEN_IN_TRAINING, regex=False),
        ],
        ["without a predicted age", "without an age", "flagged", "of the networks' training set"],
        default="",
    )
    kept = scans[reason == ""]
    person_of = find_people(list(kept["participant_id"]), pattern=pattern)
    people = kept.assign(person=kept["participant_id"].map(person_of)).drop_duplicates("person")
    left_out = Counter(reason[reason != ""])
    left_out["further scans of the same people"] = len(kept) - len(people)
    source = {
        "file": ", ".join(table.name for table in tables),
        "sha256": ", ".join(map(hash_file, tables)),
        "scans": len(people),
    }
    return LocalPeople(people, scans["model"].iloc[0], source, +left_out)


def require_one_model(scans: pd.DataFrame) -> None:
    """Raises ValueError unless all ages are known to be of the same networks."""
    models = dict(zip(scans["model"], scans["table"], strict=True))
    if "" in models:
        raise ValueError(
            f"{models['']}: rows without a model: which networks predicted? predict them again"
        )
    if len(set(map(model_hashes, models))) > 1:
        found = "; ".join(f"{model} in {table}" for model, table in models.items())
        raise ValueError(f"ages of different networks, one expected: {found}")


def describe_fit(calibration: Calibration, age: np.ndarray) -> str:
    """Offset, gain and interval as a line each."""
    scanner, limits = calibration.scanner, calibration.limits
    gain = f"gain {scanner.gain:.2f} years per year of predicted age beyond {scanner.centre:.1f}"
    if scanner.gain == 0:
        gain = f"no gain: the ages spread by an SD of {age.std(ddof=1):.1f} years, "
        gain += f"{MINIMUM_SPREAD:g} needed"
    kind = "conformal" if is_conformal(len(age), 90) else "from Student's t: too few people"
    return (
        f"ages {age.min():.0f} to {age.max():.0f}; offset {scanner.offset:+.1f} years, {gain}\n"
        f"90 % interval: corrected age +- {limits.years[90][0]:.1f} years ({kind})"
    )


if __name__ == "__main__":
    run_entry(main)
