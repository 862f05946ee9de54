"""The ages that the networks of a cross-validation give to the scans that they have not seen."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.tsan import discretize_age
from utils.files import require_absent
from utils.machine import use_machine_well
from utils.networks import BEST_NAME
from utils.networks.checkpoint import Checkpoint, load_checkpoint
from utils.networks.execution import Execution, choose_execution
from utils.networks.likeness import learn_likeness
from utils.networks.predictor import PredictionSettings, Predictor, note_unknown_sexes
from utils.people.codebook import parse_sex_codes
from utils.people.labels import LabelSheet, read_labels
from utils.results import metrics, tables
from utils.scans.cohort import Scan, group_by_site, open_cohort
from utils.scans.dataset import open_for_one_pass
from utils.scans.folds import hold_out, read_folds
from utils.scans.leakage import find_person, require_unseen
from utils.scans.volumes import find_scans


@dataclass(frozen=True)
class FoldNetworks:
    """The networks of a cross-validation.

    Attributes:
        by_fold: the checkpoints of each fold, one per folder of runs.
        fold_of: the fold of each scan.
        execution: device and precision.
        tta: whether ages are means over several views, see `PredictionSettings`.
        looked_at: all scans of the folds, to tell each scan's unlikeness from; empty: not wanted.
    """

    by_fold: dict[int, list[Checkpoint]]
    fold_of: dict[str, int]
    execution: Execution
    tta: bool
    looked_at: Sequence[Scan] = ()

    @property
    def all(self) -> list[Checkpoint]:
        """The networks of all folds."""
        return [checkpoint for found in self.by_fold.values() for checkpoint in found]

    def ages(self, checkpoints: Sequence[Checkpoint], scans: list[Scan]) -> dict[str, np.ndarray]:
        """The named ages that each network gives, (networks, scans) years each.

        Raises:
            ValueError: a network was trained on some of the scans, without
                --allow_shared_persons.
        """
        # Scans are decoded once for all networks of one input rule.
        input_rules = {checkpoint.input_rule for checkpoint in checkpoints}
        opened = {rule: open_for_one_pass(scans, rule) for rule in input_rules}
        for checkpoint in checkpoints:
            require_unseen(
                scans,
                opened[checkpoint.input_rule].content_hashes,
                checkpoint.trained_on or (),
                source=checkpoint.source,
                allowed=checkpoint.summary.get("flags", {}).get("allow_shared_persons", False),
            )
            if self.looked_at:
                found = learn_likeness(checkpoint, list(self.looked_at), self.execution)
                checkpoint.summary["likeness"] = [found]
        note_unknown_sexes(checkpoints[0], scans)
        settings = PredictionSettings(tta=self.tta)
        found = [
            Predictor(checkpoint, self.execution, settings).ages(opened[checkpoint.input_rule])
            for checkpoint in checkpoints
        ]
        return {name: np.stack([ages[name] for ages in found]) for name in found[0]}


def collect_ages(args: Namespace) -> dict:
    """Writes the tables; prints and returns the figures of each predictor."""
    if bool(args.retest_folder) != bool(args.retest_output):
        raise ValueError("--retest_folder and --retest_output: give both, or neither")
    if args.retest_folder and args.only:
        raise ValueError(
            "--retest_folder and --only: networks of all folds expected, or people of the folds "
            "left out would be predicted by networks that have seen them"
        )
    outputs = [Path(path) for path in (args.output, args.retest_output) if path]
    files = [file for output in outputs for file in tables.table_files(output)]
    if not args.overwrite:
        require_absent(*files)
    use_machine_well(args.threads)
    execution = choose_execution(args.device, args.precision)
    fold_of = read_folds(args.folds)
    networks = {
        fold: [load_checkpoint(Path(folder) / str(fold) / BEST_NAME) for folder in args.runs]
        for fold in args.only or sorted(set(fold_of.values()))
    }
    retest = [args.retest_folder] if args.retest_folder else []
    found = [*find_scans(*args.scan_folders), *find_scans(*retest)]
    codes = parse_sex_codes(args.sex_codes)
    labels = read_labels(args.labels, found, sex_codes=codes, site=args.site)
    input_rule = next(iter(networks.values()))[0].input_rule
    pooled = open_cohort(args.scan_folders, labels, input_rule, need_age=True)
    looked_at = pooled if args.unlikeness else ()
    folds = FoldNetworks(networks, fold_of, execution, args.tta, looked_at)
    scans, ages, seeds = predict_folds(args, folds, pooled)
    step = getattr(folds.all[0].model, "age_step", None)  # a first stage has none
    report = compare(args, scans, ages, seeds, step)
    if args.retest_folder:
        predict_retest(args, folds, labels)
    return report


def predict_folds(
    args: Namespace, folds: FoldNetworks, pooled: list[Scan]
) -> tuple[list[Scan], dict[str, np.ndarray], np.ndarray]:
    """Predicts the scans of every fold by the fold's own networks and writes the table.

    Returns:
        The scans; their named ages, (scans,) years each, means over seeds; (seeds, scans) years.
    """
    scans: list[Scan] = []
    found = []
    for fold, checkpoints in folds.by_fold.items():
        held = hold_out(pooled, folds.fold_of, fold)[1]
        found.append(folds.ages(checkpoints, held))
        scans += held
    ages = {name: np.concatenate([each[name] for each in found], axis=1) for name in found[0]}
    means = {name: values.mean(axis=0) for name, values in ages.items()}
    rows = tables.scan_rows(scans, means)
    rows = [row | {"fold": folds.fold_of[row["participant_id"]]} for row in rows]
    tables.write_table(Path(args.output), rows, overwrite=args.overwrite)
    return scans, means, ages["predicted_age"]


def compare(
    args: Namespace,
    scans: list[Scan],
    ages: dict[str, np.ndarray],
    seeds: np.ndarray,
    step: float | None,
) -> dict:
    """Prints and returns the figures of stages, seeds and sites, and paired differences.

    Args:
        args: the flags, for the names of runs and references.
        scans: those of the folds.
        ages: (scans,) years by name.
        seeds: (seeds, scans) years.
        step: years between rounded ages; None for first stages.
    """
    age, predicted = np.array([scan.age for scan in scans]), ages["predicted_age"]
    predictors = {"predicted": predicted}
    if step:
        predictors = {"stage one": ages["stage_one_age"], "stage two": predicted}
    if len(seeds) > 1:
        names = (Path(folder).name for folder in args.runs)
        predictors |= dict(zip(names, seeds, strict=True))
    report = {name: metrics.score_with_intervals(age, each) for name, each in predictors.items()}
    sites = group_by_site(scans)
    for site, at in sites.items() if len(sites) > 1 else ():
        report[f"site {site}"] = metrics.score_with_intervals(age[at], predicted[at])
    print(f"{len(scans)} scans, each predicted by networks that were not trained on it")
    print(tables.format_figures(report))
    if step:
        report["difference"] = metrics.mae_difference(age, predicted, ages["stage_one_age"])
        print(tables.format_difference("stage two minus stage one", report["difference"]))
        report["within_bins"] = within_bins(age, ages["stage_one_age"], predicted, step)
    for path in args.reference:
        theirs = tables.read_predicted_ages(path, scans)
        report[path] = metrics.mae_difference(age, predicted, theirs)
        print(tables.format_difference(f"this minus {path}", report[path]))
    return report


def within_bins(
    age: np.ndarray, stage_one: np.ndarray, stage_two: np.ndarray, step: float
) -> dict[str, float]:
    """Prints and returns how the second stage tells scans of one rounded age apart.

    Ages are (scans,) years.
    """
    rounded = discretize_age(torch.from_numpy(stage_one), step).numpy()
    residual, needed = stage_two - rounded, age - rounded
    values = {
        "spread": metrics.within_bin_spread(residual, rounded),
        "spread_needed": metrics.within_bin_spread(needed, rounded),
        "correlation": metrics.within_bin_correlation(residual, needed, rounded),
    }
    print(
        f"within rounded ages: spread of the residual {values['spread']:.2f} years, needed "
        f"{values['spread_needed']:.2f}; correlation of both {values['correlation']:.2f}"
    )
    return values


def predict_retest(args: Namespace, folds: FoldNetworks, labels: LabelSheet) -> None:
    """Predicts second scans by the networks that had not seen the person, and writes their table.

    People of no fold, such as those of a test folder, get the mean of all networks.
    """
    fold_of = {find_person(scan): fold for scan, fold in folds.fold_of.items()}
    scans = open_cohort(args.retest_folder, labels, folds.all[0].input_rule)
    fold = [fold_of.get(find_person(scan.subject_id)) for scan in scans]
    ages: dict[str, np.ndarray] = {}
    for held in set(fold):
        places = [index for index, each in enumerate(fold) if each == held]
        checkpoints = folds.by_fold.get(held, folds.all)
        found = folds.ages(checkpoints, [scans[index] for index in places])
        for name, values in found.items():
            ages.setdefault(name, np.empty(len(scans)))[places] = values.mean(axis=0)
    rows = [
        row | {"fold": each} for row, each in zip(tables.scan_rows(scans, ages), fold, strict=True)
    ]
    tables.write_table(Path(args.retest_output), rows, overwrite=args.overwrite)
