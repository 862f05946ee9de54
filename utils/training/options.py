"""The flags of the entry points, in groups; readable names beside the authors' published ones.

Each group is a function that adds to a parser, so that no parser is shared and none leaks its
defaults into another. Nothing heavy is imported: `--help` answers at once.
"""

import argparse
from collections.abc import Sequence

from utils.cli import (
    Switch,
    add_label_flags,
    add_machine_flags,
    add_subject_pattern,
    new_parser,
    number,
)

# The published flags. An entry point accepts those it has no use for and says so.
PUBLISHED_FLAGS = (
    "--model", "--batch_size", "--epochs", "--lr", "--weight_decay", "--loss", "--aux_loss",
    "--lbd", "--beta", "--first_stage_net", "--train_folder", "--valid_folder", "--test_folder",
    "--excel_path", "--output_dir", "--model_name", "--npz_name", "--plot_name", "--dis_range",
    "--sorter", "--num_workers", "--print_freq", "--use_gender", "--schedular", "--min_lr",
    "--warmup_epoch", "--warmup_lr_init",
)  # fmt: skip

# What the paper and the authors' scripts say; `--recipe paper` sets it, single flags still win.
PAPER = {
    "width": "released", "epochs": 150, "batch_size": 32, "optimizer": "adam", "lr": 1e-3,
    "weight_decay": 5e-4, "schedule": "plateau", "warmup_epochs": 0, "early_stop": 20, "ema": 0.0,
    "ranks": "sodeep", "pairs": "random", "rank_weight": 10.0, "pair_weight": 1.0, "flip": False,
    "shift": 0, "intensity_jitter": 0.0, "refresh_statistics": False, "stratify": False,
}  # fmt: skip
PAPER_SECOND_STAGE = PAPER | {
    "optimizer": "sgd", "lr": 1e-5, "warm_start": False, "rough_age_noise": 0.0,
}  # fmt: skip
# Where our second stage departs from the defaults of the first; docs/RESULTS.md has the figures.
# A width of None is that of the first stage.
OUR_SECOND_STAGE = {"lr": 1e-5, "warmup_lr": 1e-5, "epochs": 1, "width": None}


def parse_first_stage(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of train_first_stage.py."""
    parser = new_parser("Train the first stage of TSAN: a scan to a rough age.")
    add_training_flags(parser)
    parser.add_argument(
        "--resolution",
        type=int,
        choices=(2, 4),
        default=2,
        help="mm; 4 averages 2x2x2 voxels: eight times faster, less exact",
    )
    parser.add_argument(
        "--intensity",
        choices=("brain", "authors"),
        default="brain",
        help="background after z-scoring: 0, or the authors' -mean/SD, which their format means",
    )
    parser.add_argument(
        "--crop",
        action=Switch,
        default=False,
        help="show the network the box around the template's brain: 60 %% of the voxels",
    )
    parser.add_argument(
        "--any_grid",
        action=Switch,
        default=False,
        help="let grids other than MNI152 2 mm through (experiments)",
    )
    parser.add_argument(
        "--scaled_head",
        action=Switch,
        default=True,
        help="multiply the first weights of the output by the SD of the training ages; off, they "
        "take a dozen epochs to grow",
    )
    return parse(parser, argv, {"ours": {}, "paper": PAPER | {"scaled_head": False}})


def parse_second_stage(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of train_second_stage.py."""
    parser = new_parser(
        "Train the second stage of TSAN: a scan and its rounded rough age to the residual age. "
        "Scans are read as the first stage's checkpoint says."
    )
    add_training_flags(parser)
    group = parser.add_argument_group("cascade")
    group.add_argument(
        "--first_stage_net",
        required=True,
        metavar="FILE",
        help="first-stage checkpoint, ours or the authors'",
    )
    group.add_argument(
        "--age_step",
        "--dis_range",
        type=number(float, above=0),
        default=5.0,
        metavar="YEARS",
        help="step to whose multiples rough ages are rounded",
    )
    group.add_argument(
        "--warm_start",
        action=Switch,
        default=True,
        help="start at the age of a first stage instead of fresh weights",
    )
    group.add_argument(
        "--warm_start_net",
        metavar="FILE",
        help="first stage to start from, such as one of another seed; unset: --first_stage_net",
    )
    group.add_argument(
        "--rough_share",
        type=number(float, low=0, high=0.95),
        default=0.0,
        help="weight of the rounded age in the age at the warm start; 0.5 with another seed's "
        "--warm_start_net: the mean of both",
    )
    group.add_argument(
        "--out_of_fold_ages",
        metavar="CSV",
        help="rough ages of the training scans from networks that had not seen them, from "
        "analysis/brain_pad/out_of_fold.py; unset: the first stage's own",
    )
    group.add_argument(
        "--rough_age_noise",
        type=years_or_auto,
        default="auto",
        metavar="YEARS",
        help="SD of noise on the rough age in training; auto: what the first "
        "stage's validation error exceeds its training error by",
    )
    return parse(parser, argv, {"ours": OUR_SECOND_STAGE, "paper": PAPER_SECOND_STAGE})


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """What both training scripts take."""
    parser.add_argument(
        "--recipe",
        choices=("ours", "paper"),
        default="ours",
        help="defaults: measured here, or as published",
    )
    group = parser.add_argument_group("data")
    group.add_argument("--train_folder", required=True, metavar="DIR", help=".nii.gz or .nii scans")
    group.add_argument(
        "--val_folder",
        "--valid_folder",
        required=True,
        metavar="DIR",
        help="scans that choose the best epoch",
    )
    add_label_flags(group, required=True)
    group.add_argument(
        "--folds",
        metavar="CSV",
        help="columns scan and fold: the scans of both folders are pooled, those of --fold "
        "validate, all others train",
    )
    group.add_argument("--fold", type=number(int, low=0), help="the fold held out")
    group.add_argument(
        "--allow_shared_persons",
        action=Switch,
        default=False,
        help="train although a person, or an image, is in training and in validation",
    )
    add_subject_pattern(group)
    add_preprocessing_flags(group)
    add_cache_flags(group)
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, metavar="DIR", help="new or empty folder")
    group.add_argument(
        "--resume", action=Switch, default=False, help="continue the run in --output_dir"
    )
    group.add_argument(
        "--print_freq",
        type=number(int, low=0),
        default=0,
        help="batches between printed losses; 0: one line an epoch",
    )
    add_network_flags(parser)
    add_loss_flags(parser)
    add_optimisation_flags(parser)
    machine = add_machine_flags(parser)
    machine.add_argument(
        "--seed", type=number(int, low=0, high=2**31), default=0, help="of everything random"
    )
    machine.add_argument(
        "--recompute_activations",
        action=Switch,
        default=False,
        help="compute inner activations again in the backward pass: less memory, slower",
    )
    machine.add_argument(
        "--deterministic",
        action=Switch,
        default=False,
        help="on a GPU only kernels that give the same result each time, slower; on a CPU all do",
    )


def add_cache_flags(group: argparse._ArgumentGroup) -> None:
    """Where decoded scans are kept, see utils/scans/cache.py."""
    group.add_argument(
        "--cache",
        choices=("none", "disk", "device"),
        default="disk",
        help="keep decoded scans in files, or on the GPU (without one: in main memory), or decode "
        "them anew each epoch",
    )
    group.add_argument(
        "--cache_bits",
        type=int,
        choices=(8, 16, 32),
        default=16,
        help="a voxel, as it is kept and read with any --cache: 32 exact, 16 to 0.05 %%, 8 to "
        "about 0.02 SD",
    )
    group.add_argument(
        "--cache_dir",
        metavar="DIR",
        help="of --cache disk; unset: scan_cache beside --output_dir, shared by the runs there",
    )


def add_preprocessing_flags(group: argparse._ArgumentGroup) -> None:
    """How the scans were made, which the checkpoint says of them; see utils/scans/provenance.py."""
    group.add_argument(
        "--registration",
        choices=("deformable", "affine"),
        help="how the scans were registered, for the checkpoint; unset: what their sidecars say",
    )
    group.add_argument(
        "--mask",
        choices=("template", "subject"),
        help="whose brain was left of the head, for the checkpoint; unset: what their sidecars say",
    )


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """Which network."""
    group = parser.add_argument_group("network")
    group.add_argument("--model", choices=("ScaleDense",), default="ScaleDense", help="network")
    group.add_argument(
        "--init_from",
        metavar="FILE",
        help="checkpoint whose weights training starts from (fine-tuning)",
    )
    group.add_argument(
        "--width",
        choices=("halved", "compact", "released"),
        default="compact",
        help="halved: compact behind a stem that halves 2 mm scans; compact: the paper's figure, "
        "1.5 million parameters; released: the authors' code, 102 million",
    )
    group.add_argument(
        "--use_sex", "--use_gender", action=Switch, default=True, help="whether the sex is an input"
    )
    group.add_argument(
        "--dropout",
        type=number(float, low=0, high=0.95),
        default=0.0,
        help="share of the pooled image features dropped in training",
    )


def add_loss_flags(parser: argparse.ArgumentParser) -> None:
    """The objective, see model/losses.py."""
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", choices=("mse", "mae"), default="mse", help="error of the age")
    group.add_argument(
        "--aux_loss",
        choices=("ranking", "mse", "mae"),
        default="ranking",
        help="what --rank_weight weighs",
    )
    group.add_argument(
        "--rank_weight",
        "--lbd",
        type=number(float, low=0),
        default=10.0,
        help="lambda; 0 leaves the auxiliary loss out",
    )
    group.add_argument(
        "--pair_weight",
        "--beta",
        type=number(float, low=0),
        default=0.0,
        help="beta, of the age-difference loss; published: 1",
    )
    group.add_argument(
        "--pairs",
        choices=("all", "random"),
        default="all",
        help="pairs of the age-difference loss; random: as published",
    )
    group.add_argument(
        "--ranks",
        choices=("soft", "sodeep"),
        default="soft",
        help="soft: pairwise sigmoids, any batch; sodeep: the paper's trained "
        "sorter, of the batch's length",
    )
    group.add_argument(
        "--tau",
        type=number(float, above=0),
        default=2.0,
        metavar="YEARS",
        help="softness of --ranks soft",
    )
    group.add_argument(
        "--sorter",
        metavar="FILE",
        help="sorter for --ranks sodeep, and switches to it; unset: the shipped "
        "one of the batch's length",
    )


def add_optimisation_flags(parser: argparse.ArgumentParser) -> None:
    """Optimiser, schedule, augmentation, stopping."""
    group = parser.add_argument_group("optimisation")
    rate = number(float, above=0)
    group.add_argument("--epochs", type=number(int, low=1), default=32, help="at most")
    group.add_argument(
        "--batch_size",
        type=number(int, low=1),
        default=8,
        help="scans a step, of all processes and GPUs together",
    )
    group.add_argument(
        "--stratify",
        action=Switch,
        default=True,
        help="make batches alike in age: one scan of every stratum of like ages",
    )
    group.add_argument(
        "--optimizer",
        choices=("adamw", "adam", "sgd"),
        default="adamw",
        help="adam: with AMSGrad, as published for stage one; sgd: without "
        "momentum, as published for stage two",
    )
    group.add_argument("--lr", type=rate, default=2e-3, help="learning rate")
    group.add_argument("--weight_decay", type=number(float, low=0), default=0.01, help=" ")
    group.add_argument(
        "--schedule",
        "--schedular",
        choices=("cosine", "plateau", "constant"),
        default="cosine",
        help="of the learning rate",
    )
    group.add_argument("--min_lr", type=number(float, low=0), default=1e-6, help="of the schedule")
    group.add_argument(
        "--warmup_epochs",
        "--warmup_epoch",
        type=number(int, low=0),
        default=1,
        help="with cosine and constant",
    )
    group.add_argument(
        "--warmup_lr",
        "--warmup_lr_init",
        type=rate,
        default=5e-4,
        help="learning rate at the start of the warm-up",
    )
    group.add_argument(
        "--ema",
        type=number(float, low=0, high=0.9999),
        default=0.99,
        help="decay per step of the running average of the weights; 0: none",
    )
    group.add_argument(
        "--refresh_statistics",
        action=Switch,
        default=True,
        help="recompute batch statistics for the weights of an epoch before it is validated",
    )
    group.add_argument(
        "--early_stop",
        type=number(int, low=0),
        default=0,
        help="epochs without improvement before stopping; 0: never",
    )
    group.add_argument(
        "--validate_every", type=number(int, low=1), default=1, help="epochs between validations"
    )
    group.add_argument(
        "--keep",
        choices=("lowest", "last"),
        default="lowest",
        help="the epoch that becomes the result: of the lowest validation MAE, or the last",
    )
    group.add_argument("--flip", action=Switch, default=True, help="random left-right mirroring")
    group.add_argument(
        "--shift",
        type=number(float, low=0, high=40),
        default=8.0,
        help="largest random shift along each axis, mm; rounded to voxels",
    )
    group.add_argument(
        "--intensity_jitter",
        type=number(float, low=0, high=1),
        default=0.0,
        help="SD of a random factor on each scan's intensities",
    )
    for name, high, text in (
        ("--rotation", 45, "largest random turn about each axis, degrees"),
        ("--scale", 0.5, "largest random change of size along each axis, as a share"),
        ("--noise", 5, "SD of noise on each voxel, in SD of the brain's intensities"),
        ("--cutout", 0.9, "largest side of a blanked box, as a share of each axis"),
        ("--mixup", 10, "alpha of mixing each scan and age with another's"),
    ):
        group.add_argument(name, type=number(float, low=0, high=high), default=0.0, help=text)


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, recipes: dict[str, dict]
) -> argparse.Namespace:
    """Parses with the defaults of `--recipe`; published flags without a use here are listed.

    Returns:
        The flags; `unused` holds the published ones that were given and change nothing.
    """
    if recipes:
        chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        chooser.add_argument("--recipe", default="ours")
        recipe = chooser.parse_known_args(argv)[0].recipe
        parser.set_defaults(**recipes.get(recipe, {}))
    known = parser._option_string_actions
    unused = [flag for flag in PUBLISHED_FLAGS if flag not in known]
    for flag in unused:
        parser.add_argument(flag, nargs="?", const="", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    given = [flag for flag in unused if getattr(args, flag[2:]) is not None]
    for flag in unused:
        delattr(args, flag[2:])
    args.unused = given
    return args


def years_or_auto(text: str) -> float | str:
    """A number of years, or the word auto."""
    return text if text == "auto" else number(float, low=0)(text)
