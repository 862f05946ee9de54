"""Batches: one epoch of training, and one pass of prediction over all scans."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.cache import decode
from utils.dataset import UNKNOWN_SEX

REFRESH_SCANS = 512  # enough for a mean over 512 x 45 x 54 x 45 voxels and more


@dataclass(frozen=True)
class Execution:
    """Where and in which precision a network runs.

    Attributes:
        device: a torch device.
        bfloat16: whether the convolutions run under bfloat16 autocast; ages stay float32.
    """

    device: torch.device
    bfloat16: bool = False

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


def choose_execution(device: str = "auto", precision: str = "auto") -> Execution:
    """A GPU when there is one, with bfloat16 where it supports it; else the CPU in float32.

    Raises:
        ValueError: a CUDA device is asked for and there is none.
    """
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
    return Execution(torch.device(device), bfloat16)


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

    Args:
        model: `model(image, sex) -> (N, 1)` years.
        loss: `loss(predicted_age, age) -> dict` of scalars, `total` among them.
        loader: batches as utils/dataset.py makes them.
        optimizer: over the parameters that change.
        execution: device and precision; the model is on the device already.
        augment: changes an image batch.
        after_step: called with the step's number, from 1, and its loss terms.

    Returns:
        The mean of each term over scans.

    Raises:
        ValueError: a loss that is not finite; names step and subjects.
    """
    model.train()
    loss.train()
    sums: dict[str, Tensor] = {}
    count = 0
    batches = tqdm(loader, "training", disable=None, leave=False)
    for step, batch in enumerate(batches, start=1):
        image, sex = augment(execution.images(batch)), batch["sex"].to(execution.device)
        with execution.autocast():
            predicted_age = model(image, sex)
        terms = loss(predicted_age, batch["age"].to(execution.device))
        if not torch.isfinite(terms["total"]):
            raise ValueError(_not_finite(terms, step, loader, batch))
        optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        optimizer.step()
        after_step(step, terms)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach() * len(image)
        count += len(image)
    return {name: (value / count).item() for name, value in sums.items()}


@torch.no_grad()
def refresh_statistics(model: nn.Module, loader: DataLoader, execution: Execution) -> None:
    """Recomputes the batch statistics of `model` for the weights it has now.

    The running statistics lag behind weights that move fast, and those of averaged weights belong
    to no network that ever ran: on 84 scans that alone biased validation ages by 7 to 20 years
    (docs/RESULTS.md). What is frozen in evaluation mode, a first stage, keeps its own.

    Args:
        model: any network; left in training mode.
        loader: training scans; about REFRESH_SCANS of them are read, without augmentation.
        execution: device and precision; the model is on the device already.
    """
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm3d) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches instead of a running one
    for batch in islice(loader, -(-REFRESH_SCANS // loader.batch_size)):
        with execution.autocast():
            model(execution.images(batch), batch["sex"].to(execution.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _not_finite(terms: dict[str, Tensor], step: int, loader: DataLoader, batch: dict) -> str:
    values = ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
    subjects = [loader.dataset.scans[index].subject_id for index in batch["index"].tolist()]
    return (
        f"the loss is not finite at step {step} ({values}); its scans: {', '.join(subjects)}; "
        "the checkpoints written so far are good; a smaller --lr may help"
    )


@torch.inference_mode()
def predict(
    model: nn.Module, loader: DataLoader, execution: Execution, *, title: str = "predicting"
) -> dict[str, np.ndarray]:
    """Predicts every scan once, in file order.

    Args:
        model: has `predict(image, sex) -> dict` of (N, 1) years.
        loader: from `evaluation_loader`.
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
    return {name: torch.cat(values).numpy() for name, values in collected.items()}


def _predict_any_sex(model: nn.Module, image: Tensor, sex: Tensor) -> dict[str, Tensor]:
    unknown = sex == UNKNOWN_SEX
    if not unknown.any():
        return model.predict(image, sex)
    as_female = model.predict(image, sex.masked_fill(unknown, 0))
    as_male = model.predict(image, sex.masked_fill(unknown, 1))
    return {name: (as_female[name] + as_male[name]) / 2 for name in as_female}
