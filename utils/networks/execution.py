"""Where and how precisely a network runs, and one pass of prediction over all scans."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from model.scaledense import Encoder
from utils.distributed import SINGLE, World, own_device
from utils.scans.dataset import UNKNOWN_SEX, ScanDataset

STEPS_UNSEEN = 100  # steps on a GPU until the loss is looked at again, which makes it wait
CHECK_SCANS = 16  # predicted in both precisions before bfloat16 is trusted
CHECK_YEARS = 0.1  # by which their ages may differ
ROUNDING = {False: 1e-4, True: 0.02}  # of a convolution in float32 and bfloat16, of its size
# Where copies of a scan are moved to: every second corner of a cube, 0 and 1 its ends on each axis.
CORNERS = ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0))


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
        """The context in which a network runs in the chosen precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    @property
    def steps_unseen(self) -> int:
        """Steps between two looks at the loss; each look waits for the device."""
        return 1 if self.device.type == "cpu" else STEPS_UNSEEN

    def place(self, model: nn.Module) -> nn.Module:
        """Moves a model to the device, convolution weights in the layout its kernels read best."""
        return model.to(self.device).to(memory_format=torch.channels_last_3d)

    def take(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; the host does not wait for it to arrive."""
        return tensor.to(self.device, non_blocking=True)

    def images(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's (N, 1, D, H, W) images on the device; what was kept in float16 as float32."""
        image = self.take(batch["image"])
        image = image.float() if image.dtype == torch.float16 else image
        return image.contiguous(memory_format=torch.channels_last_3d)


def choose_execution(
    device: str = "auto", precision: str = "auto", world: World = SINGLE
) -> Execution:
    """Chooses a GPU when there is one, bfloat16 where it supports that; else the CPU and float32.

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
        torch.cuda.set_device(device)  # the default for code that asks for "the GPU"
        # torch would run float32 convolutions in TF32, with 10 bits per factor: 0.15 % of an age.
        torch.backends.cudnn.allow_tf32 = False
    if precision == "auto":
        # Training in bfloat16 measured slower than float32 on a CPU; older GPUs emulate it slowly.
        bfloat16 = device.startswith("cuda") and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    else:
        bfloat16 = precision == "bfloat16"
    execution = Execution(torch.device(device), bfloat16, world)
    if device.startswith("cuda"):
        require_right_convolutions(execution)
    return execution


def require_right_convolutions(execution: Execution) -> None:
    """Compares one convolution, as the networks have it at 4 mm, with float32 on the CPU.

    Some versions of torch and cuDNN compute 3-D convolutions of some shapes and precisions wrongly,
    without a word; ages would be wrong likewise.

    Raises:
        ValueError: the result or a gradient differs by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 16, 38, 46, 39, generator=generator)
    weight = torch.randn(16, 16, 3, 3, 3, generator=generator) / 432**0.5
    found = _convolve(image, weight, execution)
    expected = _convolve(image, weight, Execution(torch.device("cpu")))
    allowed = ROUNDING[execution.bfloat16]
    for name, values in found.items():
        error = ((values - expected[name]).norm() / expected[name].norm()).item()
        if not error <= allowed:  # NaN too
            kind = "bfloat16" if execution.bfloat16 else "float32"
            raise ValueError(
                f"{execution.device}: the {name} of a 3-D convolution in {kind} is off by "
                f"{error:.2g} of its size, {allowed:g} at most expected (torch "
                f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN "
                f"{torch.backends.cudnn.version()}): install another torch, or a newer cuDNN "
                "(torch 2.9 needs 9.15: pip install 'nvidia-cudnn-cu12>=9.15'); till then "
                "--device cpu, or --precision float32 where that is not what failed"
            )


def _convolve(image: Tensor, weight: Tensor, execution: Execution) -> dict[str, Tensor]:
    """A convolution's result and its gradients, as float32 on the CPU."""
    placed = [
        values.to(execution.device).contiguous(memory_format=torch.channels_last_3d)
        for values in (image, weight)
    ]
    image, weight = (values.detach().requires_grad_() for values in placed)
    with torch.enable_grad(), execution.autocast():
        result = functional.conv3d(image, weight, padding=1)
        result.float().square().mean().backward()
    found = {"result": result, "gradient of the image": image.grad, "gradient": weight.grad}
    return {name: values.detach().float().cpu() for name, values in found.items()}


def compile_network(model: nn.Module, execution: Execution) -> bool:
    """Lets torch.compile translate the encoders of `model` when they are first called.

    Where there is no working compiler, a note is printed and the network runs as it is. Names in
    state dicts do not change.

    Returns:
        Whether it works here.
    """

    def probe(values: Tensor) -> Tensor:
        return values.exp() + 1

    try:
        torch.compile(probe)(torch.ones(8, device=execution.device))
    except Exception as error:  # a missing or unfit compiler raises many types
        reason = [*str(error).strip().splitlines(), type(error).__name__][0]
        print(f"note: --compile: torch.compile does not work here ({reason}); going on without")
        return False
    torch._dynamo.config.suppress_errors = True  # parts that it cannot translate run as they are
    for module in model.modules():
        if isinstance(module, Encoder):
            module.compile()
    return True


@dataclass(frozen=True)
class Views:
    """Forms of a scan over which its age is averaged: test-time augmentation.

    Attributes:
        mirror: whether its left-right mirror image is one.
        shift: voxels by which copies are moved along each axis; 0: none.
    """

    mirror: bool = False
    shift: int = 0

    def __call__(self, image: Tensor) -> Iterator[Tensor]:
        """(N, 1, D, H, W) -> as many of the same shape as there are forms; edges are repeated."""
        padded = functional.pad(image, [self.shift] * 6, mode="replicate") if self.shift else image
        for corner in CORNERS if self.shift else CORNERS[:1]:
            moved = padded
            for axis, at in enumerate(corner):
                moved = moved.narrow(2 + axis, 2 * self.shift * at, image.shape[2 + axis])
            moved = moved.contiguous(memory_format=torch.channels_last_3d)
            yield moved
            if self.mirror:
                yield moved.flip(2)


ONE_VIEW = Views()


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    execution: Execution,
    *,
    views: Views = ONE_VIEW,
    title: str = "predicting",
) -> dict[str, np.ndarray]:
    """Predicts every scan once, in file order; every process gets the ages of all.

    Args:
        model: has `predict(image, sex) -> dict` of (N, 1) years.
        batches: such as `evaluation_loader` gives, with the world of `execution`.
        execution: device and precision; the model is on the device already.
        views: over which each age is the mean.
        title: of the progress bar.

    Returns:
        The named ages, (scans,) float32 years each. Where a scan's sex is unknown and the network
        uses it, the mean of its ages as female and as male.
    """
    model.eval()
    collected: dict[str, list[Tensor]] = {}
    for batch in tqdm(batches, title, disable=None, leave=False):
        sexes = _possible_sexes(batch["sex"])
        image = execution.images(batch)
        with execution.autocast():
            found = [
                model.predict(view, execution.take(sex)) for view in views(image) for sex in sexes
            ]
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
    """Keeps bfloat16 only where its ages agree with those of float32.

    Predicts CHECK_SCANS scans, spread over the cohort, in both, and prints the largest difference.

    Args:
        model: on the device already.
        dataset: the scans to be predicted.
        execution: returned unchanged where it is float32.
        batch_size: scans at a time.
        insist: whether to keep bfloat16 even where an age differs by more than CHECK_YEARS.

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
