import math

import numpy as np
import pytest
from scipy.stats import beta

from analysis.brain_pad.conformal import PERCENTS, Limits, conformal_limit, coverage, fit_limits


@pytest.mark.parametrize("percent", PERCENTS)
@pytest.mark.parametrize("count", [19, 20, 99, 205])
def test_limit_is_the_finite_sample_quantile(percent, count):
    error = np.random.default_rng(count).exponential(5, count)
    level = math.ceil((count + 1) * percent / 100 - 1e-9) / count
    expected = np.quantile(error, level, method="inverted_cdf")
    assert conformal_limit(error, percent) == expected


@pytest.mark.parametrize(("percent", "least"), [(80, 4), (90, 9), (95, 19)])
def test_infinite_limits_are_refused(percent, least):
    assert conformal_limit(np.arange(float(least)), percent) == least - 1
    with pytest.raises(ValueError, match=f"{least - 1} errors: at least {least} expected"):
        conformal_limit(np.arange(least - 1.0), percent)


def test_new_scans_are_covered_as_promised_whatever_the_errors():
    generator = np.random.default_rng(0)
    covered = {percent: [] for percent in PERCENTS}
    for _ in range(400):
        age = generator.uniform(20, 90, 70)
        predicted_age = age + 6 * generator.standard_t(3, 70)
        limits = fit_limits(age[:40], predicted_age[:40])
        error = np.abs(predicted_age - age)[40:]
        for percent in PERCENTS:
            width = limits.half_width(predicted_age[40:], percent)
            covered[percent].append((error <= width).mean())
    for percent, shares in covered.items():
        exact = math.ceil(41 * percent / 100) / 41  # for errors without ties
        assert np.mean(shares) == pytest.approx(exact, abs=0.012)


def test_limits_by_predicted_age_cover_young_and_old_alike_where_one_limit_does_not():
    generator = np.random.default_rng(1)
    age = generator.uniform(20, 90, 60_000)
    predicted_age = age + generator.normal(size=len(age)) * np.where(age < 45, 2, 8)
    fitted, new = slice(0, 3000), slice(3000, None)
    young, old = predicted_age[new] < 40, predicted_age[new] > 70

    def share(limits, of):
        found = coverage(limits, age[new][of], predicted_age[new][of])
        return found["90"]["value"]

    one = fit_limits(age[fitted], predicted_age[fitted])
    three = fit_limits(age[fitted], predicted_age[fitted], groups=3)
    assert share(one, young) > 0.95
    assert share(one, old) < 0.88
    assert share(three, young) == pytest.approx(0.9, abs=0.03)
    assert share(three, old) == pytest.approx(0.9, abs=0.03)


def test_an_edge_belongs_to_the_upper_group():
    limits = Limits((40.0, 60.0), {90: (1.0, 2.0, 3.0)})
    widths = limits.half_width(np.array([-5.0, 39.9, 40.0, 59.9, 60.0, 200.0]), 90)
    assert widths.tolist() == [1, 1, 2, 2, 3, 3]


def test_interval_of_the_coverage_is_clopper_and_pearsons():
    age = np.zeros(48)
    error = np.where(np.arange(48) < 44, 1.0, 9.0)
    found = coverage(Limits((), {90: (5.0,)}), age, error)["90"]
    assert found["value"] == 44 / 48
    assert (found["n"], found["mean_half_width"]) == (48, 5)
    assert found["low"] == pytest.approx(beta.ppf(0.025, 44, 5))
    assert found["high"] == pytest.approx(beta.ppf(0.975, 45, 4))
    assert coverage(Limits((), {90: (9.0,)}), age, error)["90"]["high"] == 1


@pytest.mark.parametrize(
    ("edges", "years", "message"),
    [
        ((), {90: (1.0, 2.0)}, "a limit a group"),
        ((), {80: (2.0,), 90: (1.0,)}, "rise with the coverage"),
        ((), {90: (math.inf,)}, "finite"),
        ((60.0, 40.0), {90: (1.0, 2.0, 3.0)}, "rising predicted ages"),
        ((math.nan,), {90: (1.0, 2.0)}, "rising predicted ages"),
    ],
)
def test_impossible_limits_are_refused(edges, years, message):
    with pytest.raises(ValueError, match=message):
        Limits(edges, years)
