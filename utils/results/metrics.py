"""Figures of merit, computed once from all predictions, with bootstrap intervals.

Brain-PAD (brain-predicted age difference) is predicted minus chronological age, in years.
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap, rankdata

RESAMPLES = 2000
BATCH = 100  # resamples at a time: of 10,000 scans all of them take a gigabyte
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
    """FIGURES of (n,) ages in years with bootstrap intervals over scans, see `with_intervals`."""
    return with_intervals(score, age, predicted_age, seed=seed)


def mae_difference(
    age: np.ndarray, first: np.ndarray, second: np.ndarray, *, seed: int = 0
) -> dict[str, float]:
    """MAE of `first` minus MAE of `second` on the same scans, with a paired bootstrap interval."""
    return mean_with_interval(np.abs(first - age) - np.abs(second - age), seed=seed)


def mean_with_interval(values: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """The mean of (n,) values with its bootstrap interval, see `with_intervals`."""
    return with_intervals(lambda drawn: {"mean": drawn.mean(-1)}, values, seed=seed)["mean"]


def with_intervals(
    statistic: Callable[..., dict[str, np.ndarray]],
    *samples: np.ndarray,
    paired: bool = True,
    seed: int = 0,
) -> dict[str, dict]:
    """Each figure as {"value", "low", "high"}: 95 % percentile bootstrap, RESAMPLES drawn.

    Args:
        statistic: gives named figures of the samples over their last axis.
        samples: (n,) each; of one length where `paired`.
        paired: whether a scan is drawn from all samples together, or from each sample apart.
        seed: of the resampling.

    Returns:
        None for what is undefined: low and high too where there is one scan, or where the figure
        is undefined for most resamples. Other resamples without a figure, such as a correlation of
        one scan drawn n times, are left out.
    """
    values = statistic(*samples)
    resampled = np.full((len(values), RESAMPLES), np.nan)
    if min(map(len, samples)) > 1:
        with warnings.catch_warnings():
            # Scipy warns of undefined figures; they are left out below.
            warnings.simplefilter("ignore", DegenerateDataWarning)
            resampled = bootstrap(
                samples,
                lambda *drawn, axis: np.stack(list(statistic(*drawn).values())),
                n_resamples=RESAMPLES, batch=BATCH, vectorized=True, paired=paired,
                method="percentile", rng=np.random.default_rng(seed),
            ).bootstrap_distribution  # fmt: skip
    return {
        name: _with_interval(float(value), row)
        for (name, value), row in zip(values.items(), resampled, strict=True)
    }


def _with_interval(value: float, resampled: np.ndarray) -> dict[str, float | None]:
    """A value with the central 95 % of (RESAMPLES,) values; None where undefined."""
    resampled = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or resampled.size < RESAMPLES // 2:
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def within_bin_spread(values: np.ndarray, bins: np.ndarray) -> float:
    """Pooled SD of `values` within groups of equal `bins`; NaN where no group holds two.

    For the second stage: the spread of the residual among scans of one rounded age. Near 0 the
    network gives everyone in a bin the same age, which users report of the published training.
    """
    inside, groups = _within_bins(values, bins)
    count = len(inside) - groups
    return float(np.sqrt((inside**2).sum() / count)) if count else float("nan")


def within_bin_correlation(first: np.ndarray, second: np.ndarray, bins: np.ndarray) -> float:
    """Pooled correlation of two quantities within groups of equal `bins`; NaN where undefined.

    For the second stage: of the predicted with the true residual among scans of one rounded age.
    At 0 the network adds nothing to the rounded age.
    """
    (first, _), (second, _) = _within_bins(first, bins), _within_bins(second, bins)
    return float(correlation(first, second)) if len(first) > 1 else float("nan")


def _within_bins(values: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, int]:
    """Deviations from the mean of their bin, for bins of at least two; the number of these bins."""
    groups = [values[bins == group] for group in np.unique(bins)]
    groups = [group - group.mean() for group in groups if len(group) > 1]
    return np.concatenate([np.empty(0), *groups]), len(groups)
