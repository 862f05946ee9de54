"""Ages corrected for one scanner, from a few local healthy people of known age.

The corrected age is a straight line of the predicted age:

    corrected = predicted - offset - gain * (predicted - centre)

- **Offset**: the mean brain-PAD of the local people, shrunken towards 0. Offsets of sites have the
  variance t^2 about 0, and the mean of n people has the variance s^2 / n about the offset of its
  site. The best guess is t^2 / (t^2 + s^2 / n) times the mean (empirical Bayes: Efron and Morris
  1975, Journal of the American Statistical Association 70, 311-319).
- **Gain**: the least-squares slope of brain-PAD on predicted age, shrunken towards 0 likewise. Its
  variance is s^2 over the sum of squares of the predicted ages. Age is regressed on predicted age,
  the "inverse" calibration of Krutchkoff 1967 (Technometrics 9, 425-439): its errors are smallest
  for people like the local ones. The other way round, as Cole's correction, it magnifies noise.
- **s^2**: pooled from the local people and from other sites, each weighted by its degrees of
  freedom (Smyth 2004, doi 10.2202/1544-6115.1027).
- **Intervals**: conformal limits of the leave-one-out errors (jackknife, see Barber et al. 2021,
  doi 10.1214/20-AOS1965) where there are enough people for the level: 4 for 80, 9 for 90 and 19 for
  95 %. Below, Student's t with the pooled variance of these errors and its degrees of freedom.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from analysis.brain_pad.bias_correction import MINIMUM_SLOPE, BiasCorrection
from analysis.brain_pad.conformal import PERCENTS, Limits, conformal_limit

MINIMUM_PEOPLE = 5
MINIMUM_SPREAD = 5.0  # SD of the ages in years; below, the offset alone is fitted


@dataclass(frozen=True)
class Prior:
    """What other sites say of a new one; all but `freedom` are standard deviations.

    Attributes:
        offset: of the sites' mean brain-PADs about 0, years.
        gain: of their gains about 0.
        error: of the brain-PADs of a site about its mean, years.
        freedom: how many local people the sites' `error` counts as much as.
    """

    offset: float
    gain: float
    error: float
    freedom: float


# Offset and error are measured on three sites, each read by a network that knows the two others, by
# tests/audit/recalibration.py (docs/analyse.md). Gain and freedom are chosen: sites are too few.
UNSEEN_SITES = Prior(offset=4.7, gain=0.3, error=9.8, freedom=10)


@dataclass(frozen=True)
class Recalibration:
    """The correction for one scanner.

    Attributes:
        model: of the networks, as in the column `model` of the table of ages.
        people: how many were local.
        offset: years, at `centre`.
        gain: years per year, from -1 to 1.
        centre: mean of the predicted ages, years.
        predicted_range: lowest and highest predicted age of the local people, years.

    Raises:
        ValueError: numbers that are not finite or impossible.
    """

    model: str
    people: int
    offset: float
    gain: float
    centre: float
    predicted_range: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.predicted_range
        numbers = (self.offset, self.gain, self.centre, low, high)
        if not all(map(math.isfinite, numbers)) or not -1 <= self.gain <= 1 or not low <= high:
            raise ValueError(f"{self}: finite numbers, a gain from -1 to 1 and a range expected")
        if self.people < MINIMUM_PEOPLE or not isinstance(self.model, str):
            raise ValueError(f"{self}: a model and at least {MINIMUM_PEOPLE} people expected")

    def correct(self, predicted_age: np.ndarray) -> np.ndarray:
        """Corrected ages in years; beyond `predicted_range` the correction stays that of its end.

        So five people in their twenties do not pull everybody towards their age.
        """
        inside = np.clip(predicted_age, *self.predicted_range)
        return predicted_age - self.offset - self.gain * (inside - self.centre)


def fit_recalibration(
    age: np.ndarray, predicted_age: np.ndarray, *, model: str = "", prior: Prior = UNSEEN_SITES
) -> Recalibration:
    """The correction from local people.

    Args:
        age: (n,) years, one scan per person.
        predicted_age: (n,) years.
        model: of the networks that predicted.
        prior: what other sites say.

    Raises:
        ValueError: fewer than MINIMUM_PEOPLE.
    """
    if len(age) < MINIMUM_PEOPLE:
        raise ValueError(f"{len(age)} people: at least {MINIMUM_PEOPLE} expected")
    offset, gain = _fit_line(age, predicted_age, predicted_age, prior)
    return Recalibration(
        model, len(age), offset, gain, float(predicted_age.mean()),
        (float(predicted_age.min()), float(predicted_age.max())),
    )  # fmt: skip


def fit_local_bias(
    age: np.ndarray, predicted_age: np.ndarray, *, prior: Prior = UNSEEN_SITES
) -> BiasCorrection:
    """The line of predicted on chronological age, for Beheshti's brain-PAD; shrunken likewise."""
    offset, gain = _fit_line(age, predicted_age, age, prior)
    slope = 1 + max(gain, MINIMUM_SLOPE - 1)
    intercept = offset + float(age.mean()) * (1 - slope)
    return BiasCorrection(slope, intercept, (float(age.min()), float(age.max())))


def leave_one_out(
    age: np.ndarray, predicted_age: np.ndarray, *, prior: Prior = UNSEEN_SITES
) -> np.ndarray:
    """(n,) corrected ages in years, each by the line of all other people."""
    corrected = np.empty(len(age))
    for person in range(len(age)):
        others = np.arange(len(age)) != person
        known, predicted = age[others], predicted_age[others]
        offset, gain = _fit_line(known, predicted, predicted, prior)
        inside = np.clip(predicted_age[person], predicted.min(), predicted.max())
        corrected[person] = predicted_age[person] - offset - gain * (inside - predicted.mean())
    return corrected


def fit_local_limits(error: np.ndarray, *, prior: Prior = UNSEEN_SITES) -> Limits:
    """Half widths of the intervals for PERCENTS, from (n,) leave-one-out errors in years."""
    freedom = prior.freedom + len(error)
    spread = math.sqrt((prior.freedom * prior.error**2 + (error**2).sum()) / freedom)
    years: dict[int, tuple[float, ...]] = {}
    least = 0.0  # limits of both kinds are to rise with the coverage
    for percent in PERCENTS:
        if is_conformal(len(error), percent):
            limit = conformal_limit(np.abs(error), percent)
        else:
            limit = spread * float(student.ppf(0.5 + percent / 200, freedom))
        least = max(least, limit)
        years[percent] = (least,)
    return Limits((), years)


def is_conformal(people: int, percent: int) -> bool:
    """Whether there are enough people for a conformal interval of this coverage."""
    return people * (100 - percent) >= percent


def measure_prior(sites: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Standard deviations of offsets about 0 and of errors about them, for `Prior`.

    Args:
        sites: (n,) ages and (n,) predicted ages in years, by site that the networks never saw.

    Returns:
        The root mean square of the sites' mean brain-PADs, less what chance adds to it, and of
        their standard deviations.
    """
    pads = [predicted_age - age for age, predicted_age in sites]
    offsets = [pad.mean() ** 2 - pad.var(ddof=1) / len(pad) for pad in pads]
    errors = [pad.var(ddof=1) for pad in pads]
    return math.sqrt(max(np.mean(offsets), 0)), math.sqrt(np.mean(errors))


def _fit_line(
    age: np.ndarray, predicted_age: np.ndarray, along: np.ndarray, prior: Prior
) -> tuple[float, float]:
    """Offset at the mean of `along`, and gain of brain-PAD along it; both shrunken."""
    pad, steps = predicted_age - age, along - along.mean()
    squares = ((pad - pad.mean()) ** 2).sum()
    freedom = prior.freedom + len(pad) - 1
    variance = (prior.freedom * prior.error**2 + squares) / freedom
    offset = pad.mean() * prior.offset**2 / (prior.offset**2 + variance / len(pad))
    if age.std(ddof=1) < MINIMUM_SPREAD or not steps.any():
        return float(offset), 0.0
    slope = steps @ pad / (steps @ steps)
    gain = slope * prior.gain**2 / (prior.gain**2 + variance / (steps @ steps))
    return float(offset), float(np.clip(gain, -1, 1))
