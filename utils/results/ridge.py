"""Linear kernel ridge on voxels beside the mean age.

The regularisation is chosen by leave-one-out error on the training scans: scikit-learn's RidgeCV,
which in the dual form is kernel ridge with a linear kernel.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.linear_model import RidgeCV

from utils.people.codebook import parse_sex_codes
from utils.people.labels import LabelSheet, read_labels
from utils.results.metrics import score_with_intervals
from utils.results.tables import format_figures
from utils.scans.cohort import Scan, describe, group_by_site, open_cohort, require_teachable
from utils.scans.dataset import open_for_one_pass
from utils.scans.folds import hold_out, read_folds
from utils.scans.leakage import find_people
from utils.scans.volumes import InputRule, find_scans

ALPHAS = tuple(10.0**exponent for exponent in range(-2, 8))


def compare_baselines(args: Namespace) -> dict[str, dict]:
    """Fits, prints and returns the figures of both baselines."""
    tests = [] if args.folds else args.test_folder
    found = [*find_scans(*args.train_folders), *find_scans(*tests)]
    codes = parse_sex_codes(args.sex_codes)
    labels = read_labels(args.labels, found, sex_codes=codes, site=args.site)
    rule = InputRule(resolution=4, intensity=args.intensity)
    scans = open_labelled(args.train_folders, labels, rule)
    if args.folds:
        folds, tested = read_folds(args.folds), scans
        splits = [hold_out(scans, folds, fold) for fold in sorted(set(folds.values()))]
    else:
        tested = open_labelled(tests, labels, rule)
        splits = [(scans, tested)]
    for train, _ in splits:
        people = find_people([scan.subject_id for scan in train])
        require_teachable([scan.age for scan in train], people.values(), what="training")
    voxels = read_voxels(scans if args.folds else scans + tested, rule)
    predicted: dict[str, dict[Scan, float]] = {"mean age": {}, "kernel ridge": {}}
    for train, test in splits:
        mean, ages = predict_ages(voxels, train, test)
        predicted["mean age"] |= dict.fromkeys(test, mean)
        predicted["kernel ridge"] |= dict(zip(test, ages, strict=True))
    report = {name: score_scans(tested, ages) for name, ages in predicted.items()}
    sites = group_by_site(tested)
    for site, places in sites.items() if len(sites) > 1 else ():
        inside = [tested[place] for place in places]
        report[f"site {site}"] = score_scans(inside, predicted["kernel ridge"])
    print(format_figures(report))
    return report


def score_scans(scans: Sequence[Scan], ages: Mapping[Scan, float]) -> dict[str, dict]:
    """The figures of some scans, with intervals; `ages` are those predicted, in years."""
    predicted = np.array([ages[scan] for scan in scans])
    return score_with_intervals(np.array([scan.age for scan in scans]), predicted)


def open_labelled(folders: Sequence[str], labels: LabelSheet, rule: InputRule) -> list[Scan]:
    """The scans of folders, all with an age; says how many."""
    scans = open_cohort(folders, labels, rule, need_age=True)
    print(f"{', '.join(folders)}: {describe(scans)}")
    return scans


def read_voxels(scans: list[Scan], rule: InputRule) -> dict[Scan, np.ndarray]:
    """The voxels of each scan, (voxels,) as a network would read them."""
    dataset = open_for_one_pass(scans, rule)
    voxels = dataset[list(range(len(scans)))]["image"].flatten(1).numpy()
    return dict(zip(scans, voxels, strict=True))


def predict_ages(
    voxels: Mapping[Scan, np.ndarray], train: Sequence[Scan], test: Sequence[Scan]
) -> tuple[float, np.ndarray]:
    """The mean age of the training scans, and (test,) ages by kernel ridge, in years."""
    ages = np.array([scan.age for scan in train])
    ridge = RidgeCV(np.array(ALPHAS)).fit(np.stack([voxels[scan] for scan in train]), ages)
    print(f"{len(train)} training scans: alpha {ridge.alpha_:g}")
    return float(ages.mean()), ridge.predict(np.stack([voxels[scan] for scan in test]))
