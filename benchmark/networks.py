"""Inference and training of one network on batches in memory, and the ceiling of the device."""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmark.compare import Figures
from benchmark.measure import PLAIN, Meter, Settings
from benchmark.plain import PlainNetwork, plain_optimizer, plain_predict, plain_step
from model.layers import fuse_for_inference, recompute_activations
from model.losses import AgeLoss
from model.scaledense import ScaleDense
from utils.machine import use_machine_well
from utils.networks.execution import Execution, compile_network, predict
from utils.training.engine import train_one_epoch
from utils.training.optimisation import Optimisation, build_optimizer
from utils.training.recipes import PAPER

COMPILED, RECOMPUTING = " compiled", " recomputing"  # --compile, --recompute_activations
PUBLISHED = Optimisation(
    **{name: PAPER[name] for name in ("optimizer", "lr", "weight_decay")}, schedule="constant"
)


def inference(form: str, settings: Settings, meter: Meter) -> Figures:
    """Ages of batches that lie in the computer's memory."""
    batches = [random_batch(settings)] * settings.steps
    meter.start()
    if form == PLAIN:
        network = PlainNetwork(settings.width).to(meter.device).eval()
        seconds = meter.seconds(lambda: [plain_predict(network, batch) for batch in batches])
    else:
        execution = our_execution(form, meter.device)
        network = execution.place(fuse_for_inference(ScaleDense(settings.width)))
        if COMPILED in form:
            compile_network(network, execution)
        seconds = meter.seconds(lambda: predict(network, batches, execution))
    return speed(settings, seconds, training=False) | meter.memory()


def training(form: str, settings: Settings, meter: Meter) -> Figures:
    """Steps of the published optimiser and loss (soft ranks) on one batch."""
    batches = [random_batch(settings)] * settings.steps
    meter.start()
    if form == PLAIN:
        network = PlainNetwork(settings.width).to(meter.device)
        step = partial(plain_step, network, AgeLoss(), plain_optimizer(network))
        seconds = meter.seconds(lambda: [step(batch) for batch in batches])
    else:
        epoch = our_training(settings, our_execution(form, meter.device), form)
        seconds = meter.seconds(lambda: epoch(batches))
    figures = {"s/step": seconds / settings.steps}
    return figures | speed(settings, seconds, training=True) | meter.memory()


def ceiling(form: str, settings: Settings, meter: Meter) -> Figures:
    """Products of square matrices, the most the device can do; the form is the precision.

    float32 on a GPU runs on its matrix units (TF32), as the plain form does by torch's default.
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    side = settings.matrix
    dtype = getattr(torch, form)
    left, right = (torch.randn(side, side, device=meter.device, dtype=dtype) for _ in range(2))
    seconds = meter.seconds(lambda: [left @ right for _ in range(settings.steps)], warm_up=3)
    return {"TFLOP/s": 2 * side**3 * settings.steps / seconds / 1e12}


def random_batch(settings: Settings) -> dict[str, Tensor]:
    """A batch as utils/scans/dataset.py makes them, of noise."""
    torch.manual_seed(0)
    return {
        "image": torch.randn(settings.batch, 1, *settings.shape),
        "sex": torch.arange(settings.batch) % 2,
        "age": torch.linspace(20, 90, settings.batch)[:, None],
        "index": torch.arange(settings.batch),
    }


def our_execution(form: str, device: torch.device) -> Execution:
    """How the entry points use the machine, in the form's precision."""
    if not form.startswith("ours "):
        raise ValueError(f"no form called {form!r}")
    use_machine_well()
    return Execution(device, bfloat16="bfloat16" in form)


def our_training(
    settings: Settings, execution: Execution, form: str = ""
) -> Callable[[list[dict] | DataLoader], None]:
    """One epoch by the product's loop, with the published optimiser."""
    network = execution.place(ScaleDense(settings.width))
    if RECOMPUTING in form:
        recompute_activations(network)
    if COMPILED in form:
        compile_network(network, execution)
    loss, optimizer = AgeLoss(), build_optimizer(network, PUBLISHED)
    return lambda batches: train_one_epoch(
        network, loss, batches, optimizer, execution, augment=lambda image: image
    )


def speed(settings: Settings, seconds: float, *, training: bool) -> Figures:
    """Scans and operations per second, from the seconds of `settings.steps` batches."""
    rate = settings.steps * settings.batch / seconds
    flops = network_flops(settings.width, tuple(settings.shape), training=training)
    return {"scans/s": rate, "TFLOP/s": rate * flops / 1e12}


@cache
def network_flops(width: str, shape: tuple[int, int, int], *, training: bool) -> int:
    """Floating-point operations that one scan needs, counted without computing.

    For every form they are those of the fused network, one 3x3x3 convolution for each asymmetric
    one: work that a form does beyond it is not counted. Training adds the backward pass.
    """
    with torch.device("meta"):
        network: nn.Module = fuse_for_inference(ScaleDense(width))
        with FlopCounterMode(display=False) as counter:
            # The heads, a millionth of the work, are left out: one_hot would need real values.
            pooled = network.encoder.backbone(torch.empty(1, 1, *shape))
            if training:
                pooled.sum().backward()
    return counter.get_total_flops()
