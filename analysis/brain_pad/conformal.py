"""Conformal prediction intervals of age from the errors of unseen scans.

The interval is predicted age plus and minus a limit: the k-th smallest absolute error of n healthy
scans, k = ceil((n + 1) * coverage). A new scan of the same population falls inside with at least
that probability, whatever the distribution of errors (split conformal: Lei et al. 2018,
doi 10.1080/01621459.2017.1307116). With out-of-fold errors (cross-conformal: Vovk 2015,
doi 10.1007/s10472-013-9368-4) this holds approximately: the networks of the folds have seen fewer
scans than the one that is applied, so limits are rather too wide than too narrow. The promise holds
on average over scans, not at each age, and not for other scanners or preprocessing. For these there
are limits over sites, from errors at sites that the networks have not learnt from, each site
counted alike. With a handful of sites nothing is promised: `coverage_across_sites` measures it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

PERCENTS = (80, 90, 95)
# A group must allow 95 %, for which 19 errors are needed.
MINIMUM_GROUP = 20


@dataclass(frozen=True)
class Limits:
    """Half widths of intervals, in one group of scans or in several of rising predicted age.

    `edges` are the predicted ages, in years, between the groups, which belong to the upper one;
    `years` has a limit for each group by coverage in per cent.

    Raises:
        ValueError: edges or limits that do not rise, or are not as many as there are groups.
    """

    edges: tuple[float, ...]
    years: dict[int, tuple[float, ...]]

    def __post_init__(self) -> None:
        rows = np.array([self.years[percent] for percent in sorted(self.years)], dtype=float)
        if rows.shape != (len(self.years), len(self.edges) + 1):
            raise ValueError(f"{self.years}: a limit a group expected, {len(self.edges)} edges")
        if not ((rows >= 0) & np.isfinite(rows)).all() or not (np.diff(rows, axis=0) >= 0).all():
            raise ValueError(f"{self.years}: finite years that rise with the coverage expected")
        if not np.isfinite(self.edges).all() or not (np.diff(self.edges) > 0).all():
            raise ValueError(f"edges {self.edges}: rising predicted ages expected")

    def half_width(self, predicted_age: np.ndarray, percent: int) -> np.ndarray:
        """(n,) years to be added to and subtracted from (n,) predicted ages."""
        group = np.searchsorted(self.edges, predicted_age, side="right")
        return np.array(self.years[percent])[group]


def conformal_limit(error: np.ndarray, percent: int) -> float:
    """The limit that a new absolute error keeps to with at least `percent` probability.

    Args:
        error: (n,) absolute errors in years of scans not trained on.
        percent: coverage.

    Raises:
        ValueError: so few errors that the limit would be infinite.
    """
    rank = -(-(len(error) + 1) * percent // 100)  # whole numbers: ceil(20 * 0.95) is not certain
    if rank > len(error):
        raise ValueError(
            f"{len(error)} errors: at least {-(-percent // (100 - percent))} expected for a "
            f"{percent} % interval"
        )
    return float(np.sort(error)[rank - 1])


def fit_limits(age: np.ndarray, predicted_age: np.ndarray, *, groups: int = 1) -> Limits:
    """Limits for PERCENTS, in groups of equal size by predicted age (Mondrian conformal).

    Groups hold the coverage in each of them, approximately, as their edges are quantiles of the
    same predicted ages: errors of the old are larger than those of the young.

    Args:
        age: (n,) years.
        predicted_age: (n,) years from networks not trained on these scans.
        groups: 1 for one limit for all.

    Raises:
        ValueError: too few errors in a group.
    """
    edges = np.quantile(predicted_age, np.arange(1, groups) / groups)
    group = np.searchsorted(edges, predicted_age, side="right")
    error = np.abs(predicted_age - age)
    years = {
        percent: tuple(conformal_limit(error[group == g], percent) for g in range(groups))
        for percent in PERCENTS
    }
    return Limits(tuple(map(float, edges)), years)


def fit_limits_over_sites(age: np.ndarray, predicted_age: np.ndarray, site: np.ndarray) -> Limits:
    """One limit for PERCENTS: the mean of the sites' own, so that no large site decides alone.

    Args:
        age: (n,) years.
        predicted_age: (n,) years from networks that know no scan of the same site.
        site: (n,) names.

    Raises:
        ValueError: fewer than two sites, or too few errors at one.
    """
    sites = [site == name for name in np.unique(site)]
    if len(sites) < 2:
        raise ValueError(f"{len(sites)} sites: two or more expected, each held out as a whole")
    own = [fit_limits(age[inside], predicted_age[inside]).years for inside in sites]
    return Limits((), {k: (float(np.mean([limits[k][0] for limits in own])),) for k in PERCENTS})


def coverage_across_sites(
    age: np.ndarray, predicted_age: np.ndarray, site: np.ndarray
) -> dict[str, dict[str, dict]]:
    """For each site the `coverage` of limits that were fitted on the others alone.

    Args:
        age: (n,) years.
        predicted_age: (n,) years from networks that know no scan of the same site.
        site: (n,) names, of three sites or more.
    """
    found = {}
    for name in np.unique(site):
        inside = site == name
        others = (values[~inside] for values in (age, predicted_age, site))
        limits = fit_limits_over_sites(*others)
        found[str(name)] = coverage(limits, age[inside], predicted_age[inside])
    return found


def coverage(limits: Limits, age: np.ndarray, predicted_age: np.ndarray) -> dict[str, dict]:
    """How many intervals hold the chronological age, by coverage promised in per cent.

    Args:
        limits: from other scans.
        age: (n,) years.
        predicted_age: (n,) years.

    Returns:
        The share covered with its exact 95 % interval (Clopper and Pearson 1934), n, and the mean
        half width in years.
    """
    found = {}
    for percent in limits.years:
        width = limits.half_width(predicted_age, percent)
        covered = int((np.abs(predicted_age - age) <= width).sum())
        exact = binomtest(covered, len(age)).proportion_ci(0.95, method="exact")
        found[str(percent)] = {
            "value": covered / len(age), "low": float(exact.low), "high": float(exact.high),
            "n": len(age), "mean_half_width": float(width.mean()),
        }  # fmt: skip
    return found
