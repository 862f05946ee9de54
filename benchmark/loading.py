"""Scans from files: speed and memory of the loaders, training fed by them, and generated files."""

import os
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmark.compare import Figures
from benchmark.measure import PLAIN, Meter, Settings, private_memory
from benchmark.networks import our_execution, our_training
from benchmark.plain import PlainDataset, plain_loader
from utils.people.labels import read_labels
from utils.scans.cache import Cache
from utils.scans.cohort import open_cohort
from utils.scans.dataset import ScanDataset, training_loader
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, InputRule, find_scans

IN_MEMORY = "in memory"
SHEET_ROWS = 1000
FEW_SCANS = 16  # trained on by `feeding`, whose epochs are long
DISTINCT_SCANS = 8  # the others are the same files under other names


def loader(form: str, settings: Settings, meter: Meter) -> Figures:
    """The first pass over a folder of scans, all that comes before it included, and the second."""
    folder, sheet = Path(settings.cohort) / "scans", Path(settings.cohort) / "labels.csv"
    execution = None if form == PLAIN else our_execution("ours float32", meter.device)
    opened: list[DataLoader] = []

    def read() -> None:
        """Brings every batch to the device, as the network would see it."""
        for batch in opened[0]:
            if execution is None:
                batch["image"].to(meter.device, non_blocking=True)
            else:
                execution.images(batch)

    def first_epoch() -> None:
        if form == PLAIN:
            how = {"batch_size": settings.batch, "num_workers": settings.num_workers}
            opened.append(plain_loader(PlainDataset(folder, sheet), **how))
        else:
            opened.append(our_loader(folder, sheet, form, settings))
        read()

    once = Meter(meter.device, least_seconds=0.0, least_runs=1)
    first = once.seconds(first_epoch, warm_up=0)
    again = once if form == PLAIN else Meter(meter.device, least_seconds=1.0, least_runs=1)
    second = again.seconds(read, warm_up=0)
    count = len(opened[0].dataset)
    private = max(private_memory() for _ in opened[0])
    rates = {"first epoch scans/s": count / first, "second epoch scans/s": count / second}
    return rates | {"private memory MiB": private}


def feeding(form: str, settings: Settings, meter: Meter) -> Figures:
    """Training fed by the loader, against the same loop on batches that lie on the device."""
    folder, sheet = Path(settings.cohort) / "few", Path(settings.cohort) / "labels.csv"
    precision = "bfloat16" if meter.device.type == "cuda" else "float32"
    execution = our_execution(f"ours {precision}", meter.device)
    cache = "cache none" if form == IN_MEMORY else form
    batches = our_loader(folder, sheet, cache, settings)
    if form == IN_MEMORY:
        batches = [batch | {"image": execution.images(batch)} for batch in batches]
    epoch = our_training(settings, execution)
    return {"s/epoch": meter.seconds(lambda: epoch(batches))}


def memory(form: str, settings: Settings, meter: Meter) -> Figures:
    """Memory of reading so many scans once; the form is `cache KIND, COUNT scans`."""
    cache, count = form.removesuffix(" scans").split(", ")
    our_execution("ours float32", meter.device)  # sets the process up as the entry points do
    batches = our_loader(Path(settings.cohort) / f"count-{count}", None, cache, settings)
    return {"private memory MiB": max(private_memory() for _ in batches)}


def our_loader(folder: Path, sheet: Path | None, form: str, settings: Settings) -> DataLoader:
    """The product's way from a folder to batches; the form is `cache KIND`."""
    labels = read_labels(sheet, find_scans(folder)) if sheet else None
    input_rule = InputRule(intensity="authors", any_grid=settings.shape != GRID_SHAPE)
    scans = open_cohort(folder, labels, input_rule, need_age=sheet is not None)
    kept, device = Path(settings.scratch), torch.device(settings.device)
    dataset = ScanDataset(scans, input_rule, Cache(form.removeprefix("cache "), kept, device))
    how = {"batch_size": settings.batch, "num_workers": settings.num_workers}
    return training_loader(dataset, full_batches=False, **how)


def write_labelled(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Makes scans/ of `count` scans, few/ of FEW_SCANS at most, and labels.csv for both."""
    write_scans(folder / "scans", count, shape)
    write_scans(folder / "few", min(count, FEW_SCANS), shape)
    rows = [
        f"scan-{index:05d}.nii.gz,{20 + index % 70},{index % 2}"
        for index in range(max(count, SHEET_ROWS))
    ]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


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
