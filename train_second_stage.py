"""Trains the second stage of TSAN: scan, sex and rounded rough age to the residual age.

Run it through `bash script/train_second_stage.sh`, where the flags are set.
"""

from collections.abc import Sequence
from pathlib import Path

from utils.cli import run_entry
from utils.training.options import parse_second_stage


def main(argv: Sequence[str] | None = None) -> Path:
    """Trains with the given flags and returns the best checkpoint's path.

    Started several times by torchrun or srun, it is one of the processes of one training.
    """
    args = parse_second_stage(argv)
    # After parsing, so that --help does not wait for torch.
    from utils.training.run import build_second_stage, run

    return run(args, build_second_stage)


if __name__ == "__main__":
    run_entry(main)
