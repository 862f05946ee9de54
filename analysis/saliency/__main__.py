r"""Which regions of the brain move the age that a checkpoint gives: maps, a table and a picture.

    python -m analysis.saliency --checkpoint runs/first/ScaleDense_best_model.pth.tar \
        --scan_folder data/test --labels data/Dataset.xls --output_dir saliency

It writes, all on the MNI152 2 mm grid, a map of each scan (maps/), their mean (mean_map.nii.gz),
regions.tsv, saliency.png and saliency.json. It makes the same maps for a network with random
weights. Where both look alike, the maps show what scans look like and not what the network has
learnt (Adebayo et al. 2018, arXiv 1810.03292), and the program warns.

A map shows what a network reacts to. It does not show that a region ages, nor whether tissue, size
or border of the region matters.
"""

import argparse
from collections.abc import Sequence

from utils.cli import Switch, add_label_flags, new_parser, number, run_entry

METHODS = ("smoothgrad", "occlusion")


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Map which regions of the brain move the age that a checkpoint gives.")
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="FILE", help="one, or several as a mean"
    )
    parser.add_argument("--scan_folder", required=True, metavar="DIR", help="scans on the grid")
    add_label_flags(parser, required=False)
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="for the results")
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace results")
    parser.add_argument("--method", choices=METHODS, default="smoothgrad", help="kind of map")
    parser.add_argument("--limit", type=number(int, low=1), help="only the first so many scans")
    parser.add_argument(
        "--random_weights", action=Switch, default=True,
        help="compare with maps of the network with weights drawn anew; doubles the time",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of random weights")
    group = parser.add_argument_group("smoothgrad")
    group.add_argument(
        "--copies", type=number(int, low=1), default=16, help="noisy copies per scan"
    )
    group.add_argument(
        "--noise", type=number(float, low=0), default=0.5, help="SD of the noise, in a brain's SDs"
    )
    group.add_argument(
        "--times_input", action=Switch, default=False,
        help="gradient times z-score (years, signed) instead of its magnitude (years per SD)",
    )  # fmt: skip
    group = parser.add_argument_group("occlusion")
    group.add_argument("--cube", type=number(int, low=2), default=16, help="side, mm")
    group.add_argument("--stride", type=number(int, low=2), default=8, help="between cubes, mm")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch_size", type=number(int, low=1), default=8, help="views at a time")
    group.add_argument("--device", default="auto", help="auto: a GPU when there is one")
    group.add_argument(
        "--threads", type=number(int, low=0), default=0,
        help="CPU threads; 0: as many as the process may use",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Writes maps, table and picture; returns what saliency.json holds."""
    args = build_parser().parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from analysis.saliency.run import map_scans

    return map_scans(args)


if __name__ == "__main__":
    run_entry(main)
