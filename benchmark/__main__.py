"""Measures the authors' approach, stated plainly, and ours side by side; prints a table of ratios.

    python -m benchmark --json performance.json

Every form runs in a process of its own, forms take turns, and a ratio is the median over rounds
with its smallest and largest. docs/PERFORMANCE.md says what each row means.
"""

import argparse
from collections.abc import Sequence

from utils.cli import Switch, new_parser, number, run_entry

CASES = ("ceiling", "inference", "training", "loader", "feeding", "memory")
CACHES = ("none", "disk", "device")


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Speed and memory: the authors' approach, stated plainly, against ours.")
    count = number(int, low=1)
    of_batch = "scans per batch; unset: 8 16 32 64 on a GPU, else 1 for inference, 4 for training"
    of_cache = "of our loader, each a form of its own"
    of_quick = "tiny volumes and one round: whether it runs, not how fast"
    add = parser.add_argument_group("what").add_argument
    add("--cases", nargs="+", choices=CASES, default=CASES, help=" ")
    add("--width", nargs="+", choices=("compact", "released"), default=["compact"], help=" ")
    add("--batch", nargs="+", type=count, help=of_batch)
    add("--cache", nargs="+", choices=CACHES, default=["disk", "device"], help=of_cache)
    add("--scans", type=count, default=48, help="files of loader and feeding")
    add("--quick", action=Switch, default=False, help=of_quick)
    add = parser.add_argument_group("how").add_argument
    add("--repeats", type=count, default=5, help="rounds, in alternating order")
    add("--budget", type=number(float, low=0), default=0, metavar="SECONDS",
        help="for all; the rows that matter most are measured first. 0: no end")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if any")
    add("--threads", type=number(int, low=0), default=0, help="0: torch's choice")
    add("--num_workers", type=number(int, low=0), default=2, help="of a loader")
    add("--json", metavar="FILE", help="also write all figures of all rounds")
    add("--overwrite", action=Switch, default=False, help="replace --json FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> list:
    """Measures, prints and returns the rows."""
    args = build_parser().parse_args(argv)
    from benchmark.run import run

    return run(args)


if __name__ == "__main__":
    run_entry(main)
