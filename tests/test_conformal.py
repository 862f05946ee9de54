import math

import numpy as np
import pytest
from scipy.stats import beta

from analysis.brain_pad.conformal import (
    PERCENTS,
    Limits,
    conformal_limit,
    coverage,
    coverage_across_sites,
    fit_limits,
    fit_limits_over_sites,
)


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


def sites_with_offsets(*offsets: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ages, predicted ages and names of sites of 50 people, each read with its own offset."""
    generator = np.random.default_rng(0)
    age = generator.uniform(20, 80, 50 * len(offsets))
    site = np.repeat([f"site {number}" for number in range(len(offsets))], 50)
    return age, age + np.repeat(offsets, 50) + generator.normal(0, 3, len(age)), site


def test_limits_over_sites_are_the_mean_of_each_sites_own_however_large_it_is():
    age, predicted, site = sites_with_offsets(0, 8)
    own = [fit_limits(age[s], predicted[s]).years[90][0] for s in (slice(50), slice(50, None))]
    assert own[1] > own[0] + 4
    limits = fit_limits_over_sites(age, predicted, site)
    assert limits.years[90] == (pytest.approx(np.mean(own)),)
    more = [np.concatenate([values, *[values[:50]] * 9]) for values in (age, predicted, site)]
    assert fit_limits_over_sites(*more).years[90][0] == pytest.approx(np.mean(own), abs=0.8)


def test_limits_over_sites_need_two_sites():
    with pytest.raises(ValueError, match="1 sites: two or more expected"):
        fit_limits_over_sites(*sites_with_offsets(3))


def test_coverage_across_sites_is_of_limits_that_have_not_seen_the_site():
    """Two sites alike and one far off: the far one is not covered, the others are."""
    found = coverage_across_sites(*sites_with_offsets(0, 0, 30))
    assert [found[f"site {n}"]["90"]["value"] for n in range(3)] == [1.0, 1.0, 0.0]
    assert found["site 2"]["90"]["mean_half_width"] < 8
    assert {cell["n"] for site in found.values() for cell in site.values()} == {50}
