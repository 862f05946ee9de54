r"""Out-of-fold ages: each scan's age from the network that was trained on the other folds.

    python -m analysis.brain_pad.out_of_fold --runs runs/cv/default --folds docs/folds_oasis1.csv \
        --scan_folders data/train data/val --labels data/Dataset.xls --output out_of_fold.csv

A folder of `--runs` holds one run a fold, named by the fold, as script/cross_validate.sh makes
them. Several such folders (seeds) give the mean of their ages. No scan chose anything: what is read
is each run's result, which with `--keep last` is that of its last epoch. `--retest_folder` are
second scans of the same people, each predicted by the networks that had not seen its person.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import Switch, add_label_flags, add_machine_flags, new_parser, run_entry
from utils.networks import BEST_NAME

if TYPE_CHECKING:
    import numpy as np

    from utils.networks.checkpoint import Checkpoint
    from utils.networks.execution import Execution
    from utils.scans.cohort import Scan


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
        "--reference",
        nargs="*",
        default=[],
        metavar="CSV",
        help="tables of the same scans to be compared with, scan by scan",
    )
    parser.add_argument("--retest_folder", metavar="DIR", help="second scans of the same people")
    parser.add_argument("--retest_output", metavar="CSV", help="the table of their ages")
    parser.add_argument(
        "--mirror",
        action=Switch,
        default=None,
        help="average over mirror images; unset: where training mirrored at random",
    )
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace the tables")
    add_machine_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Writes the tables; prints and returns the figures of each predictor."""
    args = build_parser().parse_args(argv)
    from utils.files import require_absent
    from utils.machine import use_machine_well
    from utils.networks.execution import choose_execution
    from utils.scans.folds import read_folds
    from utils.scans.labels import parse_sex_codes, read_labels

    if bool(args.retest_folder) != bool(args.retest_output):
        raise ValueError("--retest_folder and --retest_output: give both, or neither")
    if args.retest_folder and args.only:
        raise ValueError(
            "--retest_folder and --only: networks of all folds expected, or people of the folds "
            "left out would be predicted by networks that have seen them"
        )
    if not args.overwrite:
        require_absent(*(Path(path) for path in (args.output, args.retest_output) if path))
    use_machine_well(args.threads)
    execution = choose_execution(args.device, args.precision)
    table = read_folds(args.folds)
    folds = args.only or sorted(set(table.values()))
    networks = {fold: load_fold(args.runs, fold) for fold in folds}
    labels = read_labels(args.labels, sex_codes=parse_sex_codes(args.sex_codes))
    scans, ages, seeds = collect(args, networks, table, labels, execution)
    report = compare(scans, ages, seeds, args, step=age_step(networks))
    if args.retest_folder:
        predict_retest(args, networks, table, labels, execution)
    return report


def load_fold(runs: Sequence[str], fold: int) -> list["Checkpoint"]:
    """The checkpoint of one fold in each folder of runs."""
    from utils.networks.checkpoint import load_checkpoint

    return [load_checkpoint(Path(folder) / str(fold) / BEST_NAME) for folder in runs]


def age_step(networks: dict[int, list["Checkpoint"]]) -> float | None:
    """Years between rounded ages; None of first stages."""
    return getattr(next(iter(networks.values()))[0].model, "age_step", None)


def collect(
    args: argparse.Namespace,
    networks: dict[int, list["Checkpoint"]],
    table: dict[str, int],
    labels: dict,
    execution: "Execution",
) -> tuple[list["Scan"], dict[str, "np.ndarray"], "np.ndarray"]:
    """Predicts every fold's scans by its own networks and writes the table.

    Returns:
        The scans; their named ages, (scans,) years each, means over seeds; (seeds, scans) years.
    """
    import numpy as np

    from utils.results.tables import write_ages
    from utils.scans.cohort import open_cohort
    from utils.scans.folds import hold_out

    input_rule = next(iter(networks.values()))[0].input_rule
    pooled = [
        scan
        for folder in args.scan_folders
        for scan in open_cohort(folder, labels, input_rule, need_age=True)
    ]
    scans: list[Scan] = []
    found = []
    for fold, checkpoints in networks.items():
        held = hold_out(pooled, table, fold)[1]
        found.append(predict_each(checkpoints, held, execution, args.mirror))
        scans += held
    ages = {name: np.concatenate([of[name] for of in found], axis=1) for name in found[0]}
    means = {name: values.mean(axis=0) for name, values in ages.items()}
    more = {"fold": [table[scan.subject_id] for scan in scans]}
    write_ages(Path(args.output), scans, means, more=more, overwrite=args.overwrite)
    return scans, means, ages["predicted_age"]


def predict_each(
    checkpoints: list["Checkpoint"],
    scans: list["Scan"],
    execution: "Execution",
    mirror: bool | None,
) -> dict[str, "np.ndarray"]:
    """The named ages of each network, (networks, scans) years each.

    Raises:
        ValueError: a network was trained on some of the scans, and its training was not let to
            share them with validation.
    """
    import numpy as np

    from utils.networks.predictor import PredictionSettings, Predictor, note_unknown_sexes
    from utils.scans.dataset import open_for_one_pass
    from utils.scans.leakage import require_unseen

    # Decoded once for all networks that read them alike.
    input_rules = {checkpoint.input_rule for checkpoint in checkpoints}
    opened = {each: open_for_one_pass(scans, each) for each in input_rules}
    for checkpoint in checkpoints:
        require_unseen(
            scans,
            opened[checkpoint.input_rule].content_hashes,
            checkpoint.trained_on or (),
            source=checkpoint.source,
            role="scans that it should be new to",
            what_to_do="give the --folds that it was trained with, or train anew",
            allowed=checkpoint.summary.get("flags", {}).get("allow_shared_persons", False),
        )
    how = PredictionSettings(mirror=mirror)
    note_unknown_sexes(checkpoints[0], scans)
    found = [
        Predictor(checkpoint, execution, how).ages(opened[checkpoint.input_rule])
        for checkpoint in checkpoints
    ]
    return {name: np.stack([ages[name] for ages in found]) for name in found[0]}


def compare(
    scans: list["Scan"],
    ages: dict[str, "np.ndarray"],
    seeds: "np.ndarray",
    args: argparse.Namespace,
    *,
    step: float | None,
) -> dict:
    """Prints and returns the figures of both stages, of each seed, and paired differences."""
    import numpy as np

    from utils.results.metrics import mae_difference, score_with_intervals
    from utils.results.tables import format_difference, format_figures
    from utils.scans.folds import out_of_fold_ages

    age = np.array([scan.age for scan in scans])
    predicted = ages["predicted_age"]
    predictors = {"predicted": predicted}
    if step:
        predictors = {"stage one": ages["stage_one_age"], "stage two": predicted}
    if len(seeds) > 1:
        predictors |= {
            Path(folder).name: values for folder, values in zip(args.runs, seeds, strict=True)
        }
    report: dict = {name: score_with_intervals(age, each) for name, each in predictors.items()}
    print(f"{len(scans)} scans, each predicted by networks that were not trained on it")
    print(format_figures(report))
    if step:
        report["difference"] = mae_difference(age, predicted, ages["stage_one_age"])
        print(format_difference("stage two minus stage one", report["difference"]))
        report["within_bins"] = within_bins(age, ages["stage_one_age"], predicted, step)
    for path in args.reference:
        theirs = out_of_fold_ages(path, scans, "scans")
        report[path] = mae_difference(age, predicted, theirs)
        print(format_difference(f"this minus {path}", report[path]))
    return report


def within_bins(
    age: "np.ndarray", stage_one: "np.ndarray", stage_two: "np.ndarray", step: float
) -> dict[str, float]:
    """What the second stage says of scans of one rounded age, all (scans,) years; prints it."""
    import torch

    from model.tsan import discretize_age
    from utils.results.metrics import within_bin_correlation, within_bin_spread

    rounded = discretize_age(torch.from_numpy(stage_one), step).numpy()
    residual, needed = stage_two - rounded, age - rounded
    values = {
        "spread": within_bin_spread(residual, rounded),
        "spread_needed": within_bin_spread(needed, rounded),
        "correlation": within_bin_correlation(residual, needed, rounded),
    }
    print(
        f"within rounded ages: spread of the residual {values['spread']:.2f} years, needed "
        f"{values['spread_needed']:.2f}; correlation of both {values['correlation']:.2f}"
    )
    return values


def predict_retest(
    args: argparse.Namespace,
    networks: dict[int, list["Checkpoint"]],
    table: dict[str, int],
    labels: dict,
    execution: "Execution",
) -> None:
    """Predicts second scans by the networks that had not seen the person, and writes their table.

    People of no fold, such as those of a test folder, get the mean of all networks.
    """
    import numpy as np

    from utils.results.tables import write_ages
    from utils.scans.cohort import open_cohort
    from utils.scans.leakage import person_of_scan

    fold_of = {person_of_scan(scan): fold for scan, fold in table.items()}
    everyone = [checkpoint for checkpoints in networks.values() for checkpoint in checkpoints]
    scans = open_cohort(args.retest_folder, labels, everyone[0].input_rule)
    fold = [fold_of.get(person_of_scan(scan.subject_id), "none") for scan in scans]
    ages: dict[str, np.ndarray] = {}
    for held in set(fold):
        places = [index for index, of in enumerate(fold) if of == held]
        chosen = [scans[index] for index in places]
        found = predict_each(networks.get(held, everyone), chosen, execution, args.mirror)
        for name, values in found.items():
            ages.setdefault(name, np.empty(len(scans)))[places] = values.mean(axis=0)
    write_ages(Path(args.retest_output), scans, ages, more={"fold": fold}, overwrite=args.overwrite)


if __name__ == "__main__":
    run_entry(main)
