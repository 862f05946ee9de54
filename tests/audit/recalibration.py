"""What recalibration to a scanner is worth: local people drawn from a site, judged on the others.

    python -m tests.audit.recalibration docs/held_out_sites.csv --labels SHEET

The table has scans of three or more sites, each predicted by networks that know no scan of its
site (`make_folds --hold_out site`, cross_validate.sh). Per site, number of local people and draw,
the correction is fitted on the people drawn and judged on the others. Prior and raw intervals of a
site come from the other sites, never from the site itself.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.brain_pad.conformal import fit_limits_over_sites
from analysis.brain_pad.recalibration import (
    UNSEEN_SITES,
    fit_local_limits,
    fit_recalibration,
    leave_one_out,
    measure_prior,
)
from utils.cli import new_parser, number, run_entry
from utils.results.tables import read_predictions


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Measure what recalibration to a scanner is worth.")
    parser.add_argument("table", metavar="TABLE", help="ages of sites that were held out")
    parser.add_argument("--labels", nargs="*", default=[], metavar="SHEET", help="with their ages")
    parser.add_argument("--people", nargs="+", type=number(int, low=5), default=[5, 10, 20])
    parser.add_argument("--draws", type=number(int, low=1), default=200)
    parser.add_argument("--seed", type=number(int, low=0), default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Prints and returns the figures, one row per site and number of local people."""
    args = build_parser().parse_args(argv)
    scans = read_predictions(args.table, args.labels).scans
    ages = {
        site: people[["age", "predicted_age"]].to_numpy().T
        for site, people in scans.groupby("site")
    }
    print("prior from all sites: offset SD {:.1f}, error SD {:.1f} years".format(
        *measure_prior(list(ages.values()))))  # fmt: skip
    rows = []
    for name, (age, predicted_age) in ages.items():
        others = scans[scans["site"] != name]
        offset, error = measure_prior([both for site, both in ages.items() if site != name])
        prior = replace(UNSEEN_SITES, offset=offset, error=error)
        columns = (others[column].to_numpy() for column in ("age", "predicted_age", "site"))
        width = fit_limits_over_sites(*columns).years[90][0]
        print(f"{name}: {len(age)} people, prior: offset SD {offset:.1f}, error SD {error:.1f}")
        for count in args.people:
            rows.append({"site": name, "people": count})
            rows[-1] |= judge(age, predicted_age, width, count, args, prior)
            print("  " + "  ".join(f"{key} {value}" for key, value in list(rows[-1].items())[1:]))
    return rows


def judge(age, predicted_age, raw_width: float, count: int, args, prior) -> dict:
    """Mean figures over the draws, before and after, on the people who were not drawn."""
    generator = np.random.default_rng(args.seed)
    draws = []
    for _ in range(args.draws):
        order = generator.permutation(len(age))
        local, new = order[:count], order[count:]
        known, seen = age[local], predicted_age[local]
        fitted = fit_recalibration(known, seen, prior=prior)
        width = fit_local_limits(leave_one_out(known, seen, prior=prior) - known, prior=prior)
        error, raw = fitted.correct(predicted_age[new]) - age[new], predicted_age[new] - age[new]
        width = width.half_width(error, 90)
        covered = 100 * (abs(error) <= width).mean()
        draws.append((
            abs(raw).mean(), abs(error).mean(), abs(known.mean() - age[new]).mean(),
            raw.mean(), error.mean(), abs(error.mean()),
            100 * (abs(raw) <= raw_width).mean(), covered, 100 * (covered < 80), width.mean(),
        ))  # fmt: skip
    names = ("mae", "mae_after", "mae_of_mean_age", "pad", "pad_after", "abs_pad_after",
             "inside", "inside_after", "draws_below_80", "half_width")  # fmt: skip
    return {
        name: round(float(value), 2)
        for name, value in zip(names, np.mean(draws, axis=0), strict=True)
    }


if __name__ == "__main__":
    run_entry(main)
