"""Batches: one epoch of training, and one pass of prediction over all scans."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.cache import decode
from utils.dataset import UNKNOWN_SEX
from utils.distributed import SINGLE, World, own_device

REFRESH_SCANS = 512  # enough for a mean over 512 x 45 x 54 x 45 voxels and more


@dataclass(frozen=True)
class Execution:
    """Where and in which precision a network runs.

    Attributes:
        device: a torch device.
        bfloat16: whether the convolutions run under bfloat16 autocast; ages stay float32.
        world: the processes that run it together.
    """

    device: torch.device
    bfloat16: bool = False
    world: World = SINGLE

    def autocast(self) -> torch.autocast:
        """The one place where precision is chosen."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """Moves a model to the device, convolution weights in the layout its kernels read best."""
        return model.to(self.device).to(memory_format=torch.channels_last_3d)

    def images(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's (N, 1, D, H, W) images on the device, decoded there: few bytes travel."""
        image = batch["image"].to(self.device, non_blocking=True)
        return decode(image, batch.get("levels")).contiguous(memory_format=torch.channels_last_3d)


def choose_execution(
    device: str = "auto", precision: str = "auto", world: World = SINGLE
) -> Execution:
    """A GPU when there is one, with bfloat16 where it supports it; else the CPU in float32.

    Raises:
        ValueError: a CUDA device is asked for and there is none.
    """
    if world.size > 1:
        device = str(own_device(device, world.local_rank))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"--device {device}: auto, cpu, cuda or cuda:NUMBER expected")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this torch sees no GPU; give --device cpu")
    if precision == "auto":
        # On a CPU, bfloat16 training measured slower than float32.
        bfloat16 = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    else:
        bfloat16 = precision == "bfloat16"
    return Execution(torch.device(device), bfloat16, world)


def train_one_epoch(
    model: nn.Module,
    loss: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    execution: Execution,
    *,
    augment: Callable[[Tensor], Tensor],
    after_step: Callable[[int, dict[str, Tensor]], None],
) -> dict[str, float]:
    """Trains on every batch once.

    Of several processes each runs its share of a batch; the loss is that of the whole batch.

    Args:
        model: `model(image, sex) -> (N, 1)` years; with several processes, what `parallel` made.
        loss: `loss(predicted_age, age) -> dict` of scalars, `total` among them.
        loader: batches as utils/dataset.py makes them.
        optimizer: over the parameters that change.
        execution: device and precision; the model is on the device already.
        augment: changes an image batch.
        after_step: called with the step's number, from 1, and its loss terms.

    Returns:
        The mean of each term over the scans of all processes.

    Raises:
        ValueError: a loss that is not finite; names step and subjects.
    """
    model.train()
    loss.train()
    world, sizes = execution.world, loader.batch_sampler.global_sizes
    sums: dict[str, Tensor] = {}
    batches = tqdm(loader, "training", disable=None, leave=False)
    for step, (batch, scans) in enumerate(zip(batches, sizes, strict=True), start=1):
        with world.own_randomness(step, execution.device):
            image, sex = augment(execution.images(batch)), batch["sex"].to(execution.device)
            with execution.autocast():
                predicted_age = model(image, sex)
        terms = loss(*_whole_batch(predicted_age, batch["age"].to(execution.device), scans, world))
        if not torch.isfinite(terms["total"]):
            raise ValueError(_not_finite(terms, step, loader, batch, world))
        optimizer.zero_grad(set_to_none=True)
        # The mean of all processes' gradients, each of its own share, becomes their sum.
        (terms["total"] * world.size).backward()
        optimizer.step()
        after_step(step, terms)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach() * scans
    return {name: (value / sum(sizes)).item() for name, value in sums.items()}


def _whole_batch(
    predicted_age: Tensor, age: Tensor, scans: int, world: World
) -> tuple[Tensor, Tensor]:
    """Predicted and true ages, (scans, 1) each, of the batch of which this process has a share."""
    if world.size == 1:
        return predicted_age, age
    both = torch.cat([predicted_age, age.to(predicted_age.dtype)], dim=1)  # (n, 2)
    predicted_age, all_ages = world.gather_shares(both, scans).split(1, dim=1)
    return predicted_age, all_ages.to(age.dtype)


def synchronised(model: nn.Module, execution: Execution) -> nn.Module:
    """The model with batch statistics over all processes, on GPUs; names and values stay.

    torch has no such layer for the CPU: there, statistics are those of a process's share.
    """
    if execution.world.size == 1 or execution.device.type != "cuda":
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def parallel(model: nn.Module, execution: Execution) -> nn.Module:
    """What trains `model`: itself, or with several processes a form that averages gradients."""
    if execution.world.size == 1:
        return model
    for parameter in model.parameters():
        # Kernels with one channel fit either layout; their gradients come in the plain one, of
        # which torch would else warn.
        if parameter.is_contiguous():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    own = [execution.device] if execution.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=own)


@torch.no_grad()
def refresh_statistics(model: nn.Module, loader: DataLoader, execution: Execution) -> None:
    """Recomputes the batch statistics of `model` for the weights it has now.

    The running statistics lag behind weights that move fast, and those of averaged weights belong
    to no network that ever ran: on 84 scans that alone biased validation ages by 7 to 20 years
    (docs/RESULTS.md). What is frozen in evaluation mode, a first stage, keeps its own. Of several
    processes each reads its share, and all get the mean.

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
    for batch in itertools.islice(
        loader, -(-REFRESH_SCANS // loader.batch_sampler.global_sizes[0])
    ):
        with execution.autocast():
            model(execution.images(batch), batch["sex"].to(execution.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    average_statistics(model, execution)


@torch.no_grad()
def average_statistics(model: nn.Module, execution: Execution) -> None:
    """Gives all processes the mean of their running statistics, so that they evaluate alike."""
    for norm in _trained_norms(model):
        execution.world.average(norm.running_mean)
        execution.world.average(norm.running_var)


def _trained_norms(model: nn.Module) -> list[nn.Module]:
    """The normalisations, synchronised or not, that training changes; sets training mode."""
    kind = nn.modules.batchnorm._BatchNorm
    return [
        module for module in model.train().modules() if isinstance(module, kind) and module.training
    ]


def _not_finite(
    terms: dict[str, Tensor], step: int, loader: DataLoader, batch: dict, world: World
) -> str:
    values = ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
    # All processes have come here: the loss is the same in each.
    indices = itertools.chain.from_iterable(world.gather(batch["index"].tolist()))
    subjects = [loader.dataset.scans[index].subject_id for index in indices]
    return (
        f"the loss is not finite at step {step} ({values}); its scans: {', '.join(subjects)}; "
        "the checkpoints written so far are good; a smaller --lr may help"
    )


@torch.inference_mode()
def predict(
    model: nn.Module, loader: DataLoader, execution: Execution, *, title: str = "predicting"
) -> dict[str, np.ndarray]:
    """Predicts every scan once, in file order; every process gets the ages of all.

    Args:
        model: has `predict(image, sex) -> dict` of (N, 1) years.
        loader: from `evaluation_loader`, with the world of `execution`.
        execution: device and precision; the model is on the device already.
        title: of the progress bar.

    Returns:
        The named ages, (scans,) float32 years each. Where a scan's sex is unknown and the network
        uses it, the mean of its ages as female and as male.
    """
    model.eval()
    collected: dict[str, list[Tensor]] = {}
    for batch in tqdm(loader, title, disable=None, leave=False):
        image, sex = execution.images(batch), batch["sex"].to(execution.device)
        with execution.autocast():
            ages = _predict_any_sex(model, image, sex)
        for name, value in ages.items():
            collected.setdefault(name, []).append(value[:, 0].float().cpu())
    own = {name: torch.cat(values).numpy() for name, values in collected.items()}
    # With fewer scans than processes, some have none.
    shares = [share for share in execution.world.gather(own) if share]
    return {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}


def _predict_any_sex(model: nn.Module, image: Tensor, sex: Tensor) -> dict[str, Tensor]:
    unknown = sex == UNKNOWN_SEX
    if not unknown.any():
        return model.predict(image, sex)
    as_female = model.predict(image, sex.masked_fill(unknown, 0))
    as_male = model.predict(image, sex.masked_fill(unknown, 1))
    return {name: (as_female[name] + as_male[name]) / 2 for name in as_female}
