"""Trains the first stage of TSAN: a T1 scan, and the sex, to a rough age.

Run it through `bash script/train_first_stage.sh`, where the flags are set.
"""

from collections.abc import Sequence
from pathlib import Path

from utils.entry import run_entry
from utils.options import parse_first_stage


def main(argv: Sequence[str] | None = None) -> Path:
    """Trains with the given flags and returns the best checkpoint's path."""
    args = parse_first_stage(argv)
    # After parsing, so that --help does not wait for torch.
    import numpy as np

    from model.scaledense import ScaleDense
    from utils import setup
    from utils.volumes import Preparation

    setup.say_unused(args, "the test set is read only by test.py")
    setup.check_output(args)
    loss = setup.age_loss(args)
    execution = setup.seeded_execution(args)
    preparation = Preparation(args.resolution, args.intensity, any_grid=args.any_grid)
    sets = setup.datasets(args, preparation, execution)
    mean_age = float(np.mean([scan.age for scan in sets[0].scans]))
    model = ScaleDense(args.width, use_sex=args.use_sex, mean_age=mean_age)
    return setup.start(args, model, loss, sets, execution)


if __name__ == "__main__":
    run_entry(main)
