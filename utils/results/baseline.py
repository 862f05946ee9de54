"""The baseline that a network must beat: linear kernel ridge on 4 mm voxels, and the mean age.

    python -m utils.results.baseline --train_folders data/train data/val --test_folder data/test \
        --labels data/Dataset.xls

Runs in seconds.
"""

import argparse
from collections.abc import Sequence

from utils.cli import add_intensity_flag, add_label_flags, new_parser, run_entry


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Mean age and linear kernel ridge on 4 mm voxels, for comparison.")
    parser.add_argument("--train_folders", nargs="+", required=True, metavar="DIR", help="scans")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--test_folder", nargs="+", metavar="DIR", help="scans to be predicted")
    where.add_argument(
        "--folds", metavar="CSV",
        help="columns scan and fold: predict each of the scans from those of the other folds",
    )  # fmt: skip
    add_intensity_flag(parser, default="tissue")
    add_label_flags(parser, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Fits on the training folders, prints and returns the figures on the test folder."""
    args = build_parser().parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from utils.results.ridge import compare_baselines

    return compare_baselines(args)


if __name__ == "__main__":
    run_entry(main)
