"""What recalibration to a scanner is worth: local people drawn from a site, judged on the others.

    python -m tests.audit.recalibration IXI/predictions.tsv DS002748/predictions.tsv

One table per site that the networks have never seen. Per site, number of local people and draw,
the correction is fitted on the people drawn and judged on the others. The prior of a site comes
from the other tables and from --further, never from the site itself.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.brain_pad.recalibrate import read_local_people
from analysis.brain_pad.recalibration import (
    UNSEEN_SITES,
    fit_local_limits,
    fit_recalibration,
    leave_one_out,
    measure_prior,
)
from utils.cli import new_parser, number, run_entry


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Measure what recalibration to a scanner is worth.")
    parser.add_argument("tables", nargs="+", metavar="PREDICTIONS", help="one table per site")
    parser.add_argument("--people", nargs="+", type=number(int, low=5), default=[5, 10, 20])
    parser.add_argument("--draws", type=number(int, low=1), default=200)
    parser.add_argument("--seed", type=number(int, low=0), default=0)
    parser.add_argument(
        "--further", nargs="*", type=number(float), default=[-17.0], metavar="YEARS",
        help="mean brain-PADs of sites that are not at hand (docs/RESULTS.md, Other scanners)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Prints and returns the figures, one row per site and number of local people."""
    args = build_parser().parse_args(argv)
    sites = {table: read_local_people([Path(table)]).people for table in args.tables}
    ages = {name: people[["age", "predicted_age"]].to_numpy().T for name, people in sites.items()}
    print("prior from all sites: offset SD {:.1f}, error SD {:.1f} years".format(
        *measure(list(ages.values()), args.further)))  # fmt: skip
    rows = []
    for name, people in sites.items():
        others = [both for other, both in ages.items() if other != name]
        offset, error = measure(others, args.further)
        prior = replace(UNSEEN_SITES, offset=offset, error=error or UNSEEN_SITES.error)
        age, predicted_age = ages[name]
        inside = (people["predicted_age_low"] <= age) & (age <= people["predicted_age_high"])
        print(f"{name}: {len(age)} people, prior: offset SD {offset:.1f}, error SD {error:.1f}")
        for count in args.people:
            rows.append({"table": name, "people": count})
            rows[-1] |= judge(age, predicted_age, inside.to_numpy(), count, args, prior)
            print("  " + "  ".join(f"{key} {value}" for key, value in list(rows[-1].items())[1:]))
    return rows


def measure(sites: list, further: list[float]) -> tuple[float, float]:
    """SDs of offsets and errors from these sites, and from mean brain-PADs of further ones."""
    offset, error = measure_prior(sites) if sites else (0.0, 0.0)
    squares = [offset**2] * len(sites) + [years**2 for years in further]
    return float(np.sqrt(np.mean(squares))), error


def judge(age, predicted_age, inside, count: int, args, prior) -> dict:
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
            100 * inside[new].mean(), covered, 100 * (covered < 80), width.mean(),
        ))  # fmt: skip
    names = ("mae", "mae_after", "mae_of_mean_age", "pad", "pad_after", "abs_pad_after",
             "inside", "inside_after", "draws_below_80", "half_width")  # fmt: skip
    return {
        name: round(float(value), 2)
        for name, value in zip(names, np.mean(draws, axis=0), strict=True)
    }


if __name__ == "__main__":
    run_entry(main)
