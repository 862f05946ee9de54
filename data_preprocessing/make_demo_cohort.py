"""Makes a labelled cohort of SYNTHETIC brains, so that every command can be tried without scans.

    python -m data_preprocessing.make_demo_cohort --output_dir demo_cohort --scans 120

Nobody was scanned, and errors on these volumes say nothing about errors on people; how the brains
are made is described in data_preprocessing/demo/phantom.py.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from data_preprocessing.demo.cohort import draw_picture, make_cohort
from utils.cli import new_parser, number, run_entry
from utils.files import require_absent


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Make a cohort of SYNTHETIC brains with ages, for trying everything out.")
    parser.add_argument("--output_dir", type=Path, help="an empty or new folder for the cohort")
    parser.add_argument(
        "--scans", type=number(int, low=5, high=65536), default=120, help="number of volumes"
    )
    parser.add_argument(
        "--seed",
        # With larger seeds, people of different cohorts would share their generators.
        type=number(int, low=0, high=2**32 - 1),
        default=0,
        help="of everything: the same seed gives the same files",
    )
    parser.add_argument(
        "--jobs", type=number(int, low=1), default=os.cpu_count() or 1, help="processes to use"
    )
    parser.add_argument(
        "--picture", type=Path, help="a .png to draw one simulated person at three ages"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the cohort, the picture, or both."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.output_dir is None and args.picture is None:
        parser.error("nothing to make: give --output_dir, --picture or both")
    if args.picture is not None:
        if args.picture.suffix.lower() != ".png":
            parser.error(f"argument --picture: a name ending in .png expected, got {args.picture}")
        require_absent(args.picture)
    if args.output_dir is not None:
        make_cohort(args.output_dir, scans=args.scans, seed=args.seed, jobs=args.jobs)
        print(f"{args.scans} SYNTHETIC scans and Dataset.xls written to {args.output_dir}")
    if args.picture is not None:
        draw_picture(args.picture, seed=args.seed)
        print(f"picture of SYNTHETIC brains written to {args.picture}")


if __name__ == "__main__":
    run_entry(main)
