r"""Brain-PAD: corrected for age bias, with intervals, repeatability, and dementia.

    python -m analysis.brain_pad --out_of_fold out_of_fold.csv --test runs/second/predictions.tsv \
        --retest runs/retest/predictions.tsv --dementia runs/dementia/predictions.tsv \
        --participants data/participants.tsv --output_dir runs/brain_pad

Bias correction and limits of intervals are fitted on the out-of-fold ages of healthy scans and
applied to the other tables, which test.py writes. With `--held_out_sites` the limits are those of
scans of sites that the networks do not know. brain_pad.json keeps them for other programs,
report.json has all figures, brain_pad.csv one row per scan.
"""

import argparse
from collections.abc import Sequence

from utils.cli import Switch, add_subject_pattern, new_parser, number, run_entry


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Correct brain-PAD for age bias, and measure its repeatability.")
    add = parser.add_argument
    add("--out_of_fold", required=True, metavar="TABLE",
        help="ages of healthy training scans, each from networks not trained on it")  # fmt: skip
    add("--held_out_sites", metavar="TABLE",
        help="ages of healthy scans, each from networks that know no scan of its site; with a "
        "column site; limits of intervals are then those of strangers' scans")  # fmt: skip
    add("--test", required=True, metavar="TABLE", help="ages of healthy persons not trained on")
    add("--retest", nargs="*", default=[], metavar="TABLE", help="ages of second scans")
    add("--first", nargs="*", default=[], metavar="TABLE",
        help="first scans of persons who are in neither --out_of_fold nor --test")  # fmt: skip
    add("--dementia", metavar="TABLE", help="ages of people with dementia; '': none")
    add("--participants", metavar="TABLE",
        help="scan_id (or participant_id) and CDR, for figures by CDR; '': none")  # fmt: skip
    add("--labels", nargs="*", default=[], metavar="SHEET",
        help="label sheets with age and sex of the scans in --out_of_fold and --held_out_sites; "
        "'' or unset: these have the columns age and sex themselves")  # fmt: skip
    add("--caliper", type=number(float, low=0), default=5.0,
        help="largest age difference of a patient and the matched healthy scan, years")  # fmt: skip
    add_subject_pattern(parser)
    add("--output_dir", required=True, metavar="DIR", help="receives the results")
    add("--overwrite", action=Switch, default=False, help="replace results that exist")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Writes calibration, report, table and pictures; prints and returns the report."""
    args = build_parser().parse_args(argv)
    # After parsing, so that --help does not wait for scikit-learn.
    from analysis.brain_pad.report import make_report

    return make_report(args)


if __name__ == "__main__":
    run_entry(main)
