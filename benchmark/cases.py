"""What is measured: each case with its forms, the first of which is the reference.

`python -m benchmark.cases` reads one request from its input, measures that form and prints its
figures: the harness (benchmark/measure.py) starts it anew for every measurement. Volumes are on the
91x109x91 grid of 2 mm, `--quick` takes 42x42x42.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmark.measure import (
    Figures,
    MeasurementFailed,
    Meter,
    Row,
    in_own_process,
    private_memory,
)
from benchmark.plain import (
    PlainDataset,
    PlainNetwork,
    plain_loader,
    plain_optimizer,
    plain_predict,
    plain_step,
)
from model.layers import fuse_for_inference, recompute_activations
from model.losses import AgeLoss
from model.scaledense import ScaleDense
from utils.machine import use_machine_well
from utils.networks.execution import Execution, compile_network, predict
from utils.scans.cache import Cache
from utils.scans.cohort import open_cohort
from utils.scans.dataset import ScanDataset, training_loader
from utils.scans.labels import read_labels
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, InputRule
from utils.training.engine import train_one_epoch
from utils.training.optimisation import Optimisation, build_optimizer
from utils.training.options import PAPER

PLAIN = "plain"
COMPILED, RECOMPUTING = " compiled", " recomputing"  # --compile, --recompute_activations
INFERENCE_FORMS = {
    "cpu": (PLAIN, "ours float32", "ours bfloat16"),
    "cuda": (PLAIN, "ours float32", "ours bfloat16", "ours bfloat16 compiled"),
}
TRAINING_FORMS = {
    "cpu": (PLAIN, "ours float32", "ours float32 recomputing"),
    "cuda": (
        PLAIN,
        "ours float32",
        "ours bfloat16",
        "ours bfloat16 compiled",
        "ours bfloat16 recomputing",
    ),
}
IN_MEMORY = "in memory"
SMALL_SHAPE = (42, 42, 42)  # the least that the released width, with its stem, can halve five times
SCAN_COUNTS = (1000, 3000, 6586)  # the last is the paper's cohort
SHEET_ROWS = 1000
FEW_SCANS = 16  # trained on by `feeding`, whose epochs are long
DISTINCT_SCANS = 8  # the others are the same files under other names
PUBLISHED = Optimisation(
    **{name: PAPER[name] for name in ("optimizer", "lr", "weight_decay")}, schedule="constant"
)


@dataclass(frozen=True)
class Settings:
    """What a measurement needs to know, as plain values.

    Attributes:
        device: cpu or cuda.
        width: of the network.
        batch: scans at a time.
        shape: voxels of an image.
        steps: batches between two looks at the clock.
        least_seconds: how long a run is repeated at least.
        least_runs: how often at least.
        num_workers: processes of a loader.
        cohort: folder of `write_cohort`; empty where no files are read.
        matrix: side of the matrices whose product is the ceiling.
    """

    device: str = "cpu"
    width: str = "compact"
    batch: int = 1
    shape: tuple[int, int, int] = GRID_SHAPE
    steps: int = 1
    least_seconds: float = 3.0
    least_runs: int = 3
    num_workers: int = 2
    cohort: str = ""
    matrix: int = 2048


@dataclass(frozen=True)
class Case:
    """A row group of the table.

    Attributes:
        measure: key of MEASURES.
        title: as printed.
        forms: what is compared; the first is the reference.
        settings: see there.
        goals: least ratios wanted, by form and figure.
    """

    measure: str
    title: str
    forms: tuple[str, ...]
    settings: Settings
    goals: dict[tuple[str, str], float] = field(default_factory=dict)

    def run(self, form: str, *, cohort: str = "", threads: int = 0) -> Figures:
        """Measures one form in its own process; `cohort` is the folder of `write_cohort`."""
        settings = asdict(replace(self.settings, cohort=cohort))
        request = {"measure": self.measure, "form": form, "settings": settings}
        return in_own_process("benchmark.cases", request, threads=threads)


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
        network, loss = PlainNetwork(settings.width).to(meter.device), AgeLoss()
        optimizer = plain_optimizer(network)
        seconds = meter.seconds(
            lambda: [plain_step(network, loss, optimizer, batch) for batch in batches]
        )
    else:
        epoch = our_training(settings, our_execution(form, meter.device), form)
        seconds = meter.seconds(lambda: epoch(batches))
    figures = {"s/step": seconds / settings.steps}
    return figures | speed(settings, seconds, training=True) | meter.memory()


def loader(form: str, settings: Settings, meter: Meter) -> Figures:
    """The first pass over a folder of scans, all that comes before it included, and the second."""
    folder, sheet = Path(settings.cohort) / "scans", Path(settings.cohort) / "labels.csv"
    opened: list[DataLoader] = []
    execution = None if form == PLAIN else our_execution("ours float32", meter.device)

    def read() -> None:
        """Brings every batch to the device, as the network would see it."""
        for batch in opened[0]:
            if execution is None:
                batch["image"].to(meter.device, non_blocking=True)
            else:
                execution.images(batch)

    def first_epoch() -> None:
        if form == PLAIN:
            dataset = PlainDataset(folder, sheet)
            common = {"batch_size": settings.batch, "num_workers": settings.num_workers}
            opened.append(plain_loader(dataset, **common))
        else:
            kept = Path(tempfile.mkdtemp(dir=settings.cohort))  # empty: nothing is decoded yet
            opened.append(our_loader(folder, sheet, form, settings, kept))
        read()

    once = Meter(meter.device, least_seconds=0.0, least_runs=1)
    first = once.seconds(first_epoch, warm_up=0)
    again = once if form == PLAIN else Meter(meter.device, least_seconds=1.0, least_runs=1)
    second = again.seconds(read, warm_up=0)
    count = len(opened[0].dataset)
    private = max(private_memory() for _ in opened[0])  # not timed
    return {
        "first epoch scans/s": count / first,
        "second epoch scans/s": count / second,
        "private memory MiB": private,
    }


def feeding(form: str, settings: Settings, meter: Meter) -> Figures:
    """Training fed by the loader, against the same loop on batches that lie on the device."""
    folder, sheet = Path(settings.cohort) / "few", Path(settings.cohort) / "labels.csv"
    precision = "bfloat16" if meter.device.type == "cuda" else "float32"
    execution = our_execution(f"ours {precision}", meter.device)
    kept = Path(settings.cohort) / "kept"
    if form == IN_MEMORY:
        batches = [
            batch | {"image": execution.images(batch)}
            for batch in our_loader(folder, sheet, "cache none", settings, kept)
        ]
    else:
        batches = our_loader(folder, sheet, form, settings, kept)
    epoch = our_training(settings, execution)
    return {"s/epoch": meter.seconds(lambda: epoch(batches))}


def memory(form: str, settings: Settings, meter: Meter) -> Figures:
    """Memory of reading so many scans once; the form is `cache KIND, COUNT scans`."""
    cache, count = form.removesuffix(" scans").split(", ")
    our_execution("ours float32", meter.device)  # as the entry points set the process up
    folder = Path(settings.cohort) / f"count-{count}"
    kept = Path(tempfile.mkdtemp(dir=settings.cohort))  # empty: everything is decoded
    batches = our_loader(folder, None, cache, settings, kept)
    figures = {"private memory MiB": max(private_memory() for _ in batches)}
    shutil.rmtree(kept)
    return figures


def ceiling(form: str, settings: Settings, meter: Meter) -> Figures:
    """Products of square matrices, what the device can do at best; the form is the precision.

    float32 on a GPU runs on its matrix units (TF32), as the plain form does by torch's default.
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    side = settings.matrix
    dtype = getattr(torch, form)
    left, right = (torch.randn(side, side, device=meter.device, dtype=dtype) for _ in range(2))
    seconds = meter.seconds(lambda: [left @ right for _ in range(settings.steps)], warm_up=3)
    return {"TFLOP/s": 2 * side**3 * settings.steps / seconds / 1e12}


MEASURES: dict[str, Callable[[str, Settings, Meter], Figures]] = {
    "inference": inference,
    "training": training,
    "loader": loader,
    "feeding": feeding,
    "memory": memory,
    "ceiling": ceiling,
}


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
    """What the entry points make of the machine, in the form's precision."""
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

    def epoch(batches: list[dict] | DataLoader) -> None:
        train_one_epoch(
            network,
            loss,
            batches,
            optimizer,
            execution,
            augment=lambda image, age: (image, age),
            after_step=lambda step, terms: None,
        )

    return epoch


def our_loader(
    folder: Path, sheet: Path | None, form: str, settings: Settings, kept: Path
) -> DataLoader:
    """The product's way from a folder to batches; the form is `cache KIND`."""
    labels = read_labels(sheet) if sheet else None
    input_rule = InputRule(intensity="authors", any_grid=settings.shape != GRID_SHAPE)
    scans = open_cohort(folder, labels, input_rule, need_age=sheet is not None)
    cache = Cache(form.removeprefix("cache "), kept, torch.device(settings.device))
    dataset = ScanDataset(scans, input_rule, cache)
    return training_loader(
        dataset,
        batch_size=settings.batch,
        full_batches=False,
        num_workers=settings.num_workers,
    )


def speed(settings: Settings, seconds: float, *, training: bool) -> Figures:
    """Scans and operations a second of `settings.steps` batches in so many seconds."""
    rate = settings.steps * settings.batch / seconds
    flops = network_flops(settings.width, tuple(settings.shape), training=training)
    return {"scans/s": rate, "TFLOP/s": rate * flops / 1e12}


def network_flops(width: str, shape: tuple[int, int, int], *, training: bool) -> int:
    """Floating-point operations that one scan needs, counted without computing.

    Those of the fused network, one 3x3x3 convolution for each asymmetric one, for every form: work
    that a form does beyond it does not count as achieved. Training adds the backward pass.
    """
    with torch.device("meta"):
        network: nn.Module = fuse_for_inference(ScaleDense(width))
        with FlopCounterMode(display=False) as counter:
            # The rest is a millionth of it, and one_hot would look at the values of the sex.
            pooled = network.encoder.backbone(torch.empty(1, 1, *shape))
            if training:
                pooled.sum().backward()
    return counter.get_total_flops()


def plan(
    names: list[str],
    *,
    base: Settings,
    batches: dict[str, list[int]],
    widths: list[str],
    caches: list[str],
    scan_counts: tuple[int, ...] = SCAN_COUNTS,
) -> list[Case]:
    """The cases of these names.

    Args:
        names: keys of MEASURES.
        base: settings that all share.
        batches: batch sizes of `inference` and `training`.
        widths: of the network.
        caches: of our loader: none, disk or device.
        scan_counts: for `memory`; the first is the reference.
    """
    cases = []
    for width in widths:
        for name in ("inference", "training"):
            for batch in batches[name] if name in names else ():
                cases.append(network_case(name, replace(base, width=width, batch=batch)))
    cached = tuple(f"cache {cache}" for cache in caches)
    keeping = [form for form in cached if "none" not in form]
    if "loader" in names:
        goals = {(form, "second epoch scans/s"): 20.0 for form in keeping}
        cases.append(
            Case("loader", "loader", (PLAIN, *cached), replace(base, batch=8), goals=goals)
        )
    if "feeding" in names:
        batch = batches["training"][0]
        settings = replace(base, width=widths[0], batch=batch, least_seconds=0.0, least_runs=1)
        title = f"training fed by the loader, {widths[0]}, batch {batch}"
        # 5 % longer is 0.95 times as good.
        goals = {(form, "s/epoch"): 0.95 for form in keeping}
        cases.append(Case("feeding", title, (IN_MEMORY, *cached), settings, goals=goals))
    # What is kept on the device grows with the cohort, as it must.
    flat = [form for form in cached if "device" not in form] if "memory" in names else []
    for cache in flat:
        forms = tuple(f"{cache}, {count} scans" for count in scan_counts)
        settings = replace(base, batch=8, shape=SMALL_SHAPE)
        cases.append(Case("memory", f"memory of reading, {cache}", forms, settings))
    if "ceiling" in names:
        for precision in ("float32", "bfloat16"):
            cases.append(Case("ceiling", "ceiling, matrix product", (precision,), base))
    return cases


def network_case(name: str, settings: Settings) -> Case:
    """Inference or training at one width and batch size, with the goals of docs/PERFORMANCE.md."""
    forms = {"inference": INFERENCE_FORMS, "training": TRAINING_FORMS}[name][settings.device]
    goals = {}
    if settings.device == "cpu":
        goals = {
            "inference": {
                ("ours float32", "scans/s"): 2.8,
                ("ours bfloat16", "scans/s"): 4.0,
            },
            "training": {("ours float32", "s/step"): 2.5},
        }[name]
    elif name == "training" and settings.batch == 32:
        goals = {
            ("ours bfloat16", "s/step"): 3.0,
            ("ours bfloat16", "peak memory MiB"): 2.0,
        }
    title = f"{name}, {settings.width}, batch {settings.batch}"
    return Case(name, title, forms, settings, goals=goals)


def with_shares(rows: list[Row]) -> list[Row]:
    """Adds what share of the measured ceiling each rate of operations is, in per cent."""
    ceilings = {row.form: row.value for row in rows if row.case.startswith("ceiling")}
    result = []
    for row in rows:
        result.append(row)
        if row.figure != "TFLOP/s" or row.case.startswith("ceiling"):
            continue
        own = ceilings.get("bfloat16" if "bfloat16" in row.form else "float32")
        if own is None:
            continue
        plain = ceilings.get("float32")
        reference = None if row.reference is None or not plain else 100 * row.reference / plain
        share = 100 * row.value / own
        result.append(Row(row.case, row.form, "% of ceiling", reference, share))
    return result


def write_cohort(folder: Path, cases: list[Case], *, scans: int) -> None:
    """Makes the files that the cases read: scans/, few/, labels.csv, and count-N/ for `memory`."""
    names = {case.measure for case in cases}
    if names & {"loader", "feeding"}:
        shape = next(c.settings.shape for c in cases if c.measure in ("loader", "feeding"))
        write_scans(folder / "scans", scans, shape)
        write_scans(folder / "few", min(scans, FEW_SCANS), shape)
        rows = [
            f"scan-{index:05d}.nii.gz,{20 + index % 70},{index % 2}"
            for index in range(max(scans, SHEET_ROWS))
        ]
        (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    for case in cases:
        for form in case.forms if case.measure == "memory" else ():
            count = form.removesuffix(" scans").split(", ")[1]
            if not (folder / f"count-{count}").is_dir():
                write_scans(folder / f"count-{count}", int(count), case.settings.shape)


def write_scans(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """`count` scans, of which DISTINCT_SCANS differ and the rest are links to them."""
    folder.mkdir(parents=True)
    for index, volume in enumerate(brains(min(count, DISTINCT_SCANS), shape)):
        path = folder / f"scan-{index:05d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(volume, GRID_AFFINE), path)
    for index in range(DISTINCT_SCANS, count):
        original = folder / f"scan-{index % DISTINCT_SCANS:05d}.nii.gz"
        os.link(original, folder / f"scan-{index:05d}.nii.gz")


def brains(count: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """int16 ellipsoids with smooth tissue and some noise, which compress as brains do."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    for seed in range(count):
        generator = np.random.default_rng(seed)
        tissue = 600 + 20 * generator.standard_normal(shape)
        for frequency in generator.uniform(3, 12, (6, 3)):
            phase = sum(factor * axis for factor, axis in zip(frequency, axes, strict=True))
            tissue += 60 * np.sin(phase)
        yield np.where(radius < 0.8, np.maximum(tissue, 1), 0).astype(np.int16)


def main() -> None:
    """Measures what the request on the input names and prints the figures."""
    request = json.load(sys.stdin)
    settings = Settings(**request["settings"] | {"shape": tuple(request["settings"]["shape"])})
    meter = Meter(
        torch.device(settings.device),
        least_seconds=settings.least_seconds,
        least_runs=settings.least_runs,
    )
    try:
        answer = {"figures": MEASURES[request["measure"]](request["form"], settings, meter)}
    except torch.OutOfMemoryError:
        answer = {"failure": "out of memory"}
    except MeasurementFailed as error:
        answer = {"failure": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
