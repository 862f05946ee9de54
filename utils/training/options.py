"""The flags of training; readable names beside the authors' published ones.

Each group is a function that adds to a parser, so that no parser is shared and none leaks its
defaults into another. Defaults come from the recipes. Nothing heavy is imported: `--help` answers
at once.
"""

import argparse
from collections.abc import Sequence

from utils.cli import (
    Switch,
    add_intensity_flag,
    add_label_flags,
    add_machine_flags,
    add_subject_pattern,
    new_parser,
    number,
)
from utils.training.recipes import ANY_GRID, FIRST_STAGE, SECOND_STAGE

# The published flags. A program accepts those it has no use for and says so: --model has one value,
# --min_lr and --warmup_lr_init belong to the recipes, and one line is printed per epoch.
PUBLISHED_FLAGS = (
    "--model", "--batch_size", "--epochs", "--lr", "--weight_decay", "--loss", "--aux_loss",
    "--lbd", "--beta", "--first_stage_net", "--train_folder", "--valid_folder", "--test_folder",
    "--excel_path", "--output_dir", "--model_name", "--npz_name", "--plot_name", "--dis_range",
    "--sorter", "--num_workers", "--print_freq", "--use_gender", "--schedular", "--min_lr",
    "--warmup_epoch", "--warmup_lr_init",
)  # fmt: skip
SHARE = number(float, low=0, high=0.95)


def parse_first_stage(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of train_first_stage.py."""
    parser = new_parser("Train the first stage of TSAN: a scan to a rough age.")
    add_data_flags(parser)
    add_network_flags(parser)
    scans = parser.add_argument_group("scans as the network reads them")
    add = scans.add_argument
    add(
        "--resolution", type=int, choices=(2, 4),
        help="mm; 4 averages 2x2x2 voxels: eight times faster, less exact",
    )  # fmt: skip
    add("--crop", action=Switch, help="to the box around the template's brain: 60 %% of the voxels")
    add_intensity_flag(scans)
    add(
        "--any_grid", action=Switch, default=False,
        help="let grids other than MNI152 2 mm through (experiments); implies --resolution 2 and "
        "--no-crop",
    )  # fmt: skip
    add_loss_flags(parser)
    add_optimisation_flags(parser)
    parser.set_defaults(first_stage_net=None)
    return parse(parser, argv, FIRST_STAGE)


def parse_second_stage(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of train_second_stage.py."""
    parser = new_parser(
        "Train the second stage of TSAN: a scan and its rounded rough age to the residual age. "
        "Scans are read as the first stage's checkpoint says."
    )
    add_data_flags(parser)
    add_network_flags(parser)
    add = parser.add_argument_group("cascade").add_argument
    add(
        "--first_stage_net", required=True, metavar="FILE",
        help="first-stage checkpoint, ours or the authors'",
    )  # fmt: skip
    add(
        "--age_step", "--dis_range", type=number(float, above=0), metavar="YEARS",
        help="step to whose multiples rough ages are rounded",
    )  # fmt: skip
    add(
        "--rough_share", type=SHARE,
        help="weight of the rounded age at the start; the rest is of a network that begins at the "
        "mean training age. 0: fresh weights without an order, as published",
    )  # fmt: skip
    add(
        "--rough_age_noise", type=years_or_auto, metavar="YEARS",
        help="SD of noise on the rough age in training; auto: as much as makes the first stage err "
        "on its training scans as on the validation scans",
    )  # fmt: skip
    add_loss_flags(parser)
    add_optimisation_flags(parser)
    return parse(parser, argv, SECOND_STAGE)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The recipe, the scans, and the folder that the run writes into."""
    parser.add_argument(
        "--recipe", choices=tuple(FIRST_STAGE), default="ours",
        help="where the defaults come from: what was measured here, the paper, or the quick start; "
        "see utils/training/recipes.py",
    )  # fmt: skip
    group = parser.add_argument_group("data")
    add = group.add_argument
    folders = {"nargs": "+", "required": True, "metavar": "DIR"}
    add("--train_folder", **folders, help=".nii.gz or .nii scans, in one folder or several")
    add("--val_folder", "--valid_folder", **folders, help="choose the best epoch")
    add_label_flags(group, required=True)
    add(
        "--folds", metavar="CSV",
        help="columns scan and fold: the scans of all folders are pooled, those of --fold "
        "validate, all others train",
    )  # fmt: skip
    add("--fold", type=number(int, low=0), help="the fold held out")
    add(
        "--allow_shared_persons", action=Switch, default=False,
        help="train although a person, or an image, is in training and in validation",
    )  # fmt: skip
    add_subject_pattern(group)
    made = "for the checkpoint; unset: what their sidecars say"
    add("--registration", choices=("deformable", "affine"), help=f"of the scans, {made}")
    add("--mask", choices=("template", "subject"), help=f"whose brain is left of the head, {made}")
    add(
        "--cache", choices=("none", "disk", "device"), default="disk",
        help="keep decoded scans in files, or on the GPU (without one: in main memory), or decode "
        "them anew each epoch",
    )  # fmt: skip
    add(
        "--cache_dir", metavar="DIR",
        help="of --cache disk; unset: scan_cache beside --output_dir, shared by the runs there",
    )  # fmt: skip
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", required=True, metavar="DIR", help="new or empty folder")
    add("--resume", action=Switch, default=False, help="continue the run in --output_dir")


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """Which network, and how it runs on this machine."""
    add = parser.add_argument_group("network").add_argument
    add("--init_from", metavar="FILE", help="checkpoint to start from (fine-tuning)")
    add(
        "--width", choices=("compact", "released"),
        help="compact: the paper's figure, 1.5 million parameters; released: the authors' code, "
        "102 million; of a second stage without it: as the first",
    )  # fmt: skip
    add("--use_sex", "--use_gender", action=Switch, default=True, help="is the sex an input?")
    add = add_machine_flags(parser).add_argument
    add(
        "--seed", type=number(int, low=0, high=2**31), default=0, help="of everything random"
    )  # fmt: skip
    add(
        "--recompute_activations", action=Switch, default=False,
        help="compute inner activations again in the backward pass: less memory, slower",
    )  # fmt: skip
    add(
        "--deterministic", action=Switch, default=False,
        help="on a GPU only kernels that give the same result each time, slower; on a CPU all do",
    )  # fmt: skip


def add_loss_flags(parser: argparse.ArgumentParser) -> None:
    """The objective, see model/losses.py."""
    add = parser.add_argument_group("loss").add_argument
    add("--loss", choices=("mse", "mae"), help="error of the age")
    add("--aux_loss", choices=("ranking", "mse", "mae"), help="what --rank_weight weighs")
    add(
        "--rank_weight", "--lbd", type=number(float, low=0),
        help="lambda; 0 leaves the auxiliary loss out",
    )  # fmt: skip
    add(
        "--pair_weight", "--beta", type=number(float, low=0),
        help="beta, of the age-difference loss; published: 1",
    )  # fmt: skip
    add(
        "--sorter", metavar="FILE",
        help="what ranks predicted ages. none: pairwise sigmoids, for any batch; shipped: the "
        "paper's trained sorter of the batch's length, from pretrained/; or a file of "
        "train_sorter.py or of the authors",
    )  # fmt: skip


def add_optimisation_flags(parser: argparse.ArgumentParser) -> None:
    """Optimiser, schedule, random changes of scans, stopping."""
    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=number(int, low=1), help="at most")
    add(
        "--batch_size", type=number(int, low=1),
        help="scans per step, of all processes and GPUs together",
    )  # fmt: skip
    add(
        "--augment", choices=("none", "light", "strong"),
        help="random changes of training scans, see utils/training/augment.py",
    )  # fmt: skip
    add(
        "--optimizer", choices=("adamw", "adam", "sgd"),
        help="adam: with AMSGrad, as published for stage one; sgd: without momentum, as published "
        "for stage two",
    )  # fmt: skip
    add("--lr", type=number(float, above=0), help="learning rate after the warm-up")
    add("--weight_decay", type=number(float, low=0), help="as the optimiser defines it")
    add(
        "--schedule", "--schedular", choices=("cosine", "plateau", "constant"),
        help="of the learning rate",
    )  # fmt: skip
    add("--warmup_epochs", "--warmup_epoch", type=number(int, low=0), help="not with plateau")
    add(
        "--early_stop", type=number(int, low=0),
        help="epochs without improvement before stopping; 0: never",
    )  # fmt: skip
    add(
        "--keep", choices=("lowest", "last"),
        help="the epoch that becomes the result: of the lowest validation MAE, or the last",
    )  # fmt: skip


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, recipes: dict[str, dict]
) -> argparse.Namespace:
    """Parses with the values of `--recipe`; published flags without a use here are listed.

    Args:
        parser: gets what is missing: the recipe's values and the published flags.
        argv: the command line.
        recipes: the values of each recipe; of settings that have no flag too. Empty for a program
            that has no recipe.

    Returns:
        The settings; `unused` holds the published flags that were given and change nothing.
    """
    if recipes:
        chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        chooser.add_argument("--recipe", default="ours")
        chooser.add_argument("--any_grid", action=Switch, default=False)
        chosen = chooser.parse_known_args(argv)[0]
        recipe = recipes.get(chosen.recipe, {})  # the parser refuses another word
        parser.set_defaults(**recipe | (ANY_GRID if chosen.any_grid else {}))
    known = parser._option_string_actions
    unused = {flag: f"unused {flag}" for flag in PUBLISHED_FLAGS if flag not in known}
    for flag, name in unused.items():
        parser.add_argument(flag, dest=name, nargs="?", const="", help=argparse.SUPPRESS)
    values = vars(parser.parse_args(argv))
    given = [flag for flag, name in unused.items() if values.pop(name) is not None]
    return argparse.Namespace(**values, unused=given)


def years_or_auto(text: str) -> float | str:
    """A number of years, or the word auto."""
    return text if text == "auto" else number(float, low=0)(text)
