"""Trains the second stage of TSAN: scan, sex and rounded rough age to the residual age.

Run it through `bash script/train_second_stage.sh`, where the flags are set.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import run_entry
from utils.training.options import parse_second_stage

if TYPE_CHECKING:
    from utils.distributed import World


def main(argv: Sequence[str] | None = None) -> Path:
    """Trains with the given flags and returns the best checkpoint's path.

    Started several times by torchrun or srun, it is one of the processes of one training.
    """
    args = parse_second_stage(argv)
    # After parsing, so that --help does not wait for torch.
    from utils.distributed import joined

    with joined(args.device) as world:
        return train(args, world)


def train(args: Namespace, world: "World") -> Path:
    """Trains as one of the processes of `world`."""
    from model.tsan import TSAN, SecondStage
    from utils.networks.checkpoint import load_checkpoint, load_first_stage, start_from_checkpoint
    from utils.training import run as setup
    from utils.training.run import unseen_error_spread

    setup.say_unused(args, "the test set is read only by test.py")
    setup.check_start(args, world)
    loss = setup.age_loss(args)
    execution = setup.seeded_execution(args, world)
    first = load_first_stage(args.first_stage_net, use_sex=args.use_sex)
    width = args.width or first.model.encoder.width
    second_stage = SecondStage(width, use_sex=args.use_sex, dropout=args.dropout)
    start = first
    if args.init_from:
        start = load_checkpoint(args.init_from)
        start_from_checkpoint(second_stage, start, first.input_rule)
    elif args.warm_start:
        if args.warm_start_net:
            start = load_first_stage(args.warm_start_net, use_sex=args.use_sex)
        second_stage.start_from(start.model, rough_share=args.rough_share)
    origins = [first] if start is first else [first, start]
    sets, made = world.run_in_all(
        lambda: setup.datasets(args, first.input_rule, execution, width, first)
    )
    setup.require_new_to(args, sets[1], origins)
    setup.use_out_of_fold_ages(args, sets[0])
    noise = args.rough_age_noise
    if noise == "auto" and args.out_of_fold_ages:
        noise = 0.0  # these ages err as on new scans already
    elif noise == "auto":
        noise = unseen_error_spread(first.model, *sets, execution)
        print(f"noise on the rough age in training: SD {noise:.2f} years")
    model = TSAN(first.model, second_stage, age_step=args.age_step, rough_age_noise=noise)
    return setup.start(args, model, loss, sets, execution, made, origins=origins)


if __name__ == "__main__":
    run_entry(main)
