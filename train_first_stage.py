"""Trains the first stage of TSAN: a T1 scan, and the sex, to a rough age.

Run it through `bash script/train_first_stage.sh`, where the flags are set.
"""

from collections.abc import Sequence
from pathlib import Path

from utils.cli import run_entry
from utils.training.options import parse_first_stage


def main(argv: Sequence[str] | None = None) -> Path:
    """Trains with the given flags and returns the best checkpoint's path.

    Started several times by torchrun or srun, it is one of the processes of one training.
    """
    args = parse_first_stage(argv)
    # After parsing, so that --help does not wait for torch.
    from utils.training.run import build_first_stage, run

    return run(args, build_first_stage)


if __name__ == "__main__":
    run_entry(main)
