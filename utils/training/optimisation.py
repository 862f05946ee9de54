"""Optimisers and learning-rate schedules."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau


@dataclass(frozen=True)
class Optimisation:
    """How the weights are changed.

    Attributes:
        optimizer: `adamw`; `adam`, with AMSGrad and L2 weight decay (published, stage one); `sgd`,
            without momentum (published, stage two).
        lr: learning rate after the warm-up.
        weight_decay: as the optimiser defines it.
        schedule: `cosine` from `lr` to `min_lr` over all epochs; `plateau` halves after 5 epochs
            without a lower validation MAE (published); `constant`.
        min_lr: where schedules end.
        warmup_epochs: epochs in which the rate grows linearly; with `cosine` and `constant`.
        warmup_share: of `lr`, the rate of the first epoch of the warm-up.
    """

    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    min_lr: float = 0.0
    warmup_epochs: int = 0
    warmup_share: float = 0.25


def build_optimizer(model: nn.Module, options: Optimisation) -> torch.optim.Optimizer:
    """The optimiser over the parameters of `model` that are not frozen."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    # Fused: one pass over the weights instead of one for each term of the formula.
    common = {"lr": options.lr, "weight_decay": options.weight_decay, "fused": True}
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, amsgrad=True, **common)
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[options.optimizer](parameters, **common)


def build_schedule(
    optimizer: torch.optim.Optimizer, options: Optimisation, epochs: int
) -> LRScheduler | ReduceLROnPlateau:
    """A schedule that `advance` moves on once per epoch."""
    if options.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.5, patience=5, min_lr=options.min_lr)
    return LambdaLR(optimizer, lambda epoch: learning_rate(epoch, epochs, options) / options.lr)


def learning_rate(epoch: int, epochs: int, options: Optimisation) -> float:
    """The rate of an epoch, counted from 0, by the cosine or the constant schedule."""
    if epoch < options.warmup_epochs:
        start = options.warmup_share * options.lr
        return start + epoch / options.warmup_epochs * (options.lr - start)
    if options.schedule == "constant":
        return options.lr
    share = (epoch - options.warmup_epochs) / max(1, epochs - options.warmup_epochs)
    cosine = (1 + math.cos(math.pi * min(1.0, share))) / 2
    return options.min_lr + cosine * (options.lr - options.min_lr)


def follow(schedule: LRScheduler | ReduceLROnPlateau, epoch: int) -> None:
    """Sets the rate of `epoch`, counted from 0, where it follows from the epoch alone.

    A resumed run may have more epochs than before, and so another cosine from here on.
    """
    if isinstance(schedule, LambdaLR):
        for group, base, rate in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * rate(epoch)


def advance(schedule: LRScheduler | ReduceLROnPlateau, validation_mae: float | None) -> None:
    """Moves a schedule on by one epoch; only the plateau looks at the error."""
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(validation_mae)
    else:
        schedule.step()
