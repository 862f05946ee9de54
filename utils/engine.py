"""Batches: one epoch of training, and one pass of prediction over all scans."""

import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.scaledense import Encoder
from utils.cache import decode
from utils.dataset import UNKNOWN_SEX, ScanDataset
from utils.distributed import SINGLE, World, own_device

REFRESH_SCANS = 512  # enough for a mean over 512 x 45 x 54 x 45 voxels and more
STEPS_UNSEEN = 100  # on a GPU
CHECK_SCANS = 16  # predicted in both precisions before bfloat16 is trusted
CHECK_YEARS = 0.1  # how far apart their ages may be


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

    @property
    def steps_unseen(self) -> int:
        """Steps between two looks at the loss, each of which waits for the device."""
        return 1 if self.device.type == "cpu" else STEPS_UNSEEN

    def place(self, model: nn.Module) -> nn.Module:
        """Moves a model to the device, convolution weights in the layout its kernels read best."""
        return model.to(self.device).to(memory_format=torch.channels_last_3d)

    def take(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; the host does not wait for it to arrive."""
        return tensor.to(self.device, non_blocking=True)

    def images(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's (N, 1, D, H, W) images on the device, decoded there: few bytes travel."""
        image = self.take(batch["image"])
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
    if device.startswith("cuda"):
        if ":" not in device:
            device = f"cuda:{torch.cuda.current_device()}"
        torch.cuda.set_device(device)  # what asks for "the GPU" means this one
        # torch lets float32 convolutions run as TF32, of 10 bits as float16: 0.15 % of an age.
        torch.backends.cudnn.allow_tf32 = False
    if precision == "auto":
        # On a CPU, bfloat16 training measured slower than float32.
        # Of older GPUs torch only emulates it, slowly.
        bfloat16 = device.startswith("cuda") and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    else:
        bfloat16 = precision == "bfloat16"
    return Execution(torch.device(device), bfloat16, world)


def compile_network(model: nn.Module, execution: Execution) -> bool:
    """Has torch.compile translate the encoders of `model` when they are first called.

    Where that does not work, for want of a compiler or of an operation it knows, the network runs
    as it is, and that is said. Names in state dicts stay as they are.

    Returns:
        Whether it works here.
    """

    def probe(values: Tensor) -> Tensor:
        return values.exp() + 1

    try:
        torch.compile(probe)(torch.ones(8, device=execution.device))
    except Exception as error:  # whatever a missing or unfit compiler makes of it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(f"note: --compile: torch.compile does not work here ({reason}); going on without")
        return False
    torch._dynamo.config.suppress_errors = True  # parts that it cannot translate run as they are
    for module in model.modules():
        if isinstance(module, Encoder):
            module.compile()
    return True


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
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    after_step: Callable[[int, dict[str, Tensor]], None],
) -> dict[str, float]:
    """Trains on every batch once.

    Of several processes each runs its share of a batch; the loss is that of the whole batch.

    Args:
        model: `model(image, sex) -> (N, 1)` years; with several processes, what `parallel` made.
        loss: `loss(predicted_age, age) -> dict` of scalars, `total` among them.
        loader: batches as utils/dataset.py makes them, or a list of them for a single process.
        optimizer: over the parameters that change.
        execution: device and precision; the model is on the device already.
        augment: changes an image batch and its ages.
        after_step: called with the step's number, from 1, and its loss terms.

    Returns:
        The mean of each term over the scans of all processes.

    Raises:
        ValueError: a loss that is not finite; names step and subjects. On a GPU up to STEPS_UNSEEN
            steps later, since looking at each would make it wait.
    """
    model.train()
    loss.train()
    world, sizes = execution.world, _global_sizes(loader)
    sums: dict[str, Tensor] = {}
    unseen: list[Step] = []
    batches = tqdm(loader, "training", disable=None, leave=False)
    for step, (batch, scans) in enumerate(zip(batches, sizes, strict=True), start=1):
        sex, age = execution.take(batch["sex"]), execution.take(batch["age"])
        with world.own_randomness(step, execution.device):
            image, age = augment(execution.images(batch), age)
            with execution.autocast():
                predicted_age = model(image, sex, *_rough_age(batch, execution))
        terms = loss(*_whole_batch(predicted_age, age, scans, world))
        values = {name: value.detach() for name, value in terms.items()}
        unseen.append(Step(step, batch["index"], values))
        if len(unseen) == execution.steps_unseen or step == len(sizes):
            _require_finite(unseen, loader, world)
            unseen.clear()
        optimizer.zero_grad(set_to_none=True)
        # The mean of all processes' gradients, each of its own share, becomes their sum.
        (terms["total"] * world.size).backward()
        optimizer.step()
        after_step(step, terms)
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value * scans
    return {name: (value / sum(sizes)).item() for name, value in sums.items()}


def _rough_age(batch: dict[str, Tensor], execution: Execution) -> list[Tensor]:
    """The rough ages (N, 1) that a second stage is trained on where the batch brings them."""
    return [execution.take(batch["rough_age"])] if "rough_age" in batch else []


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
    # Gradients of one-channel kernels, which fit either layout, come in the plain one. Laying the
    # kernels out like that would silence the warning, and take channels-last off the first unit.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
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
    for batch in itertools.islice(loader, -(-REFRESH_SCANS // _global_sizes(loader)[0])):
        with execution.autocast():
            sex = execution.take(batch["sex"])
            model(execution.images(batch), sex, *_rough_age(batch, execution))
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


def _global_sizes(loader: DataLoader | list[dict[str, Tensor]]) -> list[int]:
    """Scans of each batch, in all processes together."""
    if isinstance(loader, list):
        return [len(batch["index"]) for batch in loader]
    return loader.batch_sampler.global_sizes


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader: DataLoader,
    execution: Execution,
    *,
    mirror: bool = False,
    title: str = "predicting",
) -> dict[str, np.ndarray]:
    """Predicts every scan once, in file order; every process gets the ages of all.

    Args:
        model: has `predict(image, sex) -> dict` of (N, 1) years.
        loader: from `evaluation_loader`, with the world of `execution`.
        execution: device and precision; the model is on the device already.
        mirror: whether each age is the mean over the scan and its left-right mirror image.
        title: of the progress bar.

    Returns:
        The named ages, (scans,) float32 years each. Where a scan's sex is unknown and the network
        uses it, the mean of its ages as female and as male.
    """
    model.eval()
    collected: dict[str, list[Tensor]] = {}
    for batch in tqdm(loader, title, disable=None, leave=False):
        sexes = _possible_sexes(batch["sex"])
        image = execution.images(batch)
        images = (image, image.flip(2)) if mirror else (image,)
        with execution.autocast():
            found = [model.predict(view, execution.take(sex)) for view in images for sex in sexes]
        ages = {name: sum(ages[name] for ages in found) / len(found) for name in found[0]}
        for name, value in ages.items():
            collected.setdefault(name, []).append(value[:, 0].float().cpu())
    own = {name: torch.cat(values).numpy() for name, values in collected.items()}
    # With fewer scans than processes, some have none.
    shares = [share for share in execution.world.gather(own) if share]
    return {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}


def _possible_sexes(sex: Tensor) -> list[Tensor]:
    """(N,) sexes with the unknown ones as female and as male; the sexes alone if all are known."""
    unknown = sex == UNKNOWN_SEX
    if not unknown.any():
        return [sex]
    return [sex.masked_fill(unknown, value) for value in (0, 1)]


def settle_precision(
    model: nn.Module, dataset: ScanDataset, execution: Execution, *, batch_size: int, insist: bool
) -> Execution:
    """Trusts bfloat16 only as far as its ages have been seen to be those of float32.

    Predicts CHECK_SCANS scans, spread over the cohort, in both, and prints the largest difference.

    Args:
        model: on the device already.
        dataset: the scans to be predicted.
        execution: returned as it is where it is float32.
        batch_size: scans at a time.
        insist: whether bfloat16 stays even where an age differs by more than CHECK_YEARS.

    Returns:
        The execution to predict with.
    """
    if not execution.bfloat16:
        return execution
    places = np.unique(np.linspace(0, len(dataset) - 1, CHECK_SCANS).round().astype(int)).tolist()
    batches = [dataset[places[i : i + batch_size]] for i in range(0, len(places), batch_size)]
    exact = replace(execution, bfloat16=False)
    ages = [
        predict(model, batches, each, title="checking bfloat16")["predicted_age"]
        for each in (execution, exact)
    ]
    difference = float(np.abs(ages[0] - ages[1]).max())
    text = f"bfloat16: ages of {len(places)} scans within {difference:.3f} years of float32"
    if difference <= CHECK_YEARS:
        print(text)
    elif insist:
        print(f"warning: {text}, {CHECK_YEARS} expected; give --precision float32 for exact ages")
    else:
        print(f"{text}, {CHECK_YEARS} expected: predicting in float32")
        return exact
    return execution
