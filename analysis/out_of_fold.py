r"""Out-of-fold ages: each scan's age from the network that was trained on the other folds.

    python analysis/out_of_fold.py --runs runs/cv --folds docs/folds_oasis1.csv \
        --scan_folders data/train data/val --labels data/Dataset.xls --output out_of_fold.csv

A folder of `--runs` holds one run a fold, named by the fold, as script/cross_validate.sh makes
them. Several such folders (seeds) give the mean of their ages. No scan chose anything: what is read
is each run's result, which with `--keep last` is that of its last epoch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file, Python looks for imports beside it, not in the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.entry import Switch, new_parser, run_entry
from utils.options import BEST_NAME, add_label_flags, add_machine_flags


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Collect the ages that cross-validated networks give to unseen scans.")
    parser.add_argument(
        "--runs", nargs="+", required=True, metavar="DIR", help="holds one run a fold: 0, 1, ..."
    )
    parser.add_argument("--folds", required=True, metavar="CSV", help="columns scan and fold")
    parser.add_argument(
        "--only", nargs="+", type=int, metavar="FOLD", help="of the folds; unset: all of them"
    )
    parser.add_argument("--scan_folders", nargs="+", required=True, metavar="DIR", help="scans")
    add_label_flags(parser, required=True)
    parser.add_argument("--output", required=True, metavar="CSV", help="the table to write")
    parser.add_argument(
        "--reference", nargs="*", default=[], metavar="CSV",
        help="tables of the same scans to be compared with, scan by scan",
    )  # fmt: skip
    parser.add_argument(
        "--mirror", action=Switch, default=None,
        help="average over mirror images; unset: where training mirrored at random",
    )  # fmt: skip
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace the table")
    add_machine_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Writes the table; prints and returns the figures of each predictor."""
    args = build_parser().parse_args(argv)
    import numpy as np

    from utils.cohort import open_cohort
    from utils.cross_validation import hold_out, read_folds, read_out_of_fold_ages
    from utils.engine import choose_execution
    from utils.files import require_absent
    from utils.labels import parse_sex_codes, read_labels
    from utils.machine import use_machine_well
    from utils.metrics import mae_difference, score_with_intervals
    from utils.results import format_difference, format_figures, write_ages

    output = Path(args.output)
    if not args.overwrite:
        require_absent(output)
    use_machine_well(args.threads)
    execution = choose_execution(args.device, args.precision)
    folds = read_folds(args.folds)
    labels = read_labels(args.labels, sex_codes=parse_sex_codes(args.sex_codes))
    scans, columns, seeds = [], {}, []
    for fold in args.only or sorted(set(folds.values())):
        checkpoints = load_fold(args.runs, fold)
        cohorts = [
            open_cohort(folder, labels, checkpoints[0].preparation, need_age=True)
            for folder in args.scan_folders
        ]
        held = hold_out([scan for cohort in cohorts for scan in cohort], folds, fold)[1]
        found = predict_fold(checkpoints, held, execution, args.mirror)
        scans += held
        seeds.append(np.stack([ages["predicted_age"] for ages in found]))
        for name in found[0]:
            columns.setdefault(name, []).append(np.mean([ages[name] for ages in found], axis=0))
    ages = {name: np.concatenate(values) for name, values in columns.items()}
    age = np.array([scan.age for scan in scans])
    more = {"fold": [folds[scan.subject_id] for scan in scans]}
    write_ages(output, scans, ages, more=more, overwrite=args.overwrite)
    predictors = {"predicted": ages["predicted_age"]}
    if "rounded_age" in ages:
        predictors = {"stage one": ages["stage_one_age"], "stage two": ages["predicted_age"]}
    if len(args.runs) > 1:
        each = dict(zip(args.runs, np.concatenate(seeds, axis=1), strict=True))
        predictors |= {Path(folder).name: values for folder, values in each.items()}
    report = {name: score_with_intervals(age, values) for name, values in predictors.items()}
    print(f"{len(scans)} scans, each predicted by networks that were not trained on it")
    print(format_figures(report))
    if "stage two" in predictors:
        report["difference"] = mae_difference(age, *list(predictors.values())[1::-1])
        print(format_difference("stage two minus stage one", report["difference"]))
    for path in args.reference:
        other = read_out_of_fold_ages(path)
        theirs = np.array([other[scan.subject_id] for scan in scans])
        report[path] = mae_difference(age, ages["predicted_age"], theirs)
        print(format_difference(f"this minus {path}", report[path]))
    return report


def load_fold(runs: Sequence[str], fold: int) -> list:
    """The checkpoint of one fold in each folder of runs."""
    from utils.checkpoint import load_checkpoint

    return [load_checkpoint(Path(folder) / str(fold) / BEST_NAME) for folder in runs]


def predict_fold(checkpoints: list, scans: list, execution, mirror: bool | None) -> list[dict]:
    """The named ages of the scans of one fold, from each checkpoint."""
    from utils.prediction import Prediction, predict_scans

    how = Prediction(mirror=mirror)
    return [predict_scans(checkpoint, scans, execution, how) for checkpoint in checkpoints]


if __name__ == "__main__":
    run_entry(main)
