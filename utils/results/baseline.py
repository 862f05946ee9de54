"""The baseline that a network must beat: linear kernel ridge on 4 mm voxels, and the mean age.

    python -m utils.results.baseline --train_folders data/train data/val --test_folder data/test \
        --labels data/Dataset.xls

Its regularisation is chosen by leave-one-out error on the training scans (scikit-learn's RidgeCV,
which in the dual form is kernel ridge with a linear kernel). Minutes are not needed: seconds are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.cli import add_label_flags, new_parser, run_entry

ALPHAS = tuple(10.0**exponent for exponent in range(-2, 8))


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Mean age and linear kernel ridge on 4 mm voxels, for comparison.")
    parser.add_argument("--train_folders", nargs="+", required=True, metavar="DIR", help="scans")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--test_folder", metavar="DIR", help="scans to be predicted")
    where.add_argument(
        "--folds",
        metavar="CSV",
        help="columns scan and fold: predict each of the scans from those of the other folds",
    )
    add_label_flags(parser, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Fits on the training folders, prints and returns the figures on the test folder."""
    args = build_parser().parse_args(argv)
    import numpy as np
    from sklearn.linear_model import RidgeCV

    from utils.results.metrics import score_with_intervals
    from utils.results.tables import format_figures
    from utils.scans.cohort import describe, open_cohort
    from utils.scans.dataset import open_for_one_pass
    from utils.scans.folds import hold_out, read_folds
    from utils.scans.labels import parse_sex_codes, read_labels
    from utils.scans.volumes import InputRule

    input_rule = InputRule(resolution=4)
    labels = read_labels(args.labels, sex_codes=parse_sex_codes(args.sex_codes))

    voxels: dict[Path, np.ndarray] = {}

    def read(folder: str) -> list:
        scans = open_cohort(folder, labels, input_rule, need_age=True)
        print(f"{folder}: {describe(scans)}")
        dataset = open_for_one_pass(scans, input_rule)
        for index, scan in enumerate(scans):
            voxels[scan.path] = dataset[[index]]["image"].numpy().ravel()
        return scans

    scans = [scan for folder in args.train_folders for scan in read(folder)]
    if args.folds:
        folds = read_folds(args.folds)
        splits = [hold_out(scans, folds, fold) for fold in sorted(set(folds.values()))]
        tested = scans
    else:
        tested = read(args.test_folder)
        splits = [(scans, tested)]
    mean, ridge_ages = {}, {}
    for train, test in splits:
        ages = np.array([scan.age for scan in train])
        ridge = RidgeCV(np.array(ALPHAS)).fit(np.stack([voxels[s.path] for s in train]), ages)
        print(f"{len(train)} training scans: alpha {ridge.alpha_:g}")
        found = ridge.predict(np.stack([voxels[scan.path] for scan in test]))
        for scan, age in zip(test, found, strict=True):
            mean[scan.path], ridge_ages[scan.path] = ages.mean(), age
    test_ages = np.array([scan.age for scan in tested])
    predictions = {
        name: np.array([of[scan.path] for scan in tested])
        for name, of in (("mean age", mean), ("kernel ridge", ridge_ages))
    }
    report = {
        name: score_with_intervals(test_ages, predicted) for name, predicted in predictions.items()
    }
    print(format_figures(report))
    return report


if __name__ == "__main__":
    run_entry(main)
