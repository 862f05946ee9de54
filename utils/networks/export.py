"""Writes a checkpoint of the released width in the authors' format.

python -m utils.networks.export runs/first_stage/ScaleDense_best_model.pth.tar authors/first.pth.tar
"""

import argparse
from collections.abc import Sequence

from utils.cli import Switch, new_parser, run_entry


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Write a checkpoint of the released width in the authors' format.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of either stage, trained here")
    parser.add_argument("output", metavar="OUTPUT", help="file to write")
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace that file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Exports the trained stage; of a cascade that is the second."""
    args = build_parser().parse_args(argv)
    from utils.networks.checkpoint import export_to_authors, load_checkpoint

    checkpoint = load_checkpoint(args.checkpoint)
    export_to_authors(checkpoint, args.output, overwrite=args.overwrite)
    print(f"stage {checkpoint.stage} written to {args.output} in the authors' format")


if __name__ == "__main__":
    run_entry(main)
