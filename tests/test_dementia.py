from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from analysis.brain_pad.dementia import (
    FOLDS,
    auc_with_interval,
    match_healthy,
    require_sound_ratings,
    split_by_rating,
    svm_scores,
)


def people(ages, sexes, prefix, brain_pad=0.0) -> pd.DataFrame:
    names = [f"{prefix}{index}" for index in range(len(ages))]
    return pd.DataFrame(
        {"age": np.asarray(ages, float), "sex": list(sexes), "brain_pad": brain_pad}, index=names
    )


def best_by_brute_force(patients, healthy, caliper) -> tuple[int, float]:
    """The most pairs, and the least sum of age differences among such matchings."""
    best = (0, 0.0)
    for order in permutations([*range(len(healthy)), *[None] * len(patients)], len(patients)):
        apart = [
            abs(patients["age"].iloc[p] - healthy["age"].iloc[h])
            for p, h in enumerate(order)
            if h is not None
            and patients["sex"].iloc[p] == healthy["sex"].iloc[h]
            and abs(patients["age"].iloc[p] - healthy["age"].iloc[h]) <= caliper
        ]
        best = max(best, (len(apart), -sum(apart)))
    return best[0], -best[1]


@pytest.mark.parametrize("seed", range(12))
def test_matching_is_the_best_of_all_matchings(seed):
    generator = np.random.default_rng(seed)
    patients = people(generator.uniform(60, 80, 3).round(), generator.choice(["F", "M"], 3), "p")
    healthy = people(generator.uniform(60, 80, 4).round(), generator.choice(["F", "M"], 4), "h")
    matched = match_healthy(patients, healthy, caliper=5)
    apart = [abs(patients.at[p, "age"] - healthy.at[h, "age"]) for p, h in matched.items()]
    assert (len(matched), sum(apart)) == best_by_brute_force(patients, healthy, 5)


def test_pairs_share_sex_keep_the_caliper_and_use_nobody_twice():
    generator = np.random.default_rng(0)
    patients = people(generator.uniform(60, 95, 60), generator.choice(["F", "M", "n/a"], 60), "p")
    healthy = people(generator.uniform(20, 90, 200), generator.choice(["F", "M", "n/a"], 200), "h")
    matched = match_healthy(patients, healthy, caliper=5)
    cases, controls = patients.loc[matched.index], healthy.loc[matched]
    assert matched.is_unique
    assert (cases["sex"].to_numpy() == controls["sex"].to_numpy()).all()
    assert set(cases["sex"]) == {"F", "M"}
    assert np.abs(cases["age"].to_numpy() - controls["age"].to_numpy()).max() <= 5
    assert list(matched.index) == [name for name in patients.index if name in matched]


def test_as_many_are_matched_as_can_be():
    patients, healthy = people([70, 74], "FF", "p"), people([66, 71], "FF", "h")
    assert match_healthy(patients, healthy, caliper=5).to_dict() == {"p0": "h0", "p1": "h1"}
    assert match_healthy(patients, healthy, caliper=0.5).empty


def test_auc_is_the_mann_whitney_statistic_with_ties_as_halves():
    generator = np.random.default_rng(0)
    patients, healthy = generator.normal(1, 1, 30).round(), generator.normal(0, 1, 40).round()
    expected = mannwhitneyu(patients, healthy).statistic / (30 * 40)
    assert auc_with_interval(patients, healthy)["value"] == pytest.approx(expected)


def test_interval_is_that_of_a_bootstrap_by_loops():
    generator = np.random.default_rng(0)
    patients, healthy = generator.normal(1, 1, 20).round(1), generator.normal(0, 1, 25).round(1)
    found = auc_with_interval(patients, healthy, seed=3)
    truth = np.repeat([1, 0], [20, 25])
    samples = [
        roc_auc_score(truth, np.concatenate([generator.choice(patients, 20),
                                             generator.choice(healthy, 25)]))
        for _ in range(1000)
    ]  # fmt: skip
    expected = np.percentile(samples, [2.5, 97.5])
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=0.02)


def test_auc_comes_from_scores_and_turns_over_with_their_sign():
    scores = np.linspace(0, 1, 20)
    assert auc_with_interval(scores + 0.31, scores)["value"] not in (0, 0.5, 1)
    above = auc_with_interval(scores + 0.31, scores)["value"]
    assert auc_with_interval(-scores - 0.31, -scores)["value"] == pytest.approx(1 - above)
    assert auc_with_interval(scores + 2, scores) == {"value": 1, "low": 1, "high": 1}


def test_svm_finds_what_there_is_and_nothing_where_there_is_nothing():
    generator = np.random.default_rng(0)
    age, sex = generator.uniform(60, 90, 100), generator.choice(["F", "M"], 100)
    healthy = people(age, sex, "h", generator.normal(0, 5, 100))
    ill = people(age, sex, "p", generator.normal(12, 5, 100))
    alike = people(age, sex, "p", generator.normal(0, 5, 100))
    assert auc_with_interval(*svm_scores(ill, healthy))["value"] > 0.85
    assert 0.35 < auc_with_interval(*svm_scores(alike, healthy))["value"] < 0.65


def test_a_pair_is_never_split_between_folds(monkeypatch):
    seen = {}

    def recorded(model, features, truth, *, groups, cv, method):
        seen["folds"] = [(groups[a], groups[b]) for a, b in cv.split(features, truth, groups)]
        seen["method"] = method
        return np.zeros(len(truth))

    monkeypatch.setattr("analysis.brain_pad.dementia.cross_val_predict", recorded)
    pairs = people(np.linspace(60, 90, 13), "FM" * 6 + "F", "p")
    svm_scores(pairs, pairs)
    assert seen["method"] == "decision_function"
    assert len(seen["folds"]) == FOLDS
    assert all(not set(train) & set(held) for train, held in seen["folds"])
    assert all((np.bincount(held)[held] == 2).all() for _, held in seen["folds"])


def test_few_pairs_and_wrong_ratings_are_said():
    few = people([70, 71, 72], "FFM", "p")
    with pytest.raises(ValueError, match="3 matched pairs: at least 5 expected"):
        svm_scores(few, few)
    healthy = people([70], "F", "h")
    require_sound_ratings({"p0": 1.0, "p1": None, "h0": 0.0}, few, healthy)
    with pytest.raises(ValueError, match=r"CDR of p0 0, h0 0\.5 \(2 scans\)"):
        require_sound_ratings({"p0": 0.0, "h0": 0.5}, few, healthy)


def test_levels_are_questionable_certain_and_unknown():
    levels = split_by_rating(pd.Series([0.5, 1.0, 2.0, np.nan]))
    assert {name: inside.tolist() for name, inside in levels.items()} == {
        "CDR 0.5": [True, False, False, False],
        "CDR >= 1": [False, True, True, False],
        "CDR unknown": [False, False, False, True],
    }
    assert list(split_by_rating(pd.Series([0.5]))) == ["CDR 0.5"]
