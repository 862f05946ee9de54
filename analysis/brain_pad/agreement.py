"""Test-retest agreement of two scans of the same persons.

The intraclass correlations are those of Shrout and Fleiss 1979 (doi 10.1037/0033-2909.86.2.420),
the limits of agreement those of Bland and Altman 1986 (doi 10.1016/S0140-6736(86)90837-8).
"""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from utils.results.metrics import with_intervals
from utils.scans.leakage import find_people


def pair_scans(
    first: Mapping[str, pd.DataFrame],
    second: pd.DataFrame,
    *,
    pattern: re.Pattern | None = None,
) -> pd.DataFrame:
    """Each person's first scan with their second one.

    A first scan's age must come from networks that were not trained on it. Tables are therefore
    asked in turn: out-of-fold ages before those of test scans, and both before any others.

    Args:
        first: scans, indexed by name, with their ages, by where they come from.
        second: the second scans. The first by name where a person has several, in `first` as well.
        pattern: where the person stands in a scan's name, see `find_person`.

    Returns:
        Columns person, first_scan, second_scan, first_from; predicted_age and brain_pad in years,
        as first_ and second_.

    Raises:
        ValueError: fewer than two pairs.
    """

    def by_person(scans: pd.DataFrame) -> pd.DataFrame:
        person_of = find_people(sorted(scans.index), pattern=pattern)
        chosen = scans.loc[list(person_of), ["predicted_age", "brain_pad"]]
        return chosen.assign(person=list(person_of.values()), scan=list(person_of))

    found = pd.concat([by_person(scans).assign(**{"from": name}) for name, scans in first.items()])
    found = found.drop_duplicates("person").set_index("person").add_prefix("first_")
    others = by_person(second).set_index("person").add_prefix("second_")
    pairs = others.join(found, how="inner").query("first_scan != second_scan").reset_index()
    pairs = pairs.drop_duplicates("person", ignore_index=True)
    if len(pairs) < 2:
        raise ValueError(
            f"{len(pairs)} of {len(second)} second scans have a first one of the same person, at "
            "least 2 expected; --subject_pattern says where the person stands in a name"
        )
    return pairs


def intraclass_correlations(ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ICC(2,1), absolute agreement, and ICC(3,1), consistency, over the last two axes.

    Args:
        ratings: (..., n, k) of n targets by k judges.

    Returns:
        Both (...,); NaN where nothing varies.
    """
    targets, judges = ratings.shape[-2:]
    grand = ratings.mean((-2, -1), keepdims=True)
    of_target = ratings.mean(-1, keepdims=True)
    of_judge = ratings.mean(-2, keepdims=True)
    between = judges * ((of_target - grand) ** 2).sum((-2, -1)) / (targets - 1)
    judge = targets * ((of_judge - grand) ** 2).sum((-2, -1)) / (judges - 1)
    rest = ((ratings - of_target - of_judge + grand) ** 2).sum((-2, -1))
    error = rest / ((targets - 1) * (judges - 1))
    consistency = between + (judges - 1) * error
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = consistency + judges * (judge - error) / targets
        return (between - error) / agreement, (between - error) / consistency


def agreement(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> dict[str, dict]:
    """Differences, second minus first, and correlations of two measurements of n persons.

    Args:
        first: (n,) years.
        second: (n,) years of the same persons.
        seed: of the resampling of persons.

    Returns:
        {"value", "low", "high"} with 95 % bootstrap intervals over persons, by figure; the limits
        of agreement are mean_difference -+ 1.96 sd_of_difference.
    """
    return with_intervals(_figures, first, second, seed=seed)


def _figures(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """The figures over the last axis, in years where they are differences."""
    difference = second - first
    mean, sd = difference.mean(-1), difference.std(-1, ddof=1)
    icc_2_1, icc_3_1 = intraclass_correlations(np.stack([first, second], axis=-1))
    return {
        "mean_absolute_difference": np.abs(difference).mean(-1),
        "mean_difference": mean,
        "sd_of_difference": sd,
        "lower_limit_of_agreement": mean - 1.96 * sd,
        "upper_limit_of_agreement": mean + 1.96 * sd,
        "icc_2_1": icc_2_1,
        "icc_3_1": icc_3_1,
    }


def report_agreement(pairs: pd.DataFrame) -> dict:
    """Agreement of predicted ages and of brain-PAD, over all pairs and by where the first is from.

    The ICC of predicted ages is mostly that of the persons' ages, which differ by decades; that of
    brain-PAD says how far what is beyond age repeats itself. Where the first scan's age is
    out-of-fold, the second's may be of a network trained on the first: then two networks are
    compared, one of which knows the person.
    """
    groups = {"all": pairs} | dict(list(pairs.groupby("first_from", sort=False)))
    report = {"pairs": len(pairs), "first_from": pairs["first_from"].value_counts().to_dict()}
    for group, rows in groups.items():
        if len(rows) < 2:
            continue
        report[group] = {"pairs": len(rows)} | {
            name: agreement(rows[f"first_{name}"].to_numpy(), rows[f"second_{name}"].to_numpy())
            for name in ("predicted_age", "brain_pad")
        }
    return report
