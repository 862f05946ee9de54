import re

import numpy as np
import pandas as pd
import pytest

from analysis.brain_pad.agreement import (
    agreement,
    intraclass_correlations,
    pair_scans,
    report_agreement,
)

# Shrout and Fleiss 1979, table 2: six targets by four judges.
SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)


def scans(**ages: tuple[float, float]) -> pd.DataFrame:
    """(age, predicted age) by name."""
    table = pd.DataFrame.from_dict(ages, orient="index", columns=["age", "predicted_age"])
    return table.assign(brain_pad=table["predicted_age"] - table["age"])


def slow_icc(ratings: np.ndarray) -> tuple[float, float]:
    """Two-way analysis of variance by loops."""
    n, k = ratings.shape
    grand = ratings.mean()
    rows, columns = [row.mean() for row in ratings], [column.mean() for column in ratings.T]
    bms = sum(k * (row - grand) ** 2 for row in rows) / (n - 1)
    jms = sum(n * (column - grand) ** 2 for column in columns) / (k - 1)
    total = sum((ratings[i, j] - grand) ** 2 for i in range(n) for j in range(k))
    ems = (total - bms * (n - 1) - jms * (k - 1)) / ((n - 1) * (k - 1))
    return (bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n), (bms - ems) / (
        bms + (k - 1) * ems
    )


def test_icc_is_that_of_the_published_example():
    icc_2_1, icc_3_1 = intraclass_correlations(SHROUT_FLEISS)
    assert (round(float(icc_2_1), 2), round(float(icc_3_1), 2)) == (0.29, 0.71)


def test_icc_equals_a_slow_analysis_of_variance_for_every_resample():
    ratings = np.random.default_rng(0).normal(size=(5, 9, 2)).cumsum(axis=-1)
    fast = np.stack(intraclass_correlations(ratings), axis=-1)
    assert fast == pytest.approx(np.array([slow_icc(one) for one in ratings]))


def test_a_constant_shift_lowers_agreement_but_not_consistency():
    age = np.random.default_rng(0).uniform(20, 90, 30)
    found = agreement(age, age + 3)
    assert found["icc_3_1"]["value"] == pytest.approx(1)
    assert found["icc_2_1"]["value"] < 1
    assert found["mean_difference"]["value"] == pytest.approx(3)
    assert found["sd_of_difference"]["value"] == pytest.approx(0, abs=1e-9)


def test_bland_altman_limits_and_intervals():
    generator = np.random.default_rng(0)
    first = generator.uniform(20, 90, 60)
    second = first + generator.normal(1, 2, 60)
    found = agreement(first, second)
    difference = second - first
    assert found["mean_absolute_difference"]["value"] == pytest.approx(np.abs(difference).mean())
    expected = difference.mean() + 1.96 * difference.std(ddof=1)
    assert found["upper_limit_of_agreement"]["value"] == pytest.approx(expected)
    for figure in found.values():
        assert figure["low"] < figure["value"] < figure["high"]
    assert found == agreement(first, second)


def test_out_of_fold_ages_come_before_those_of_other_tables():
    first = {
        "out_of_fold": scans(OAS1_0001_MR1=(60, 66), OAS1_0002_MR1=(30, 31)),
        "test": scans(OAS1_0003_MR1=(40, 44)),
        "first": scans(OAS1_0001_MR1=(60, 60), OAS1_0004_MR1=(50, 50)),
    }
    second = scans(
        OAS1_0004_MR2=(50, 51), OAS1_0001_MR2=(60, 63), OAS1_0003_MR2=(40, 40),
        OAS1_0009_MR2=(40, 40), OAS1_0001_MR3=(61, 99),
    )  # fmt: skip
    pairs = pair_scans(first, second).set_index("person")
    assert pairs["first_from"].to_dict() == {
        "OAS1_0001": "out_of_fold",
        "OAS1_0003": "test",
        "OAS1_0004": "first",
    }
    assert pairs.loc["OAS1_0001", "first_predicted_age"] == 66
    assert pairs.loc["OAS1_0001", "second_predicted_age"] == 63
    assert pairs.loc["OAS1_0001", "second_scan"] == "OAS1_0001_MR2"
    assert pairs.loc["OAS1_0003", "first_brain_pad"] == 4


def test_report_says_where_first_scans_are_from_and_splits_by_it():
    generator = np.random.default_rng(0)
    names = [f"s{index}" for index in range(12)]
    age = generator.uniform(20, 90, 12)
    first, second = (
        scans(
            **{
                f"sub-{name}_ses-{visit}": (years, years + generator.normal(0, 3))
                for name, years in zip(names, age, strict=True)
            }
        )
        for visit in (1, 2)
    )
    report = report_agreement(
        pair_scans({"out_of_fold": first.iloc[:9], "test": first.iloc[9:]}, second)
    )
    assert report["pairs"] == 12
    assert report["first_from"] == {"out_of_fold": 9, "test": 3}
    assert report["test"]["pairs"] == 3
    # Ages lie decades apart and brain-PADs here are noise.
    assert report["all"]["predicted_age"]["icc_2_1"]["value"] > 0.9
    assert report["all"]["brain_pad"]["icc_2_1"]["value"] < 0.8


def test_nothing_to_pair_is_an_error_that_names_the_pattern():
    with pytest.raises(ValueError, match=r"0 of 1 second scans .* at least 2 .*--subject_pattern"):
        pair_scans({"test": scans(a_MR1=(40, 44))}, scans(b_MR2=(40, 44)))
    with pytest.raises(ValueError, match="0 of 1"):  # a scan is no second scan of itself
        pair_scans({"test": scans(a_MR1=(40, 44))}, scans(a_MR1=(40, 44)))


def test_own_pattern_finds_the_person():
    first = {"test": scans(v1x7=(40, 44), v1x8=(50, 44))}
    pairs = pair_scans(first, scans(v2x8=(50, 51), v2x7=(40, 42)), pattern=re.compile(r"x(\d+)"))
    assert pairs["first_scan"].tolist() == ["v1x7", "v1x8"]
