"""From parsed flags to the objects of a training run; `args` goes no further than this file."""

import argparse
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.layers import recompute_activations
from model.losses import AgeLoss
from model.scaledense import WIDTHS
from model.sorter import load_sorter
from utils.cli import Terminated
from utils.distributed import World
from utils.machine import be_deterministic, use_machine_well
from utils.networks.checkpoint import Checkpoint, require_alike, union_of_hashes
from utils.networks.execution import Execution, choose_execution, compile_network, predict
from utils.results.tables import read_predicted_ages
from utils.scans.cache import Cache
from utils.scans.cohort import describe, open_cohort
from utils.scans.dataset import ScanDataset, evaluation_loader, require_shareable
from utils.scans.folds import hold_out, read_folds
from utils.scans.labels import parse_sex_codes, read_labels
from utils.scans.leakage import require_separate_images, require_separate_persons, require_unseen
from utils.scans.provenance import UNKNOWN, Provenance, common_provenance
from utils.scans.volumes import InputRule
from utils.training.augment import Augmentation
from utils.training.optimisation import Optimisation
from utils.training.sorter import load_shipped_sorter
from utils.training.trainer import Trainer, Training, can_resume, require_fresh_folder


def check_start(args: argparse.Namespace, world: World) -> None:
    """Refuses now what the run could not write into, share among its processes, or do later."""
    if args.compile and args.recompute_activations:
        raise ValueError(
            "--compile and --recompute_activations: give one of them, torch does not compile what "
            "is to be recomputed"
        )
    if args.validate_every > 1 and (args.schedule == "plateau" or args.early_stop):
        raise ValueError(
            f"--validate_every {args.validate_every}: --schedule plateau and --early_stop look at "
            "every epoch, 1 expected"
        )
    if (args.folds is None) != (args.fold is None):
        raise ValueError("--folds and --fold: give both, or neither")
    if scan_cache(args) == Path(args.output_dir).resolve():
        raise ValueError(f"{args.output_dir}: decoded scans are kept there: give another folder")
    require_shareable(args.batch_size, world)
    world.first(lambda: require_fresh_folder(Path(args.output_dir), resume=args.resume))


def scan_cache(args: argparse.Namespace) -> Path:
    """Where `--cache disk` keeps decoded scans: runs beside each other share them."""
    return Path(args.cache_dir or Path(args.output_dir).resolve().parent / "scan_cache").resolve()


def say_unused(args: argparse.Namespace, reason: str) -> None:
    """Prints which published flags were given without an effect here."""
    if args.unused:
        print(f"note: {', '.join(args.unused)} accepted and unused: {reason}")


def datasets(
    args: argparse.Namespace,
    input_rule: InputRule,
    execution: Execution,
    width: str,
    first_stage: Checkpoint | None = None,
) -> tuple[tuple[ScanDataset, ScanDataset], Provenance]:
    """Training and validation scans, checked before the first is read, and how they were made."""
    labels = read_labels(args.labels, sex_codes=parse_sex_codes(args.sex_codes))
    needs = {
        "need_age": True,
        "need_sex": args.use_sex,
        "smallest_side": max(
            WIDTHS[width].smallest_side, first_stage.smallest_side if first_stage else 0
        ),
    }
    cohorts = [
        open_cohort(folder, labels, input_rule, **needs)
        for folder in (args.train_folder, args.val_folder)
    ]
    require_disjoint(*cohorts)
    if args.folds:
        cohorts = hold_out(cohorts[0] + cohorts[1], read_folds(args.folds), args.fold)
    require_separate_persons(
        *cohorts, pattern=args.subject_pattern, allowed=args.allow_shared_persons
    )
    for name, scans in zip(("training", "validation"), cohorts, strict=True):
        print(f"{name}: {describe(scans)}")
    paths = [scan.path for scans in cohorts for scan in scans]
    made = decide_provenance(args, paths, first_stage)
    cache = Cache(args.cache, scan_cache(args), execution.device)
    train_set, val_set = (ScanDataset(scans, input_rule, cache) for scans in cohorts)
    require_separate_images(
        *cohorts,
        (train_set.content_hashes, val_set.content_hashes),
        allowed=args.allow_shared_persons,
    )
    return (train_set, val_set), made


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


def decide_provenance(
    args: argparse.Namespace, scans: list[Path], first_stage: Checkpoint | None
) -> Provenance:
    """How all scans of the run were made, as sidecars, flags and first stage say; prints it.

    Raises:
        ValueError: they contradict each other.
    """
    made = common_provenance(scans, Provenance(args.registration, args.mask))
    if first_stage is not None:
        require_alike(f"scans of {args.train_folder}", made, first_stage)
        made = made.filled_from(first_stage.provenance)
    if made == UNKNOWN:
        print(
            "note: the checkpoint will not say how its scans were preprocessed: they have no "
            "sidecars, and --registration and --mask are not given"
        )
    else:
        print(f"preprocessing: {made}")
    return made


def use_out_of_fold_ages(args: argparse.Namespace, train_set: ScanDataset) -> None:
    """Gives the training scans the rough ages of `--out_of_fold_ages`, where there are some.

    Raises:
        ValueError: scans without one, or noise or mixing on top of them.
    """
    if not args.out_of_fold_ages:
        return
    if args.mixup:
        raise ValueError("--mixup and --out_of_fold_ages: mixed scans have no out-of-fold age")
    ages = read_predicted_ages(args.out_of_fold_ages, train_set.scans)
    train_set.rough_age = torch.from_numpy(ages).float()[:, None]
    error = train_set.rough_age - train_set.age
    print(
        f"rough ages of training scans: {args.out_of_fold_ages}, MAE {error.abs().mean():.2f} years"
    )


def require_disjoint(train: list, validation: list) -> None:
    """Raises ValueError when a scan's name stands in both folders: it would choose itself."""
    both = {scan.subject_id for scan in train} & {scan.subject_id for scan in validation}
    if both:
        raise ValueError(
            f"{len(both)} scans are in the training and the validation folder: "
            f"{', '.join(sorted(both)[:5])}: remove them from one"
        )


def age_loss(args: argparse.Namespace) -> AgeLoss:
    """The objective; a missing or unfit sorter is an error before any work."""
    sorter = None
    if (args.ranks == "sodeep" or args.sorter) and args.rank_weight and args.aux_loss == "ranking":
        sorter = load_sorter(args.sorter) if args.sorter else load_shipped_sorter(args.batch_size)
        if sorter.length != args.batch_size:
            raise ValueError(
                f"{args.sorter}: sorts sequences of {sorter.length}, but --batch_size is "
                f"{args.batch_size}: make them equal, or train one: "
                f"bash script/train_sorter.sh --kind {sorter.kind} --length {args.batch_size}"
            )
    return AgeLoss(
        loss=args.loss,
        aux_loss=args.aux_loss,
        rank_weight=args.rank_weight,
        pair_weight=args.pair_weight,
        pairs=args.pairs,
        sorter=sorter,
        tau=args.tau,
    )


def training(args: argparse.Namespace, resolution: int) -> Training:
    """What the run does; `resolution` is that of the network's input, mm a voxel."""
    return Training(
        epochs=args.epochs,
        batch_size=args.batch_size,
        optimisation=Optimisation(
            optimizer=args.optimizer,
            lr=args.lr,
            weight_decay=args.weight_decay,
            schedule=args.schedule,
            min_lr=args.min_lr,
            warmup_epochs=args.warmup_epochs,
            warmup_lr=args.warmup_lr,
            ema=args.ema,
        ),
        augmentation=Augmentation(
            flip=args.flip,
            shift=round(args.shift / resolution),
            intensity=args.intensity_jitter,
            rotation=args.rotation,
            scale=args.scale,
            noise=args.noise,
            cutout=args.cutout,
            mixup=args.mixup,
        ),
        stratify=args.stratify,
        refresh_statistics=args.refresh_statistics,
        early_stop=args.early_stop,
        seed=args.seed,
        num_workers=args.num_workers,
        print_freq=args.print_freq,
        validate_every=args.validate_every,
        keep=args.keep,
    )


def start(
    args: argparse.Namespace,
    model,
    loss: AgeLoss,
    sets: tuple,
    execution,
    provenance: Provenance,
    *,
    origins: Sequence[Checkpoint] = (),
) -> Path:
    """Trains, or continues training, and returns the best checkpoint's path.

    `origins` are the networks that training starts from or that stay in its network.
    """
    if args.recompute_activations:
        recompute_activations(model)
    if args.compile:
        compile_network(model, execution)
    trainer = Trainer(
        model,
        loss,
        datasets=sets,
        training=training(args, sets[0].input_rule.resolution),
        execution=execution,
        output_dir=Path(args.output_dir),
    )
    contents = union_of_hashes(origins, sets[0].content_hashes)
    trainer.describe(provenance, flags=plain_flags(args), training_hashes=contents)
    world = execution.world
    if world.first(lambda: args.resume and can_resume(trainer.output_dir)):
        resumed = world.everyone(trainer.resume)
        # The scans may have changed meanwhile, or the table of --folds.
        require_new_to(args, sets[1], [resumed])
        contents = union_of_hashes([*origins, resumed], sets[0].content_hashes)
        trainer.describe(provenance, training_hashes=contents)
        print(f"resuming after epoch {trainer.epoch}")
    with stoppable(trainer):
        best = trainer.run()
    print(
        f"lowest validation MAE {trainer.best_mae:.2f} years at epoch {trainer.best_epoch}: {best}"
    )
    return best


def plain_flags(args: argparse.Namespace) -> dict:
    """The flags as plain values, which checkpoints are made of."""
    return {
        name: value.pattern if isinstance(value, re.Pattern) else value
        for name, value in vars(args).items()
        if name != "unused"
    }


@contextmanager
def stoppable(trainer: Trainer) -> Iterator[None]:
    """Ends training upon SIGTERM, as schedulers send it before they kill, and says how to go on.

    Nothing is saved here: the last checkpoint is whole at any moment, and a run resumed from it
    ends as if it had never stopped.
    """

    def terminate(*_) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise type(interruption)(
            f"interrupted in epoch {trainer.epoch} of {trainer.training.epochs}: the same command "
            f"with --resume goes on after the last whole epoch in {trainer.output_dir}"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def seeded_execution(args: argparse.Namespace, world: World) -> Execution:
    """Device and precision, with torch's generators seeded for the network's first weights."""
    use_machine_well(args.threads)
    if args.deterministic:
        be_deterministic()
    execution = choose_execution(args.device, args.precision, world)
    torch.manual_seed(args.seed)
    return execution


def unseen_error_spread(
    first_stage: nn.Module, train_set: ScanDataset, val_set: ScanDataset, execution: Execution
) -> float:
    """How much the first stage's error on new scans exceeds that on its training scans.

    Returns:
        Years: the SD of independent noise that would make its mean squared error on the training
        scans that on the validation scans; 0 where it is no better on the former.
    """
    model = execution.place(first_stage)
    errors = []
    for dataset in (train_set, val_set):
        loader = evaluation_loader(dataset, batch_size=16, world=execution.world)
        ages = predict(model, loader, execution, title="first stage")["predicted_age"]
        errors.append(np.mean((ages - np.array([scan.age for scan in dataset.scans])) ** 2))
    return float(np.sqrt(max(0.0, errors[1] - errors[0])))
