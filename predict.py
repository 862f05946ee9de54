"""Brain ages of anybody's T1-weighted scans: preprocesses what needs it, predicts, and reports.

Run it through `bash script/predict.sh SCANS... --output_dir OUT`. Raw heads, extracted brains and
scans on the network's grid are told apart by their images. Each scan's result is written as soon as
it is known; when the same command runs again, finished scans are skipped. Exit code: 0 all well,
1 the run failed, 2 wrong usage, 3 some scans failed.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import Switch, new_parser, number, run_entry

CONTENTS = ("auto", "head", "brain", "grid")
BACKENDS = ("builtin", "fsl")


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Predict the brain ages of T1-weighted scans, and report.")
    parser.add_argument(
        "inputs", nargs="+", metavar="SCANS",
        help="NIfTI or MGH files, folders of them, BIDS datasets, outputs of fsl_anat, folders of "
        "a DICOM series; before all flags",
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="for results")
    group = parser.add_argument_group("people")
    group.add_argument(
        "--labels", nargs="+", metavar="SHEET",
        help="one or several sheets with ages and sexes, both optional; unset: participants.tsv of "
        "BIDS datasets; '': none",
    )  # fmt: skip
    group.add_argument("--site", metavar="NAME", help="of the scans of which no sheet gives a site")
    group.add_argument(
        "--sex_codes", nargs="+", metavar="CODE=SEX",
        help="for sheets with other codes, such as 1=male 2=female",
    )  # fmt: skip
    group.add_argument(
        "--participant_label", nargs="+", metavar="LABEL",
        help="of a BIDS dataset, these participants alone, with or without sub-",
    )  # fmt: skip
    group = parser.add_argument_group("scans")
    group.add_argument(
        "--contents", choices=CONTENTS, default="auto",
        help="whole heads, extracted brains, or brains on the network's grid; auto: seen from each "
        "header and image",
    )  # fmt: skip
    group.add_argument(
        "--backend", choices=BACKENDS, default="builtin",
        help="of the preprocessing, whose recipe is that of the network's training scans",
    )  # fmt: skip
    group = parser.add_argument_group("network")
    group.add_argument(
        "--model_name", nargs="+", metavar="FILE",
        help="checkpoints of one stage, whose mean is taken; unset: the networks in pretrained/",
    )  # fmt: skip
    group.add_argument(
        "--calibration", metavar="JSON",
        help="for intervals and corrections: what script/recalibrate.sh wrote for this scanner, "
        "or brain_pad.json of script/brain_pad.sh; unset: the one of the networks in pretrained/, "
        "with those alone; '': none",
    )  # fmt: skip
    group = parser.add_argument_group("results")
    group.add_argument("--csv", action=Switch, default=False, help="predictions.csv as well")
    group.add_argument("--report", action=Switch, default=True, help="report.html")
    group.add_argument(
        "--saliency", action=Switch, default=False,
        help="show in the report which voxels moved each age (SmoothGrad; seconds per scan)",
    )  # fmt: skip
    group.add_argument(
        "--overwrite", action=Switch, default=False, help="replace results that exist"
    )
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--jobs", type=number(int, low=0), default=0,
        help="scans prepared at a time; 0: as many as cores and memory allow",
    )  # fmt: skip
    group.add_argument("--device", default="auto", help="auto: a GPU if there is one")
    group.add_argument(
        "--threads", type=number(int, low=0), default=0, help="of the network; 0: as many as cores"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts the scans named and returns the exit code: 0, or 3 where some scans failed."""
    args = build_parser().parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from prediction.run import run

    command = shlex.join(["predict.py", *(sys.argv[1:] if argv is None else argv)])
    return run(args, command=command)


if __name__ == "__main__":
    run_entry(lambda: sys.exit(main()))
