"""Figures of merit, computed once from all predictions, with bootstrap intervals.

Brain-PAD (brain-predicted age difference) is predicted minus chronological age, in years.
"""

import numpy as np
from scipy.stats import rankdata

RESAMPLES, BLOCKS = 2000, 20
FIGURES = (
    "mae",
    "rmse",
    "pearson",
    "spearman",
    "r2",
    "mean_brain_pad",
    "brain_pad_age_correlation",
)


def score(age: np.ndarray, predicted_age: np.ndarray) -> dict[str, np.ndarray]:
    """The figures over the last axis.

    Args:
        age: (..., n) chronological years.
        predicted_age: (..., n) years.

    Returns:
        FIGURES, each (...,); NaN where undefined: a correlation of a constant or of one scan.
    """
    brain_pad = predicted_age - age
    squared_error = (brain_pad**2).mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = 1 - squared_error / age.var(-1)
    return {
        "mae": np.abs(brain_pad).mean(-1),
        "rmse": np.sqrt(squared_error),
        "pearson": correlation(age, predicted_age),
        "spearman": correlation(rankdata(age, axis=-1), rankdata(predicted_age, axis=-1)),
        "r2": np.where(age.var(-1) > 0, r2, np.nan),
        "mean_brain_pad": brain_pad.mean(-1),
        "brain_pad_age_correlation": correlation(brain_pad, age),
    }


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the last axis; NaN where either is constant."""
    first = first - first.mean(-1, keepdims=True)
    second = second - second.mean(-1, keepdims=True)
    spread = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    # Rounding leaves a spread of about 1e-13 where there is none.
    defined = spread > 1e-9
    return np.where(defined, (first * second).sum(-1) / np.where(defined, spread, 1), np.nan)


def score_with_intervals(
    age: np.ndarray, predicted_age: np.ndarray, *, seed: int = 0
) -> dict[str, dict]:
    """Each figure as {"value", "low", "high"}: 95 % percentile bootstrap over scans.

    Args:
        age: (n,) years.
        predicted_age: (n,) years.
        seed: of the resampling.
    """
    values = score(age, predicted_age)
    # A few samples at a time: of 10,000 scans all of them take a gigabyte.
    blocks = [
        score(age[chosen], predicted_age[chosen])
        for chosen in np.array_split(resample(len(age), seed), BLOCKS)
    ]
    return {
        name: with_interval(values[name], np.concatenate([block[name] for block in blocks]))
        for name in FIGURES
    }


def mae_difference(
    age: np.ndarray, first: np.ndarray, second: np.ndarray, *, seed: int = 0
) -> dict[str, float]:
    """MAE of `first` minus MAE of `second` on the same scans, with a paired bootstrap interval."""
    difference = np.abs(first - age) - np.abs(second - age)
    return with_interval(difference.mean(), difference[resample(len(age), seed)].mean(-1))


def resample(count: int, seed: int) -> np.ndarray:
    """(RESAMPLES, count) indices drawn with replacement."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def with_interval(value: float, samples: np.ndarray) -> dict[str, float]:
    """A value with the central 95 % of its bootstrap samples; None where undefined."""
    samples = samples[np.isfinite(samples)]
    if not np.isfinite(value) or samples.size < RESAMPLES // 2:
        return {"value": float(value) if np.isfinite(value) else None, "low": None, "high": None}
    low, high = np.percentile(samples, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def within_bin_spread(values: np.ndarray, bins: np.ndarray) -> float:
    """Pooled SD of `values` within groups of equal `bins`; NaN where no group holds two.

    For the second stage: the spread of its residual among scans of one rounded age. Near 0 it
    repeats one age for everyone in a bin, as the published training is reported to end.
    """
    inside, groups = _within_bins(values, bins)
    count = len(inside) - groups
    return float(np.sqrt((inside**2).sum() / count)) if count else float("nan")


def within_bin_correlation(first: np.ndarray, second: np.ndarray, bins: np.ndarray) -> float:
    """Pooled correlation of two quantities within groups of equal `bins`; NaN where undefined.

    For the second stage: of its residual with the true one among scans of one rounded age. 0 says
    that it adds nothing to the rounded age.
    """
    (first, _), (second, _) = _within_bins(first, bins), _within_bins(second, bins)
    return float(correlation(first, second)) if len(first) > 1 else float("nan")


def _within_bins(values: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, int]:
    """Deviations from the mean of their bin, of bins of two and more; the number of these bins."""
    groups = [values[bins == group] for group in np.unique(bins)]
    groups = [group - group.mean() for group in groups if len(group) > 1]
    return np.concatenate([np.empty(0), *groups]), len(groups)
