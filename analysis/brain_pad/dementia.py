"""How well brain-PAD separates people with dementia from healthy ones of the same age and sex.

Every AUC is computed from scores, never from hard labels. As in the paper, brain-PAD, age and sex
also go into a support vector machine.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from analysis.brain_pad.calibration import PADS
from utils.people.codebook import UNKNOWN_WORDS
from utils.people.sheets import parse_number, read_columns
from utils.results.metrics import mean_with_interval, with_intervals

FOLDS = 5


def read_ratings(path: str | Path) -> dict[str, float | None]:
    """The Clinical Dementia Rating (CDR) of each scan, None where it was not assessed.

    Args:
        path: a participants table with the columns scan_id (or participant_id) and CDR.

    Raises:
        FileNotFoundError: no such file.
        ValueError: all problems of the rows, each with what was expected.
    """
    rows = read_columns(path, ("scan_id", "participant_id"), {"CDR": _rating})
    return {scan: cells["CDR"] for scan, cells in rows.items()}


def _rating(text: str) -> float | None:
    if text.lower() in UNKNOWN_WORDS:
        return None
    return parse_number(0, 3, "a rating from 0 to 3 or n/a")(text)


def match_healthy(patients: pd.DataFrame, healthy: pd.DataFrame, *, caliper: float) -> pd.Series:
    """The healthy scan of each patient: 1:1 within sex, no healthy scan twice.

    As many are matched as can be; among such matchings, the sum of age differences is the least.

    Args:
        patients: indexed by scan, with age in years and sex; unknown sexes are not matched.
        healthy: with the same columns.
        caliper: the largest difference of ages in a pair, years.

    Returns:
        Names of healthy scans by name of patient; unmatched patients are absent.
    """
    matched = {}
    for sex in ("F", "M"):
        cases, controls = patients[patients["sex"] == sex], healthy[healthy["sex"] == sex]
        apart = np.abs(cases["age"].to_numpy()[:, None] - controls["age"].to_numpy()[None])
        allowed = apart <= caliper
        # One pair beyond the caliper costs more than any number of pairs within it.
        forbidden = (caliper + 1) * (len(cases) + 1)
        rows, columns = linear_sum_assignment(np.where(allowed, apart, forbidden))
        for row, column in zip(rows, columns, strict=True):
            if allowed[row, column]:
                matched[cases.index[row]] = controls.index[column]
    in_order = [name for name in patients.index if name in matched]
    return pd.Series([matched[name] for name in in_order], in_order, dtype=object)


def auc_with_interval(patients: np.ndarray, healthy: np.ndarray, *, seed: int = 0) -> dict:
    """Area under the ROC curve with a 95 % bootstrap interval, patients and healthy drawn apart.

    Args:
        patients: (n,) scores, higher for dementia.
        healthy: (m,) scores.
        seed: of the resampling.
    """
    return with_intervals(_auc, patients, healthy, paired=False, seed=seed)["auc"]


def _auc(patients: np.ndarray, healthy: np.ndarray) -> dict[str, np.ndarray]:
    """The Mann-Whitney statistic over the last axis as a share of all pairs; ties count half."""
    count, others = patients.shape[-1], healthy.shape[-1]
    ranks = rankdata(np.concatenate([patients, healthy], axis=-1), axis=-1)[..., :count]
    return {"auc": (ranks.sum(-1) - count * (count + 1) / 2) / (count * others)}


def svm_scores(
    patients: pd.DataFrame, healthy: pd.DataFrame, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Cross-validated decision values of an RBF SVM on standardised brain-PAD, age and sex.

    Both scans of a matched pair are always in the same fold. Brain-PAD is raw: the machine has the
    age as well and can correct for it.

    Args:
        patients: (n rows) brain_pad, age and sex.
        healthy: (n rows), in the order of the patients that they are matched with.
        seed: of the folds.

    Returns:
        (n,) scores of patients and of healthy, higher for dementia.

    Raises:
        ValueError: fewer pairs than folds.
    """
    pairs = len(patients)
    if pairs < FOLDS:
        raise ValueError(
            f"{pairs} matched pairs: at least {FOLDS} expected; a larger --caliper matches more"
        )
    both = pd.concat([patients, healthy])
    features = np.stack([both["brain_pad"], both["age"], both["sex"] == "F"], axis=1).astype(float)
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), SVC(kernel="rbf")),
        features,
        np.repeat([1, 0], pairs),
        groups=np.tile(np.arange(pairs), 2),
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed),
        method="decision_function",
    )
    return scores[:pairs], scores[pairs:]


def split_by_rating(ratings: pd.Series) -> dict[str, np.ndarray]:
    """Which of n ratings are of which level of the CDR; levels that nobody has are left out."""
    levels = {"CDR 0.5": ratings == 0.5, "CDR >= 1": ratings >= 1, "CDR unknown": ratings.isna()}
    return {name: inside.to_numpy() for name, inside in levels.items() if inside.any()}


def require_sound_ratings(
    ratings: Mapping[str, float | None], patients: pd.DataFrame, healthy: pd.DataFrame
) -> None:
    """Raises ValueError for patients rated 0 and healthy scans rated above."""
    wrong = [name for name in patients.index if ratings.get(name) == 0]
    wrong += [name for name in healthy.index if ratings.get(name)]
    if wrong:
        raise ValueError(
            f"CDR of {', '.join(f'{name} {ratings[name]:g}' for name in wrong[:5])} ({len(wrong)} "
            "scans): above 0 expected in --dementia, 0 or n/a in --out_of_fold and --test"
        )


def report_dementia(
    patients: pd.DataFrame, healthy: pd.DataFrame, matched: pd.Series, *, caliper: float
) -> dict:
    """All figures of matched patients and healthy scans.

    Args:
        patients: calibrated scans (see `apply_calibration`) with a column CDR, NaN where unknown.
        healthy: calibrated unseen healthy scans with a column `group`, the table they are from.
            The correction was fitted on those out-of-fold.
        matched: from `match_healthy`.
        caliper: of the matching, years.

    Raises:
        ValueError: fewer pairs than folds of the SVM.
    """
    cases, controls = patients.loc[matched.index], healthy.loc[matched]
    svm = svm_scores(cases, controls)
    cases, controls = cases.assign(svm=svm[0]), controls.assign(svm=svm[1])
    apart = np.abs(cases["age"].to_numpy() - controls["age"].to_numpy())
    levels = {"all": np.ones(len(cases), bool)} | split_by_rating(cases["CDR"])
    return {
        "patients": len(patients),
        "healthy": healthy["group"].value_counts().to_dict(),
        "caliper_years": caliper,
        "pairs": len(cases),
        "unmatched": [name for name in patients.index if name not in matched],
        "matched_healthy_from": controls["group"].value_counts().to_dict(),
        "balance": {
            "patients": _describe(cases),
            "matched_healthy": _describe(controls),
            "mean_age_difference_in_pair": float(apart.mean()),
            "largest_age_difference_in_pair": float(apart.max()),
        },
        "mean": {"matched_healthy": _means(controls)}
        | {name: _means(cases[inside]) for name, inside in levels.items()},
        "mean_of_all_healthy_by_table": {
            name: _means(rows) for name, rows in healthy.groupby("group", sort=False)
        },
        "auc": {name: _aucs(cases[at], controls[at]) for name, at in levels.items()},
    }


def _aucs(cases: pd.DataFrame, controls: pd.DataFrame) -> dict:
    """AUC of each score of pairs; the SVM was trained on pairs of all levels."""
    names = (*PADS, "svm")
    aucs = {n: auc_with_interval(cases[n].to_numpy(), controls[n].to_numpy()) for n in names}
    return {"pairs": len(cases)} | aucs


def _describe(scans: pd.DataFrame) -> dict[str, float]:
    age = scans["age"]
    return {
        "n": len(scans), "female": int((scans["sex"] == "F").sum()), "mean_age": float(age.mean()),
        "sd_age": float(age.std()), "youngest": float(age.min()), "oldest": float(age.max()),
    }  # fmt: skip


def _means(scans: pd.DataFrame) -> dict:
    """Mean brain-PADs in years with bootstrap intervals over scans."""
    means = {name: mean_with_interval(scans[name].to_numpy()) for name in PADS}
    return {"n": len(scans)} | means
