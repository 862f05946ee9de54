"""Predicts the ages of a folder of scans with a checkpoint of either stage, and reports errors.

Run it through `bash script/test_first_stage.sh` or `bash script/test_second_stage.sh`. It is one
process; torchrun is for training.
"""

import argparse
from collections.abc import Sequence

from utils.cli import Switch, add_label_flags, add_machine_flags, new_parser, number, run_entry
from utils.networks import BEST_NAME
from utils.training.options import parse as parse_published


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of this program."""
    parser = new_parser(
        "Predict the ages of a folder of scans with a checkpoint of either stage; with a label "
        "sheet, report the errors."
    )
    add_network_flags(parser.add_argument_group("network"))
    group = parser.add_argument_group("data")
    group.add_argument(
        "--test_folder", nargs="+", required=True, metavar="DIR",
        help=".nii.gz or .nii scans, in one folder or several",
    )  # fmt: skip
    add_label_flags(group, required=False)
    group = parser.add_argument_group("results")
    group.add_argument(
        "--output_dir", required=True, metavar="DIR",
        help="where the results go, and where --model_name is looked for",
    )  # fmt: skip
    group.add_argument(
        "--npz_name", default="predictions.npz", metavar="NAME",
        help="target, prediction, ID, as the authors write them",
    )  # fmt: skip
    group.add_argument("--plot_name", default="scatter.png", metavar="NAME", help="scatter plot")
    group.add_argument("--overwrite", action=Switch, default=False, help="replace results")
    add_machine_flags(parser)
    parser.add_argument("--batch_size", type=number(int, low=1), default=8, help="scans at a time")
    return parse_published(parser, argv, {})


def add_network_flags(group: argparse._ArgumentGroup) -> None:
    """Which network predicts, and how."""
    group.add_argument(
        "--model_name", nargs="+", metavar="NAME",
        help="checkpoint, ours or the authors', in --output_dir or a path; several: the mean of "
        f"their ages; unset: {BEST_NAME} in --output_dir or, without one there, the networks that "
        "are shipped in pretrained/",
    )  # fmt: skip
    group.add_argument(
        "--tta", action=Switch, default=True,
        help="test-time augmentation: the mean age of each scan's mirror image and moved copies, "
        "as far as training mirrored and moved scans",
    )  # fmt: skip
    group.add_argument(
        "--first_stage_net", metavar="FILE",
        help="first stage for an authors' second-stage checkpoint; ours hold it",
    )  # fmt: skip
    group.add_argument(
        "--use_sex", "--use_gender", action=Switch, default=None,
        help="for the authors' checkpoints, which do not tell; unset: true",
    )  # fmt: skip
    group.add_argument(
        "--age_step", "--dis_range", type=number(float, above=0), default=5.0, metavar="YEARS",
        help="for the authors' second stage; ours store it",
    )  # fmt: skip
    group.add_argument(
        "--fuse", action=Switch, default=True,
        help="fuse convolutions with their normalisations: same ages, faster",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict:
    """Tests with the given flags and returns the figures of metrics.json."""
    args = parse(argv)
    if args.unused:
        print(f"note: {', '.join(args.unused)} accepted and unused: networks are not trained here")
    # After parsing, so that --help does not wait for torch.
    from utils.results.evaluate import evaluate

    return evaluate(args)


if __name__ == "__main__":
    run_entry(main)
