"""Linear kernel ridge on voxels beside the mean age.

The regularisation is chosen by leave-one-out error on the training scans: scikit-learn's RidgeCV,
which in the dual form is kernel ridge with a linear kernel.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import RidgeCV

from utils.people.codebook import parse_sex_codes
from utils.people.labels import LabelSheet, read_labels
from utils.results.metrics import score_with_intervals
from utils.results.tables import format_figures
from utils.scans.cohort import Scan, describe, open_cohort, require_teachable
from utils.scans.dataset import open_for_one_pass
from utils.scans.folds import hold_out, read_folds
from utils.scans.leakage import find_people
from utils.scans.volumes import InputRule, find_scans

ALPHAS = tuple(10.0**exponent for exponent in range(-2, 8))
INPUT_RULE = InputRule(resolution=4)


def compare_baselines(args: Namespace) -> dict[str, dict]:
    """Fits, prints and returns the figures of both baselines."""
    folders = [*args.train_folders, *([] if args.folds else [args.test_folder])]
    found = [scan for folder in folders for scan in find_scans(folder)]
    labels = read_labels(args.labels, found, sex_codes=parse_sex_codes(args.sex_codes))
    scans = [scan for folder in args.train_folders for scan in open_labelled(folder, labels)]
    if args.folds:
        folds, tested = read_folds(args.folds), scans
        splits = [hold_out(scans, folds, fold) for fold in sorted(set(folds.values()))]
    else:
        tested = open_labelled(args.test_folder, labels)
        splits = [(scans, tested)]
    for train, _ in splits:
        people = find_people([scan.subject_id for scan in train])
        require_teachable([scan.age for scan in train], people.values(), what="training")
    voxels = read_voxels(scans if args.folds else scans + tested)
    predicted: dict[str, dict[Scan, float]] = {"mean age": {}, "kernel ridge": {}}
    for train, test in splits:
        mean, ages = predict_ages(voxels, train, test)
        predicted["mean age"] |= dict.fromkeys(test, mean)
        predicted["kernel ridge"] |= dict(zip(test, ages, strict=True))
    age = np.array([scan.age for scan in tested])
    report = {
        name: score_with_intervals(age, np.array([ages[scan] for scan in tested]))
        for name, ages in predicted.items()
    }
    print(format_figures(report))
    return report


def open_labelled(folder: str | Path, labels: LabelSheet) -> list[Scan]:
    """The scans of a folder, all with an age; says how many."""
    scans = open_cohort(folder, labels, INPUT_RULE, need_age=True)
    print(f"{folder}: {describe(scans)}")
    return scans


def read_voxels(scans: list[Scan]) -> dict[Scan, np.ndarray]:
    """The voxels of each scan, (voxels,) z-scores."""
    dataset = open_for_one_pass(scans, INPUT_RULE)
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
