"""Trains a sorter for the `sodeep` ranking loss: one file for one batch size.

    bash script/train_sorter.sh --kind lstm --length 24

The file goes to `pretrained/`, where the loss looks for it by the length of the global batch.
"""

import argparse
from pathlib import Path

from utils.cli import Switch, new_parser, number, run_entry


def build_parser() -> argparse.ArgumentParser:
    """The flags of train_sorter.py; kinds are repeated here, so that --help needs no torch."""
    parser = new_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--kind", choices=("lstm", "lstmla"), default="lstm",
        help="lstm has 128 units in each direction, lstmla 512",
    )  # fmt: skip
    add(
        "--length", type=number(int, low=2, high=4096), required=True,
        help="values sorted at once: the batch size of the training it is for, all GPUs together",
    )  # fmt: skip
    add(
        "--steps", type=number(int, low=1),
        help="unset: 1500 for every 8 values; more makes short sorters exact and nearly flat",
    )  # fmt: skip
    add("--batch_size", type=number(int, low=1), default=64, help="sequences per step")
    add("--lr", type=number(float, above=0), default=5e-3, help="the highest of the schedule")
    add("--seed", type=number(int, low=0, high=2**63 - 1), default=0, help="of everything random")
    add("--output", type=Path, help="file to write; unset: pretrained/sorter_KIND_LENGTH.pt")
    add("--overwrite", action=Switch, default=False, help="replace that file")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if any")
    return parser


def main(argv: list[str] | None = None) -> dict:
    """Trains the sorter the flags describe; returns its measures (evaluate_sorter)."""
    options = build_parser().parse_args(argv)
    # Imported late: --help and a mistyped flag answer at once.
    from utils.training.sorter import SorterRecipe, default_steps, make_sorter

    recipe = SorterRecipe(
        kind=options.kind,
        length=options.length,
        steps=options.steps or default_steps(options.length),
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
    )
    return make_sorter(
        recipe, device=options.device, output=options.output, overwrite=options.overwrite
    )


if __name__ == "__main__":
    run_entry(main)
