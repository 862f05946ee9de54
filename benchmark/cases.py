"""What is measured: each case with its forms, the first of which is the reference.

`python -m benchmark.cases` reads one request from its input, measures that form and prints its
figures: the harness (benchmark/measure.py) starts it anew for every measurement. Volumes are on the
91x109x91 grid of 2 mm, `--quick` takes 42x42x42.
"""

import json
import os
import sys
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
from model.layers import fuse_for_inference
from model.losses import AgeLoss
from model.scaledense import ScaleDense
from utils.dataset import ScanDataset, open_cohort, require_readable, training_loader
from utils.engine import Execution, predict, train_one_epoch
from utils.labels import read_labels
from utils.optimisation import Optimisation, build_optimizer
from utils.volumes import GRID_AFFINE, GRID_SHAPE, Preparation

PLAIN = "plain"
# How our forms run: options of Execution. A new way of running is a line here and its name in
# `INFERENCE_FORMS` or `TRAINING_FORMS`.
OUR_FORMS: dict[str, dict] = {"ours float32": {}, "ours bfloat16": {"bfloat16": True}}
INFERENCE_FORMS = {
    "cpu": (PLAIN, "ours float32", "ours bfloat16"),
    "cuda": (PLAIN, "ours float32", "ours bfloat16"),
}
TRAINING_FORMS = {
    "cpu": (PLAIN, "ours float32"),
    "cuda": (PLAIN, "ours float32", "ours bfloat16"),
}
CACHES = ("none", "memory")  # of our loader; its form is "cache NAME"
IN_MEMORY = "in memory"
SMALL_SHAPE = (42, 42, 42)  # the least that the released width, with its stem, can halve five times
SCAN_COUNTS = (1000, 3000, 6586)  # the last is the paper's cohort
SHEET_ROWS = 1000
DISTINCT_SCANS = 8  # the others are the same files under other names
PUBLISHED = Optimisation(optimizer="adam", lr=1e-3, weight_decay=5e-4, schedule="constant")


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
        execution = Execution(meter.device, **OUR_FORMS[form])
        network = execution.place(fuse_for_inference(ScaleDense(settings.width)))
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
        epoch = our_training(settings, Execution(meter.device, **OUR_FORMS[form]))
        seconds = meter.seconds(lambda: epoch(batches))
    figures = {"s/step": seconds / settings.steps}
    return figures | speed(settings, seconds, training=True) | meter.memory()


def loader(form: str, settings: Settings, meter: Meter) -> Figures:
    """The first pass over a folder of scans, all that comes before it included, and the second."""
    folder, sheet = Path(settings.cohort) / "scans", Path(settings.cohort) / "labels.csv"
    opened: list[DataLoader] = []

    def first_epoch() -> None:
        if form == PLAIN:
            dataset = PlainDataset(folder, sheet)
            common = {"batch_size": settings.batch, "num_workers": settings.num_workers}
            opened.append(plain_loader(dataset, **common))
        else:
            opened.append(our_loader(folder, sheet, form.removeprefix("cache "), settings))
        read(opened[0], meter.device)

    once = replace_meter(meter, least_seconds=0.0, least_runs=1)
    first = once.seconds(first_epoch, warm_up=0)
    again = once if form == PLAIN else replace_meter(meter, least_seconds=1.0, least_runs=1)
    second = again.seconds(lambda: read(opened[0], meter.device), warm_up=0)
    count = len(opened[0].dataset)
    private = max(private_memory() for _ in opened[0])  # not timed
    return {
        "first epoch scans/s": count / first,
        "second epoch scans/s": count / second,
        "private memory MiB": private,
    }


def feeding(form: str, settings: Settings, meter: Meter) -> Figures:
    """Training fed by the loader, against the same loop on batches that lie on the device."""
    folder, sheet = Path(settings.cohort) / "scans", Path(settings.cohort) / "labels.csv"
    bfloat16 = meter.device.type == "cuda"
    execution = Execution(meter.device, bfloat16=bfloat16)
    batches = our_loader(folder, sheet, form.removeprefix("cache "), settings)
    if form == IN_MEMORY:
        batches = [
            {name: value.to(meter.device) for name, value in batch.items()}
            for batch in our_loader(folder, sheet, "none", settings)
        ]
    epoch = our_training(settings, execution)
    return {"s/epoch": meter.seconds(lambda: epoch(batches))}


def memory(form: str, settings: Settings, meter: Meter) -> Figures:
    """Memory of reading so many scans once; the form is `CACHE, COUNT scans`."""
    cache, count = form.removesuffix(" scans").split(", ")
    batches = our_loader(Path(settings.cohort) / f"count-{count}", None, cache, settings)
    return {"private memory MiB": max(private_memory() for _ in batches)}


def ceiling(form: str, settings: Settings, meter: Meter) -> Figures:
    """Products of square matrices, what the device can do at best; the form is the precision.

    float32 on a GPU runs on its matrix units (TF32), as its convolutions do by torch's default.
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
    """A batch as utils/dataset.py makes them, of noise."""
    torch.manual_seed(0)
    return {
        "image": torch.randn(settings.batch, 1, *settings.shape),
        "sex": torch.arange(settings.batch) % 2,
        "age": torch.linspace(20, 90, settings.batch)[:, None],
        "index": torch.arange(settings.batch),
    }


def our_training(
    settings: Settings, execution: Execution
) -> Callable[[list[dict] | DataLoader], None]:
    """One epoch by the product's loop, with the published optimiser."""
    network = execution.place(ScaleDense(settings.width))
    loss, optimizer = AgeLoss(), build_optimizer(network, PUBLISHED)

    def epoch(batches: list[dict] | DataLoader) -> None:
        train_one_epoch(
            network,
            loss,
            batches,
            optimizer,
            execution,
            augment=lambda image: image,
            after_step=lambda step, terms: None,
        )

    return epoch


def our_loader(folder: Path, sheet: Path | None, cache: str, settings: Settings) -> DataLoader:
    """The product's way from a folder to batches; the one place that knows about its cache."""
    labels = read_labels(sheet) if sheet else None
    preparation = Preparation(intensity="authors", any_grid=settings.shape != GRID_SHAPE)
    scans = open_cohort(folder, labels, preparation, need_age=sheet is not None)
    if cache == "none" and sheet is not None:
        require_readable(scans, preparation)
    dataset = ScanDataset(scans, preparation, keep=cache == "memory")
    return training_loader(
        dataset,
        batch_size=settings.batch,
        full_batches=False,
        num_workers=settings.num_workers,
    )


def read(batches: DataLoader, device: torch.device) -> None:
    """Brings every batch to the device."""
    for batch in batches:
        batch["image"].to(device, non_blocking=True)


def replace_meter(meter: Meter, **changes: float) -> Meter:
    """A meter of the same device with another patience."""
    return Meter(meter.device, **changes)


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
        caches: of our loader.
        scan_counts: for `memory`; the first is the reference.
    """
    cases = []
    for width in widths:
        for name in ("inference", "training"):
            for batch in batches[name] if name in names else ():
                cases.append(network_case(name, replace(base, width=width, batch=batch)))
    cached = tuple(f"cache {cache}" for cache in caches)
    if "loader" in names:
        goals = {(form, "second epoch scans/s"): 20.0 for form in cached if form != "cache none"}
        cases.append(
            Case("loader", "loader", (PLAIN, *cached), replace(base, batch=8), goals=goals)
        )
    if "feeding" in names:
        batch = batches["training"][0]
        settings = replace(base, width=widths[0], batch=batch)
        title = f"training fed by the loader, {widths[0]}, batch {batch}"
        # 5 % longer is 0.95 times as good.
        goals = {(form, "s/epoch"): 0.95 for form in cached if form != "cache none"}
        cases.append(Case("feeding", title, (IN_MEMORY, *cached), settings, goals=goals))
    for cache in caches if "memory" in names else ():
        forms = tuple(f"{cache}, {count} scans" for count in scan_counts)
        settings = replace(base, batch=8, shape=SMALL_SHAPE)
        cases.append(Case("memory", f"memory of reading, cache {cache}", forms, settings))
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
    """Makes the files that the cases read: scans/, labels.csv, and count-N/ for `memory`."""
    names = {case.measure for case in cases}
    if names & {"loader", "feeding"}:
        shape = next(c.settings.shape for c in cases if c.measure in ("loader", "feeding"))
        write_scans(folder / "scans", scans, shape)
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
