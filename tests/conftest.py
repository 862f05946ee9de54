"""Generated brains and cohorts; no test needs real scans."""

import importlib.util
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from golden_networks import NARROW

from model.scaledense import WIDTHS
from utils.scans.provenance import write_sidecar
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, find_scans

# A second thread slows networks this small down, above all on a busy machine.
torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
# Part of a file name whose bytes are not UTF-8; only Linux allows such names.
UNDECODABLE = os.fsdecode(b"caf\xe9")
needs_any_name = pytest.mark.skipif(sys.platform != "linux", reason="file names must be UTF-8")
# The modules of requirements-preprocessing.txt, which script/run_tests.sh does not install.
ENGINES = ("deepbet", "SimpleITK", "picsl_greedy", "dcm2niix")
TINY = (32, 36, 32)  # voxels; smaller volumes vanish after five halvings


def brain(shape: tuple[int, int, int], age: float, seed: int = 0) -> np.ndarray:
    """An ellipsoid of tissue with a dark middle that grows with age; background exactly 0."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    tissue = 100 + 5 * generator.standard_normal(shape)
    tissue[radius < 0.1 + 0.5 * age / 100] *= 0.3
    return np.where(radius < 0.8, np.abs(tissue) + 1, 0).astype(np.float32)


def write_scan(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> Path:
    if affine is None:
        affine = GRID_AFFINE
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    return path


def write_cohort(folder: Path, sizes: dict[str, int], shape=TINY, seed: int = 0) -> Path:
    """Folders of scans and a header-less labels.csv; returns the sheet."""
    generator = np.random.default_rng(seed)
    rows = []
    for name, count in sizes.items():
        for index in range(count):
            age = round(float(generator.uniform(20, 90)), 1)
            stem = f"{name}-{index + 1}"
            write_scan(folder / name / f"{stem}.nii.gz", brain(shape, age, len(rows)))
            rows.append(f"{stem}.nii.gz,{age},{index % 2}")
    sheet = folder / "labels.csv"
    sheet.write_text("\n".join(rows) + "\n")
    return sheet


def write_sidecars(folder: Path, registration: str, mask="template", backend="builtin") -> None:
    """Puts a sidecar beside every scan of `folder`."""
    for scan in find_scans(folder):
        recipe = {"registration": registration, "mask": mask, "backend": backend}
        write_sidecar(scan, {"recipe": recipe}, overwrite=True)


def linked_cohort(cohort: Path, folder: Path) -> Path:
    """A cohort of links to the scans of another, to put sidecars beside; returns `folder`."""
    for name in ("train", "val", "test"):
        (folder / name).mkdir(parents=True)
        for scan in find_scans(cohort / name):
            (folder / name / scan.name).symlink_to(scan)
    (folder / "labels.csv").symlink_to(cohort / "labels.csv")
    return folder


def pytest_collection_modifyitems(items):
    """Skips the tests marked `engines` where a package that they need is not installed."""
    if all(importlib.util.find_spec(module) for module in ENGINES):
        return
    skip = pytest.mark.skip(reason="requirements-preprocessing.txt is not installed")
    for item in items:
        if item.get_closest_marker("engines"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def forking():
    """A multiprocessing context whose processes start at once, without importing torch.

    They are forked from a process that has only imported what training and the benchmark import.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["conftest", "utils.training.run", "benchmark.cases", "torch._dynamo"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))
        forkserver.ensure_running()
    return context


@pytest.fixture
def narrow_released(monkeypatch):
    """The released width with few channels, for files of `narrow_state_dict`."""
    monkeypatch.setitem(WIDTHS, "released", NARROW)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """8 training, 4 validation and 7 test scans of TINY size, with labels.csv."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, {"train": 8, "val": 4, "test": 7})
    return folder


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory) -> Path:
    """4 training and 2 validation scans of TINY size: two batches of two, for repeated runs."""
    folder = tmp_path_factory.mktemp("small_cohort")
    write_cohort(folder, {"train": 4, "val": 2})
    return folder


@pytest.fixture(scope="session")
def grid_cohort(tmp_path_factory) -> Path:
    """3 training, 2 validation and 3 test scans on the real grid, with labels.csv."""
    folder = tmp_path_factory.mktemp("grid_cohort")
    write_cohort(folder, {"train": 3, "val": 2, "test": 3}, GRID_SHAPE)
    return folder


@pytest.fixture(scope="session")
def seven_scans(tmp_path_factory):
    """Seven tiny scans named so that name order is not creation order."""
    folder = tmp_path_factory.mktemp("scans")
    for index in (3, 1, 10, 2, 7, 5, 4):
        write_scan(folder / f"sub-{index}.nii.gz", brain(TINY, 50, index))
    return folder


def training_flags(cohort: Path, output_dir: Path) -> list[str]:
    """The shortest useful run of either stage on a cohort."""
    return [
        *("--train_folder", str(cohort / "train"), "--val_folder", str(cohort / "val")),
        *("--labels", str(cohort / "labels.csv"), "--output_dir", str(output_dir)),
        *("--epochs", "2", "--batch_size", "4", "--device", "cpu", "--pair_weight", "1"),
    ]


@pytest.fixture(scope="session")
def trained(cohort, tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of both stages after two epochs on the tiny cohort."""
    import train_first_stage
    import train_second_stage

    folder = tmp_path_factory.mktemp("trained")
    # At the usual rate so few steps end so far apart that no two scans share a rounded age.
    flags = [*training_flags(cohort, folder / "first"), "--any_grid", "--lr", "1e-4"]
    first = train_first_stage.main(flags)
    second = train_second_stage.main(
        [*training_flags(cohort, folder / "second"), "--first_stage_net", str(first)]
    )
    return {"first": first, "second": second}


def forget_inputs(run: Path) -> None:
    """Makes the last checkpoints of a run as they were before they kept what scans hold."""
    for path in run.glob("*.pth.tar"):
        content = torch.load(path, weights_only=True)
        if content.get("resume", {}).pop("inputs", None):
            torch.save(content, path)
