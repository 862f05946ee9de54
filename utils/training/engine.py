"""Passes over all scans in training: an epoch, batch statistics, the error of a first stage."""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.distributed import World
from utils.networks.execution import Execution, predict
from utils.scans.dataset import ScanDataset, evaluation_loader

REFRESH_SCANS = 512  # enough for a mean over 512 x 45 x 54 x 45 voxels and more


@dataclass(frozen=True)
class Step:
    """A training step whose loss has not been looked at: number, places of its scans, terms."""

    number: int
    index: Tensor
    terms: dict[str, Tensor]


def train_one_epoch(
    model: nn.Module,
    loss: nn.Module,
    loader: DataLoader | list[dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    execution: Execution,
    *,
    augment: Callable[[Tensor], Tensor],
    average: AveragedModel | None = None,
) -> dict[str, float]:
    """Trains on every batch once.

    Of several processes each runs its share of a batch; the loss is that of the whole batch.

    Args:
        model: `model(image, sex) -> (N, 1)` years; with several processes, what `parallel` made.
        loss: `loss(predicted_age, age) -> dict` of scalars, `total` among them.
        loader: batches as `training_loader` gives them, or a list of them for a single process.
        optimizer: over the parameters that change.
        execution: device and precision; the model is on the device already.
        augment: changes an image batch at random.
        average: a running average of the weights of `model`, which follows every step.

    Returns:
        The mean of each term over the scans of all processes.

    Raises:
        ValueError: a loss that is not finite; names step and subjects. On a GPU up to STEPS_UNSEEN
            steps later, since looking at each would make it wait.
    """
    model.train()
    loss.train()
    world = execution.world
    if isinstance(loader, list):
        sizes = [len(batch["index"]) for batch in loader]
    else:
        sizes = loader.sampler.global_sizes  # scans of each batch, in all processes together
    sums: dict[str, Tensor] = {}
    unseen: list[Step] = []
    batches = tqdm(loader, "training", disable=None, leave=False)
    for step, (batch, scans) in enumerate(zip(batches, sizes, strict=True), start=1):
        sex, age = execution.take(batch["sex"]), execution.take(batch["age"])
        with world.own_randomness(step, execution.device):
            image = augment(execution.images(batch))
            with execution.autocast():
                predicted_age = model(image, sex)
        if world.size > 1:
            predicted_age, age = _whole_batch(predicted_age, age, scans, world)
        terms = loss(predicted_age, age)
        values = {name: value.detach() for name, value in terms.items()}
        unseen.append(Step(step, batch["index"], values))
        if len(unseen) == execution.steps_unseen or step == len(sizes):
            _require_finite(unseen, loader, world)
            unseen.clear()
        optimizer.zero_grad(set_to_none=True)
        # The mean of all processes' gradients, each of its own share, becomes their sum.
        (terms["total"] * world.size).backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(model)
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value * scans
    return {name: (value / sum(sizes)).item() for name, value in sums.items()}


def _whole_batch(
    predicted_age: Tensor, age: Tensor, scans: int, world: World
) -> tuple[Tensor, Tensor]:
    """Predicted and true ages, (scans, 1) each, of the batch of which this process has a share."""
    both = torch.cat([predicted_age, age.to(predicted_age.dtype)], dim=1)  # (n, 2)
    predicted_age, all_ages = world.gather_shares(both, scans).split(1, dim=1)
    return predicted_age, all_ages.to(age.dtype)


def synchronised(model: nn.Module, execution: Execution) -> nn.Module:
    """The model with batch statistics over all processes, on GPUs; names and values stay.

    torch has no such layer for the CPU: there, statistics are those of a process's share.
    """
    if execution.device.type != "cuda":
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def parallel(model: nn.Module, execution: Execution) -> nn.Module:
    """What trains `model` in several processes: a form that averages their gradients."""
    # Gradients of one-channel kernels, which fit either layout, come in the plain one. Laying the
    # kernels out like that would silence the warning, and take channels-last off the first unit.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    own = [execution.device] if execution.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=own)


@torch.no_grad()
def refresh_statistics(model: nn.Module, loader: DataLoader, execution: Execution) -> None:
    """Recomputes the batch statistics of `model` for the weights it has now.

    The running statistics lag behind weights that move fast, and those of averaged weights belong
    to no network that ever ran: on 84 scans that alone biased validation ages by 7 to 20 years.
    What is frozen in evaluation mode, a first stage, keeps its own. Of several processes each reads
    its share, and all get the mean.

    Args:
        model: any network; left in training mode.
        loader: training scans; about REFRESH_SCANS of them are read, without augmentation.
        execution: device and precision; the model is on the device already.
    """
    norms = _trained_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches instead of a running one
    for batch in itertools.islice(loader, -(-REFRESH_SCANS // loader.sampler.global_sizes[0])):
        with execution.autocast():
            model(execution.images(batch), execution.take(batch["sex"]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    average_statistics(model, execution)


@torch.no_grad()
def average_statistics(model: nn.Module, execution: Execution) -> None:
    """Gives all processes the mean of their running statistics, so that they evaluate alike."""
    for norm in _trained_norms(model):
        execution.world.average(norm.running_mean)
        execution.world.average(norm.running_var)


def unseen_error_spread(
    first_stage: nn.Module, train_set: ScanDataset, val_set: ScanDataset, execution: Execution
) -> float:
    """How much the first stage's error on new scans exceeds that on its training scans.

    Returns:
        Years: the SD of the noise that would raise its mean squared error on the training scans to
        that on the validation scans; 0 where it is not better on the training scans.
    """
    model = execution.place(first_stage)
    errors = []
    for dataset in (train_set, val_set):
        loader = evaluation_loader(dataset, batch_size=16, world=execution.world)
        ages = predict(model, loader, execution, title="first stage")["predicted_age"]
        errors.append(np.mean((ages - np.array([scan.age for scan in dataset.scans])) ** 2))
    return float(np.sqrt(max(0.0, errors[1] - errors[0])))


def _trained_norms(model: nn.Module) -> list[nn.Module]:
    """The normalisations, synchronised or not, that training changes; sets training mode."""
    kind = nn.modules.batchnorm._BatchNorm
    return [
        module for module in model.train().modules() if isinstance(module, kind) and module.training
    ]


def _require_finite(steps: list[Step], loader: DataLoader | list, world: World) -> None:
    """Raises ValueError for the first step whose loss is not finite; looks at the device once."""
    finite = torch.stack([step.terms["total"] for step in steps]).isfinite().tolist()
    if all(finite):
        return
    step = steps[finite.index(False)]
    values = ", ".join(f"{name} {value.item():g}" for name, value in step.terms.items())
    # All processes have come here: the loss is the same in each.
    places = itertools.chain.from_iterable(world.gather(step.index.tolist()))
    scans = getattr(getattr(loader, "dataset", None), "scans", None)
    names = [scans[place].subject_id if scans else f"number {place}" for place in places]
    raise ValueError(
        f"the loss is not finite at step {step.number} ({values}); its scans: {', '.join(names)}; "
        "the checkpoints written so far are good; a smaller --lr may help"
    )
