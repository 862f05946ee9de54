import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from utils.results.metrics import (
    FIGURES,
    mae_difference,
    score,
    score_with_intervals,
    within_bin_correlation,
    within_bin_spread,
)


@pytest.fixture
def ages():
    generator = np.random.default_rng(0)
    age = generator.uniform(20, 90, 60).round()
    return age, 0.8 * age + 12 + generator.normal(0, 6, 60)


def test_figures_equal_scipys_and_scikit_learns(ages):
    age, predicted = ages
    figures = score(age, predicted)
    assert figures["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(age, predicted))
    rmse = sklearn_metrics.root_mean_squared_error(age, predicted)
    assert figures["rmse"] == pytest.approx(rmse)
    assert figures["pearson"] == pytest.approx(stats.pearsonr(age, predicted)[0])
    assert figures["spearman"] == pytest.approx(stats.spearmanr(age, predicted)[0])
    assert figures["r2"] == pytest.approx(sklearn_metrics.r2_score(age, predicted))
    assert figures["mean_brain_pad"] == pytest.approx(np.mean(predicted - age))
    expected = stats.pearsonr(predicted - age, age)[0]
    assert figures["brain_pad_age_correlation"] == pytest.approx(expected)
    assert tuple(figures) == FIGURES


def test_intervals_are_percentiles_of_figures_of_scans_drawn_together(ages):
    age, predicted = ages
    drawn = np.random.default_rng(3).integers(60, size=(2000, 60))
    samples = [stats.spearmanr(age[chosen], predicted[chosen])[0] for chosen in drawn]
    found = score_with_intervals(age, predicted, seed=3)["spearman"]
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(samples, [2.5, 97.5]))
    assert found["low"] < found["value"] < found["high"]


def test_intervals_are_reproducible_and_follow_their_seed(ages):
    assert score_with_intervals(*ages) == score_with_intervals(*ages)
    assert score_with_intervals(*ages) != score_with_intervals(*ages, seed=1)


def test_undefined_figures_are_none_not_nan():
    one = score_with_intervals(np.array([50.0]), np.array([53.0]))
    assert one["mae"] == {"value": 3, "low": None, "high": None}
    assert one["pearson"] == {"value": None, "low": None, "high": None}
    assert one["r2"]["value"] is None
    constant = score_with_intervals(np.array([20.0, 50.0, 80.0]), np.full(3, 50.0))
    assert constant["pearson"]["value"] is None
    assert constant["r2"]["value"] == 0


def test_paired_difference_is_narrower_than_its_parts(ages):
    age, predicted = ages
    better = age + 0.9 * (predicted - age)
    paired = mae_difference(age, better, predicted)
    assert paired["low"] < paired["high"] < 0
    alone = score_with_intervals(age, predicted)["mae"]
    assert paired["high"] - paired["low"] < 0.5 * (alone["high"] - alone["low"])


def test_within_bin_spread_is_the_pooled_sd_inside_bins():
    values = np.array([1.0, 3.0, 10.0, 14.0, 12.0, 99.0])
    bins = np.array([50, 50, 55, 55, 55, 60])
    expected = np.sqrt((2.0 * 1 + 4.0 * 2) / 3)  # variances 2 and 4 with 1 and 2 degrees of freedom
    assert within_bin_spread(values, bins) == pytest.approx(expected)
    assert within_bin_spread(np.where(bins == 50, 4.0, 7.0), bins) == 0
    assert np.isnan(within_bin_spread(values, np.arange(6)))


def test_within_bin_correlation_is_that_of_deviations_from_the_bins_means():
    generator = np.random.default_rng(0)
    bins = np.repeat([20, 25, 30], 40)
    first = generator.standard_normal(120)
    second = first + generator.standard_normal(120)
    expected = np.corrcoef(
        np.concatenate([v - v.mean() for v in first.reshape(3, 40)]),
        np.concatenate([v - v.mean() for v in second.reshape(3, 40)]),
    )[0, 1]
    # What is common to a bin does not count.
    found = within_bin_correlation(first + 3.0 * bins, second - 5.0 * bins, bins)
    assert found == pytest.approx(expected)
    assert np.isnan(within_bin_correlation(first, second, np.arange(120)))
    assert np.isnan(within_bin_correlation(np.ones(120), second, bins))
