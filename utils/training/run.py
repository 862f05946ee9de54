"""One training from its flags to its best checkpoint; `args` goes no further than this file."""

import argparse
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from model.layers import recompute_activations
from model.losses import AgeLoss
from model.scaledense import WIDTHS, ScaleDense
from model.sorter import load_sorter
from model.tsan import TSAN, SecondStage
from utils.cli import Terminated
from utils.distributed import World, joined
from utils.files import require_fetched
from utils.machine import be_deterministic, use_machine_well
from utils.networks.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_first_stage,
    require_alike,
    start_from_checkpoint,
)
from utils.networks.execution import Execution, choose_execution, compile_network
from utils.people.codebook import parse_sex_codes
from utils.people.labels import read_labels
from utils.scans.cache import Cache
from utils.scans.cohort import (
    Scan,
    describe,
    note_weak_cohorts,
    open_cohort,
    require_teachable,
)
from utils.scans.dataset import ScanDataset, require_shareable
from utils.scans.folds import hold_out, read_folds
from utils.scans.leakage import (
    find_people,
    require_separate_images,
    require_separate_persons,
    require_unseen,
)
from utils.scans.provenance import UNKNOWN, Provenance, common_provenance
from utils.scans.volumes import InputRule, find_scans
from utils.training.augment import AUGMENTATIONS
from utils.training.engine import unseen_error_spread
from utils.training.optimisation import Optimisation
from utils.training.resume import can_resume, require_fresh_folder
from utils.training.sorter import load_shipped_sorter
from utils.training.trainer import RunInfo, Trainer, Training

# A network, and the networks that it starts from or holds: from the flags, the training scans, how
# these are read, and the first stage below (None for a first stage itself).
BuildModel = Callable[
    [argparse.Namespace, list[Scan], InputRule, Checkpoint | None],
    tuple[ScaleDense | TSAN, list[Checkpoint]],
]


def run(args: argparse.Namespace, build_model: BuildModel) -> Path:
    """Trains either stage, or continues its training, and returns the best checkpoint's path.

    Args:
        args: of `parse_first_stage` or `parse_second_stage`.
        build_model: `build_first_stage` or `build_second_stage`.
    """
    with joined(args.device) as world, terminable():
        # In a function of its own: all that it holds is gone when the processes part.
        return train(args, build_model, world)


def train(args: argparse.Namespace, build_model: BuildModel, world: World) -> Path:
    """Trains as one of the processes of `world`; see `run`."""
    # Runs beside each other share decoded scans.
    cache_dir = Path(args.cache_dir or Path(args.output_dir).resolve().parent / "scan_cache")
    check_start(args, cache_dir, world)
    loss = build_loss(args)
    use_machine_well(args.threads)
    if args.deterministic:
        be_deterministic()
    execution = choose_execution(args.device, args.precision, world)
    torch.manual_seed(args.seed)  # of the first weights
    if args.first_stage_net:
        first_stage = load_first_stage(args.first_stage_net, use_sex=args.use_sex)
        input_rule = first_stage.input_rule
    else:
        first_stage = None
        input_rule = InputRule(args.resolution, args.intensity, args.any_grid, args.crop)
    cohorts, provenance = world.run_in_all(lambda: open_cohorts(args, input_rule, first_stage))
    model, origins = build_model(args, cohorts[0], input_rule, first_stage)
    cache = Cache(args.cache, cache_dir, execution.device)
    datasets = world.run_in_all(lambda: open_datasets(args, cohorts, input_rule, cache))
    require_new_to(args, datasets[1], origins)
    if first_stage is not None:
        model.rough_age_noise = choose_noise(args, first_stage, datasets, execution)
    if args.recompute_activations:
        recompute_activations(model)
    if args.compile:
        compile_network(model, execution)
    # As plain values, which checkpoints are made of: of --subject_pattern its text.
    flags = {name: getattr(value, "pattern", value) for name, value in vars(args).items()}
    trainer = Trainer(
        model,
        loss,
        datasets=datasets,
        training=build_training(args, input_rule.resolution),
        execution=execution,
        info=RunInfo(Path(args.output_dir), flags, provenance, origins),
    )
    if world.run_in_first(lambda: args.resume and can_resume(trainer.output_dir)):
        # The scans may have changed meanwhile, or the table of --folds.
        require_new_to(args, datasets[1], [world.run_in_all(trainer.resume)])
        print(f"resuming after epoch {trainer.epoch}")
    with stoppable(trainer):
        best = trainer.run()
    mae, epoch = trainer.best_mae, trainer.best_epoch
    print(f"lowest validation MAE {mae:.2f} years at epoch {epoch}: {best}")
    return best


def check_start(args: argparse.Namespace, cache_dir: Path, world: World) -> None:
    """Refuses now what the run could not write into, share among its processes, or do later."""
    if args.unused:
        print(f"note: {', '.join(args.unused)} accepted and unused in training, see --help")
    if args.compile and args.recompute_activations:
        raise ValueError(
            "--compile and --recompute_activations: give one of them, torch does not compile what "
            "is to be recomputed"
        )
    if (args.folds is None) != (args.fold is None):
        raise ValueError("--folds and --fold: give both, or neither")
    if cache_dir.resolve() == Path(args.output_dir).resolve():
        raise ValueError(f"{args.output_dir}: decoded scans are kept there: give another folder")
    require_shareable(args.batch_size, world)
    world.run_in_first(lambda: require_fresh_folder(Path(args.output_dir), resume=args.resume))


def build_loss(args: argparse.Namespace) -> AgeLoss:
    """The objective; a missing or unfit sorter is an error before any work."""
    sorter = None
    if args.sorter != "none" and args.rank_weight and args.aux_loss == "ranking":
        shipped = args.sorter == "shipped"
        if not shipped:
            require_fetched(args.sorter)
        sorter = load_shipped_sorter(args.batch_size) if shipped else load_sorter(args.sorter)
        if sorter.length != args.batch_size:
            raise ValueError(
                f"{args.sorter}: sorts sequences of {sorter.length}, but --batch_size is "
                f"{args.batch_size}: make them equal, or train one: "
                f"bash script/train_sorter.sh --kind {sorter.kind} --length {args.batch_size}"
            )
    names = ("loss", "aux_loss", "rank_weight", "pair_weight", "pairs", "tau")
    return AgeLoss(sorter=sorter, **{name: getattr(args, name) for name in names})


def open_cohorts(
    args: argparse.Namespace, input_rule: InputRule, first_stage: Checkpoint | None
) -> tuple[tuple[list[Scan], list[Scan]], Provenance]:
    """Training and validation scans, checked by sheets and headers, and how they were made."""
    smallest_side = WIDTHS[args.width].smallest_side if args.width else 0
    if first_stage is not None:
        smallest_side = max(smallest_side, first_stage.smallest_side)
    found = find_scans(*args.train_folder, *args.val_folder)
    codes = parse_sex_codes(args.sex_codes)
    labels = read_labels(args.labels, found, sex_codes=codes, site=args.site)
    needs = {"need_age": True, "need_sex": args.use_sex, "smallest_side": smallest_side}
    train, validation = (
        open_cohort(folders, labels, input_rule, **needs)
        for folders in (args.train_folder, args.val_folder)
    )
    if args.folds:
        train, validation = hold_out(train + validation, read_folds(args.folds), args.fold)
    check_cohorts(args, train, validation)
    paths = [scan.path for scan in train + validation]
    return (train, validation), decide_provenance(args, paths, first_stage)


def check_cohorts(args: argparse.Namespace, train: list[Scan], validation: list[Scan]) -> None:
    """Describes both cohorts; ValueError where one person is in both or nothing can be learnt."""
    pattern, allowed = args.subject_pattern, args.allow_shared_persons
    people = find_people([scan.subject_id for scan in train], pattern=pattern)
    require_teachable([scan.age for scan in train], people.values(), what="training")
    require_separate_persons(train, validation, pattern=pattern, allowed=allowed)
    print(f"training: {describe(train)}\nvalidation: {describe(validation)}")
    note_weak_cohorts(train, validation)


def decide_provenance(
    args: argparse.Namespace, scans: list[Path], first_stage: Checkpoint | None
) -> Provenance:
    """How all scans of the run were made, as sidecars, flags and first stage say; prints it.

    Raises:
        ValueError: they contradict each other.
    """
    provenance = common_provenance(scans, Provenance(args.registration, args.mask))
    if first_stage is not None:
        folders = ", ".join(args.train_folder)
        require_alike(f"scans of {folders}", provenance, first_stage)
        provenance = provenance.filled_from(first_stage.provenance)
    if provenance == UNKNOWN:
        print(
            "note: the checkpoint will not say how its scans were preprocessed: they have no "
            "sidecars, and --registration and --mask are not given"
        )
    else:
        print(f"preprocessing: {provenance}")
    return provenance


def open_datasets(
    args: argparse.Namespace,
    cohorts: tuple[list[Scan], list[Scan]],
    input_rule: InputRule,
    cache: Cache,
) -> tuple[ScanDataset, ScanDataset]:
    """The scans of both cohorts, all of them read once; ValueError for an image in both."""
    train_set, val_set = (ScanDataset(scans, input_rule, cache) for scans in cohorts)
    hashes = (train_set.content_hashes, val_set.content_hashes)
    require_separate_images(*cohorts, hashes, allowed=args.allow_shared_persons)
    return train_set, val_set


def require_new_to(
    args: argparse.Namespace, val_set: ScanDataset, origins: Iterable[Checkpoint]
) -> None:
    """Raises ValueError where a network that training starts from has learnt from `val_set`."""
    for origin in origins:
        require_unseen(
            val_set.scans,
            val_set.content_hashes,
            origin.trained_on or (),
            source=origin.source,
            allowed=args.allow_shared_persons,
        )


def build_first_stage(
    args: argparse.Namespace, train: list[Scan], input_rule: InputRule, first_stage: None
) -> tuple[ScaleDense, list[Checkpoint]]:
    """A first stage that starts at the mean training age, or from the checkpoint `--init_from`."""
    ages = np.array([scan.age for scan in train])
    origins = [load_checkpoint(args.init_from)] if args.init_from else []
    model = ScaleDense(
        args.width,
        use_sex=args.use_sex,
        mean_age=float(ages.mean()),
        age_spread=float(ages.std()) if args.scaled_head else 1.0,
    )
    for origin in origins:
        start_from_checkpoint(model, origin, input_rule)
    return model, origins


def build_second_stage(
    args: argparse.Namespace, train: list[Scan], input_rule: InputRule, first_stage: Checkpoint
) -> tuple[TSAN, list[Checkpoint]]:
    """A fresh second stage on top of `first_stage`, or one from the checkpoint `--init_from`.

    A fresh one starts at the mean, weighted by `--rough_share`, of the rounded age and of a fresh
    first stage; with a share of 0 at random, as published.
    """
    width = args.width or first_stage.model.encoder.width
    second_stage = SecondStage(width, use_sex=args.use_sex)
    origins = [first_stage]
    if args.init_from:
        origins.append(load_checkpoint(args.init_from))
        start_from_checkpoint(second_stage, origins[-1], input_rule)
    elif args.rough_share:
        ages = np.array([scan.age for scan in train])
        at_mean = {"mean_age": float(ages.mean()), "age_spread": float(ages.std())}
        fresh = ScaleDense(width, use_sex=args.use_sex, **at_mean)
        second_stage.start_from(fresh, rough_share=args.rough_share)
    return TSAN(first_stage.model, second_stage, age_step=args.age_step), origins


def choose_noise(
    args: argparse.Namespace,
    first_stage: Checkpoint,
    datasets: tuple[ScanDataset, ScanDataset],
    execution: Execution,
) -> float:
    """The SD, in years, of the noise on rough ages in training that `--rough_age_noise` means."""
    if args.rough_age_noise != "auto":
        return args.rough_age_noise
    noise = unseen_error_spread(first_stage.model, *datasets, execution)
    print(f"noise on the rough age in training: SD {noise:.2f} years")
    return noise


def build_training(args: argparse.Namespace, resolution: int) -> Training:
    """What the run does; its fields have the names of flags. `resolution` is in mm per voxel."""
    training, optimisation = (
        {field.name: getattr(args, field.name) for field in fields(kind) if field.name in args}
        for kind in (Training, Optimisation)
    )
    augmentation = AUGMENTATIONS[args.augment]
    return Training(
        **training,
        optimisation=Optimisation(**optimisation),
        augmentation=replace(augmentation, shift=round(augmentation.shift / resolution)),
    )


@contextmanager
def terminable() -> Iterator[None]:
    """Raises Terminated upon SIGTERM, as schedulers send it before they kill; reading scans too."""

    def terminate(*_) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stoppable(trainer: Trainer) -> Iterator[None]:
    """Says how to go on where training is interrupted, by the keyboard or SIGTERM.

    Nothing is saved here: the last checkpoint is whole at any moment, and a run resumed from it
    ends as if it had never stopped.
    """
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise type(interruption)(
            f"interrupted in epoch {trainer.epoch} of {trainer.training.epochs}: the same command "
            f"with --resume goes on after the last whole epoch in {trainer.output_dir}"
        ) from None
