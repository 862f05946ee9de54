r"""Out-of-fold ages: each scan's age from the network that was trained on the other folds.

    python -m analysis.brain_pad.out_of_fold --runs runs/cv/default --folds docs/folds_oasis1.csv \
        --scan_folders data/train data/val --labels data/Dataset.xls --output out_of_fold.csv

A folder of `--runs` holds one run per fold, named by the fold, as script/cross_validate.sh makes
them. Several such folders (seeds) give the mean of their ages. With `--keep last` the result of a
run is the network of the last epoch, so no scan has chosen its own network. `--retest_folder` holds
second scans of the same people, each predicted by the networks that had not seen the person.
"""

import argparse
from collections.abc import Sequence

from utils.cli import Switch, add_device_flags, add_label_flags, new_parser, run_entry


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Collect the ages that cross-validated networks give to unseen scans.")
    add = parser.add_argument
    add("--runs", nargs="+", required=True, metavar="DIR", help="holds one run per fold: 0, 1, ...")
    add("--folds", required=True, metavar="CSV", help="columns scan and fold")
    add("--only", nargs="+", type=int, metavar="FOLD", help="of the folds; unset: all of them")
    add("--scan_folders", nargs="+", required=True, metavar="DIR", help="scans")
    add_label_flags(parser, required=True)
    add("--output", required=True, metavar="TABLE", help="the table to write, .csv or .tsv")
    add("--reference", nargs="*", default=[], metavar="TABLE",
        help="tables of the same scans to be compared with, scan by scan")  # fmt: skip
    add("--retest_folder", metavar="DIR", help="second scans of the same people")
    add("--retest_output", metavar="TABLE", help="the table of their ages")
    add("--tta", action=Switch, default=True,
        help="mean over mirror images and moved copies, as training made them")  # fmt: skip
    add("--unlikeness", action=Switch, default=False,
        help="also how unlike the training scans of its network each scan is")  # fmt: skip
    add("--overwrite", action=Switch, default=False, help="replace the tables")
    add_device_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Writes the tables; prints and returns the figures of each predictor."""
    args = build_parser().parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from analysis.brain_pad.fold_ages import collect_ages

    return collect_ages(args)


if __name__ == "__main__":
    run_entry(main)
