"""Trains the first stage of TSAN: a T1 scan, and the sex, to a rough age.

Run it through `bash script/train_first_stage.sh`, where the flags are set.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import run_entry
from utils.training.options import parse_first_stage

if TYPE_CHECKING:
    from utils.distributed import World


def main(argv: Sequence[str] | None = None) -> Path:
    """Trains with the given flags and returns the best checkpoint's path.

    Started several times by torchrun or srun, it is one of the processes of one training.
    """
    args = parse_first_stage(argv)
    # After parsing, so that --help does not wait for torch.
    from utils.distributed import joined

    with joined(args.device) as world:
        return train(args, world)


def train(args: Namespace, world: "World") -> Path:
    """Trains as one of the processes of `world`."""
    import numpy as np

    from model.scaledense import ScaleDense
    from utils.networks.checkpoint import load_checkpoint, start_from_checkpoint
    from utils.scans.volumes import InputRule
    from utils.training import run as setup

    setup.say_unused(args, "the test set is read only by test.py")
    setup.check_start(args, world)
    loss = setup.age_loss(args)
    execution = setup.seeded_execution(args, world)
    input_rule = InputRule(args.resolution, args.intensity, any_grid=args.any_grid, crop=args.crop)
    origins = [load_checkpoint(args.init_from)] if args.init_from else []
    sets, made = world.run_in_all(lambda: setup.datasets(args, input_rule, execution, args.width))
    setup.require_new_to(args, sets[1], origins)
    ages = np.array([scan.age for scan in sets[0].scans])
    model = ScaleDense(
        args.width,
        use_sex=args.use_sex,
        mean_age=float(ages.mean()),
        age_spread=float(ages.std()) if args.scaled_head else 1.0,
        dropout=args.dropout,
    )
    for origin in origins:
        start_from_checkpoint(model, origin, input_rule)
    return setup.start(args, model, loss, sets, execution, made, origins=origins)


if __name__ == "__main__":
    run_entry(main)
