"""Predicts the ages of a folder of scans with a checkpoint of either stage, and reports errors.

Run it through `bash script/test_first_stage.sh` or `bash script/test_second_stage.sh`. One process;
torchrun is for training.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import run_entry
from utils.training.options import parse_test

if TYPE_CHECKING:
    from utils.networks.checkpoint import Checkpoint
    from utils.networks.predictor import PredictionSettings
    from utils.scans.cohort import Scan


def main(argv: Sequence[str] | None = None) -> dict:
    """Tests with the given flags and returns the figures of metrics.json."""
    args = parse_test(argv)
    # After parsing, so that --help does not wait for torch.
    from utils.machine import use_machine_well
    from utils.networks.checkpoint import load_ensemble
    from utils.networks.execution import choose_execution
    from utils.networks.predictor import Predictor, find_checkpoints, note_unknown_sexes
    from utils.results import tables as results
    from utils.scans.cohort import describe
    from utils.scans.dataset import open_for_one_pass
    from utils.scans.leakage import note_seen
    from utils.scans.provenance import compare_provenance, format_comparison
    from utils.training.run import say_unused

    say_unused(args, "a checkpoint says how it was trained")
    output_dir = Path(args.output_dir)
    names = (args.csv_name, args.metrics_name, args.npz_name, args.plot_name)
    files = results.ResultFiles(*(output_dir / name for name in names))
    files.require_sound_names()
    if not args.overwrite:
        files.require_absent()
    use_machine_well(args.threads)
    execution = choose_execution(args.device, args.precision)
    checkpoint = load_ensemble(
        find_checkpoints(output_dir, args.model_name),
        first_stage_net=args.first_stage_net,
        use_sex=args.use_sex,
        age_step=args.age_step,
    )
    scans = scans_of(args, checkpoint)
    comparison = compare_provenance([scan.path for scan in scans], checkpoint.provenance)
    print(f"stage {checkpoint.stage}, {checkpoint.source}\ntest: {describe(scans)}")
    print(format_comparison(comparison))
    note_unknown_sexes(checkpoint, scans)
    dataset = open_for_one_pass(scans, checkpoint.input_rule)
    seen = note_seen(scans, dataset.content_hashes, checkpoint.trained_on)
    ages = Predictor(checkpoint, execution, prediction_of(args)).ages(dataset)
    results.write_predictions(scans, ages, files, overwrite=args.overwrite)
    mean = checkpoint.summary.get("mean_training_age")
    report = results.evaluate(scans, ages, stage=checkpoint.stage, training_mean=mean)
    report["preprocessing"] = comparison
    report["scans_in_training_set"] = seen
    report["checkpoint"] = str(checkpoint.source)
    cohort = "/".join(Path(args.test_folder).resolve().parts[-2:])
    results.write_report(report, scans, ages, files, name=cohort)
    print(results.format_report(report))
    written = names if report["scans_with_age"] else names[:3]
    print(f"results: {', '.join(str(output_dir / name) for name in written)}")
    return report


def scans_of(args: Namespace, checkpoint: "Checkpoint") -> list["Scan"]:
    """The scans of the test folder, with their rows of the sheet where there is one."""
    from utils.scans.cohort import open_cohort
    from utils.scans.labels import parse_sex_codes, read_labels

    labels = None
    if args.labels:
        labels = read_labels(args.labels, sex_codes=parse_sex_codes(args.sex_codes))
    return open_cohort(
        args.test_folder,
        labels,
        checkpoint.input_rule,
        smallest_side=checkpoint.smallest_side,
    )


def prediction_of(args: Namespace) -> "PredictionSettings":
    """How the flags say that ages are to be predicted."""
    from utils.networks.predictor import PredictionSettings

    return PredictionSettings(
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        fuse=args.fuse,
        compile=args.compile,
        mirror=args.mirror,
        insist=args.precision == "bfloat16",
    )


if __name__ == "__main__":
    run_entry(main)
